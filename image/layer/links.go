package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// pendingAttr marks a file that stands for one of a lower layer until Settle. It goes
// with the inode, whatever names later entries give and take; a layer's own attributes
// are never trusted.*.
const pendingAttr = "trusted.cri.link"

// Names for Settle's own use in a layer's root: no entry can be called so, since
// everything that begins with .wh. means something else.
const (
	tempCopy = whiteoutPrefix + "copy"
	tempLink = whiteoutPrefix + "link"
)

// Link is a hard link to a file that only a lower layer has.
type Link struct {
	Target string   // where the lower layers have it, free of symbolic links
	Names  []string // in this layer that may stand for it, the target's first
}

// deferLink makes a place for what may come from a lower layer. On overlay, link(2) copies
// the target up and links the copy: both names are in the upper layer then. So are they
// here, as a placeholder that Settle replaces; entries that follow can replace either
// name, or link to it once more.
func (a *applier) deferLink(target string, h *tar.Header) error {
	missing := fmt.Errorf("hard link to %.200q, which was deleted: %w", h.Linkname, errdef.ErrInvalid)
	if from, name, err := a.dirs.lookupParent(target); err == nil {
		white := isWhiteout(from, name)
		_ = unix.Close(from)
		if white {
			return missing
		}
	} else if errors.Is(err, unix.ENOTDIR) {
		return missing
	}
	parent, base, err := a.dirs.parent(target)
	if err != nil {
		return err
	}
	if target, err = a.dirs.realPath(parent, base); err != nil {
		return err
	}
	if hidden, err := a.hidesLower(target); err != nil {
		return err
	} else if hidden {
		return missing
	}
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make place for %.200q: %w", h.Linkname, err)
	}
	err = unix.Fsetxattr(fd, pendingAttr, []byte(strconv.Itoa(len(a.res.Links))), 0)
	if e := unix.Close(fd); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("make place for %.200q: %w", h.Linkname, err)
	}
	a.count(0)
	a.res.Links = append(a.res.Links, Link{Target: target, Names: []string{target}})
	return nil
}

// noteLink remembers a further name of a placeholder.
func (a *applier) noteLink(parent int, base string) error {
	if len(a.res.Links) == 0 {
		return nil
	}
	i, ok, err := pendingAt(parent, base)
	if err != nil || !ok {
		return err
	}
	if i >= len(a.res.Links) {
		return fmt.Errorf("mark of link %d of %d", i, len(a.res.Links))
	}
	name, err := a.dirs.realPath(parent, base)
	a.res.Links[i].Names = append(a.res.Links[i].Names, name)
	return err
}

// pendingAt tells which link the file of a name stands for, if it is a placeholder.
func pendingAt(parent int, base string) (int, bool, error) {
	var v [20]byte
	n, err := unix.Lgetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", parent, base), pendingAttr, v[:])
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return 0, false, nil
	case err != nil:
		return 0, false, fmt.Errorf("read mark of %.200q: %w", base, err)
	}
	i, err := strconv.Atoi(string(v[:n]))
	if err != nil || i < 0 {
		return 0, false, fmt.Errorf("mark of %.200q: %q", base, v[:n])
	}
	return i, true, nil
}

// hidesLower tells whether this layer has by now an opaque directory above path.
func (a *applier) hidesLower(path string) (bool, error) {
	if a.res.OpaqueRoot {
		return true, nil
	}
	dir, _ := split(path)
	if dir == "" {
		return false, nil
	}
	fd, hidden, err := openIn(a.dirs.root, dir)
	if fd >= 0 {
		_ = unix.Close(fd)
	}
	return hidden, err
}

// realPath gives the path, below the root, of a name in an open directory. Nobody
// renames directories of a layer that is being made.
func (c *dirCache) realPath(parent int, base string) (string, error) {
	if parent == c.root {
		return base, nil
	}
	root, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", c.root))
	if err != nil {
		return "", fmt.Errorf("name layer root: %w", err)
	}
	dir, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", parent))
	if err != nil {
		return "", fmt.Errorf("name directory: %w", err)
	}
	if dir == root {
		return base, nil
	}
	rel, ok := strings.CutPrefix(dir, root+"/")
	if !ok {
		return "", fmt.Errorf("directory is outside of the layer: %w", errdef.ErrInvalid)
	}
	return rel + "/" + base, nil
}

// settleLinks replaces placeholders by copies of the files that the layers below have,
// and gives the bytes they take.
func settleLinks(top *dirCache, roots []int, links []Link, limit int64) (bytes uint64, err error) {
	left := limit
	for i, l := range links {
		names, err := liveNames(top.root, i, l.Names)
		if err != nil {
			return 0, err
		}
		if len(names) == 0 {
			continue
		}
		from, err := locate(roots, l.Target)
		if err != nil {
			return 0, err
		}
		if from == nil {
			return 0, fmt.Errorf("hard link to %.200q, which neither the layer nor those below have: %w", l.Target, errdef.ErrInvalid)
		}
		if left -= from.st.Size; limit > 0 && left < 0 {
			err = fmt.Errorf("layer is larger than %d bytes: %w", limit, errdef.ErrExhausted)
		} else {
			err = replaceAll(top.root, names, from)
		}
		_ = unix.Close(from.dir)
		if err != nil {
			return 0, fmt.Errorf("copy %.200q from a lower layer: %w", l.Target, err)
		}
		bytes += (uint64(from.st.Size) + block - 1) / block * block // #nosec G115 -- a file's size
	}
	return bytes, nil
}

// liveNames keeps those names, each once, that are still the placeholder: later entries
// may have replaced them.
func liveNames(root, index int, names []string) ([]string, error) {
	var live []string
	seen := map[string]bool{}
	for _, n := range names {
		if seen[n] {
			continue
		}
		seen[n] = true
		parent, base, err := openParent(root, n)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("open parent of %.200q: %w", n, err)
		}
		i, ok, err := pendingAt(parent, base)
		_ = unix.Close(parent)
		if err != nil {
			return nil, err
		}
		if ok && i == index {
			live = append(live, n)
		}
	}
	return live, nil
}

func openParent(root int, path string) (int, string, error) {
	dir, base := split(path)
	if dir == "" {
		dir = "."
	}
	fd, err := openat2(root, dir, unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	return fd, base, err
}

// replaceAll puts one copy of a lower file under all names.
func replaceAll(root int, names []string, from *lower) error {
	return keepTimes(root, func() error {
		if err := copyUp(from, root, tempCopy); err != nil {
			return err
		}
		for _, n := range names {
			parent, base, err := openParent(root, n)
			if err != nil {
				return fmt.Errorf("open parent of %.200q: %w", n, err)
			}
			err = keepTimes(parent, func() error {
				if err := unix.Linkat(root, tempCopy, root, tempLink, 0); err != nil {
					return fmt.Errorf("link copy: %w", err)
				}
				return unix.Renameat(root, tempLink, parent, base)
			})
			_ = unix.Close(parent)
			if err != nil {
				return err
			}
		}
		return unix.Unlinkat(root, tempCopy, 0)
	})
}

// keepTimes restores a directory's times after changing what it holds: they are those
// of the stream.
func keepTimes(dir int, change func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return fmt.Errorf("stat directory: %w", err)
	}
	if err := change(); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(dir, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("restore times of directory: %w", err)
	}
	return nil
}

// copyUp copies a file, device or symbolic link with owner, mode, attributes and times.
func copyUp(from *lower, dir int, name string) error {
	st := &from.st
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return fmt.Errorf("hard link to a directory: %w", errdef.ErrInvalid)
	case unix.S_IFREG:
		if err := copyData(from, dir, name); err != nil {
			return err
		}
	case unix.S_IFLNK:
		to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d/%s", from.dir, from.base))
		if err != nil {
			return fmt.Errorf("read symbolic link: %w", err)
		}
		if err := unix.Symlinkat(to, dir, name); err != nil {
			return fmt.Errorf("make symbolic link: %w", err)
		}
	default:
		if err := unix.Mknodat(dir, name, st.Mode&unix.S_IFMT|0o600, int(st.Rdev)); err != nil { // #nosec G115 -- as the kernel gave it
			return fmt.Errorf("make node: %w", err)
		}
	}
	// Owner first: chown clears the set-id bits and security.capability.
	if err := unix.Fchownat(dir, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dir, name, st.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if err := copyXattrs(from, dir, name); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(dir, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

func copyData(from *lower, dir int, name string) error {
	src, err := openat2(from.dir, from.base, unix.O_RDONLY|unix.O_NOFOLLOW, beneath)
	if err != nil {
		return fmt.Errorf("open file: %w", err)
	}
	r := os.NewFile(uintptr(src), from.base) // #nosec G115 -- a descriptor
	defer r.Close()
	dst, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	w := os.NewFile(uintptr(dst), name) // #nosec G115 -- a descriptor
	_, err = io.Copy(w, r)              // by copy_file_range where the filesystem can share blocks
	if e := w.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("copy file: %w", err)
	}
	return nil
}

// copyXattrs copies what a layer may set; overlay's own marks stay below.
func copyXattrs(from *lower, dir int, name string) error {
	src, dst := fmt.Sprintf("/proc/self/fd/%d/%s", from.dir, from.base), fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	list := make([]byte, 64<<10) // the kernel's bound
	n, err := unix.Llistxattr(src, list)
	if err != nil {
		return xattrErr("", err)
	}
	value := make([]byte, 64<<10)
	for attr := range strings.SplitSeq(string(list[:n]), "\x00") {
		if !mayCarry(attr) {
			continue
		}
		n, err := unix.Lgetxattr(src, attr, value)
		if err != nil {
			return fmt.Errorf("read attribute %.100q: %w", attr, err)
		}
		if err := xattrErr(attr, unix.Lsetxattr(dst, attr, value[:n], 0)); err != nil {
			return err
		}
	}
	return nil
}
