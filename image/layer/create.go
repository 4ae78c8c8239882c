package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func (a *applier) directory(path string, h *tar.Header) error {
	parent, base, err := a.dirs.parent(path)
	if err != nil {
		return err
	}
	err = unix.Mkdirat(parent, base, 0o700)
	made := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make directory: %w", err)
	}
	fd, err := openDir(parent, base)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		white := isWhiteout(parent, base)
		if err := a.remove(path); err != nil {
			return fmt.Errorf("replace: %w", err)
		}
		// remove may have closed the handles.
		if parent, _, err = a.dirs.parent(path); err != nil {
			return err
		}
		if err := unix.Mkdirat(parent, base, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		made = true
		if fd, err = openDir(parent, base); err == nil && white {
			// The whiteout hid what the layers below have; the directory has to go on doing so.
			err = opaque(fd)
		}
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // a directory handle
	if made {
		a.count(block)
	}
	delete(a.implied, path)
	a.mtime(path, h.ModTime)
	return setAttrs(fd, h)
}

func (a *applier) file(parent int, base string, h *tar.Header, r io.Reader) error {
	if a.total += h.Size; h.Size < 0 || a.opt.MaxBytes > 0 && a.total > a.opt.MaxBytes {
		return fmt.Errorf("layer is larger than %d bytes: %w", a.opt.MaxBytes, errdef.ErrExhausted)
	}
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		a.total -= h.Size
		return fmt.Errorf("make file: %w", err)
	}
	a.count((uint64(h.Size) + block - 1) / block * block)
	_, err = io.CopyBuffer(fdWriter(fd), struct{ io.Reader }{r}, a.buf)
	if err == nil {
		err = setAttrs(fd, h)
	}
	if err == nil {
		err = setTimesFd(fd, h.ModTime)
	}
	if e := unix.Close(fd); err == nil && e != nil {
		err = fmt.Errorf("close file: %w", e)
	}
	return err
}

// link makes a hard link: to what an earlier entry of this layer made, or to what a lower
// layer has, which has to wait for Settle.
func (a *applier) link(path string, h *tar.Header) error {
	target, err := cleanPath(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", h.Linkname, err)
	}
	if target == path {
		return nil
	}
	if target == "" {
		return fmt.Errorf("hard link to the root: %w", errdef.ErrInvalid)
	}
	err = a.linkTo(path, target)
	if errors.Is(err, unix.ENOENT) && !strings.HasPrefix(target, path+"/") {
		if err := a.deferLink(target, h); err != nil {
			return err
		}
		err = a.linkTo(path, target)
	}
	for _, final := range []error{unix.ENOENT, unix.ENOTDIR, unix.EPERM, unix.ELOOP} { // EPERM: a directory
		if errors.Is(err, final) {
			return fmt.Errorf("hard link to %.200q: %w: %w", h.Linkname, err, errdef.ErrInvalid)
		}
	}
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", h.Linkname, err)
	}
	return nil
}

// linkTo links to what this layer has.
func (a *applier) linkTo(path, target string) error {
	return a.replace(path, func(parent int, base string) error {
		from, name, err := a.dirs.lookupParent(target)
		if err != nil {
			return err
		}
		defer unix.Close(from) //nolint:errcheck // a directory handle
		if isWhiteout(from, name) {
			return unix.ENOENT
		}
		// Without AT_SYMLINK_FOLLOW a link is linked, never what it points to.
		if err := unix.Linkat(from, name, parent, base, 0); err != nil {
			return err
		}
		return a.noteLink(parent, base)
	})
}

func (a *applier) symlink(parent int, base string, h *tar.Header) error {
	if h.Linkname == "" || strings.IndexByte(h.Linkname, 0) >= 0 {
		return fmt.Errorf("symbolic link to %.200q: %w", h.Linkname, errdef.ErrInvalid)
	}
	if err := unix.Symlinkat(h.Linkname, parent, base); err != nil {
		return fmt.Errorf("make symbolic link: %w", err)
	}
	a.count(0)
	return a.setAttrsAt(parent, base, h)
}

func (a *applier) node(parent int, base string, h *tar.Header) error {
	mode, dev := uint32(unix.S_IFIFO), 0
	if h.Typeflag != tar.TypeFifo {
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return fmt.Errorf("device %d:%d: %w", h.Devmajor, h.Devminor, errdef.ErrInvalid)
		}
		mode = unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			mode = unix.S_IFBLK
		}
		dev = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))) // #nosec G115 -- checked above
	}
	if err := unix.Mknodat(parent, base, mode|0o600, dev); err != nil {
		return fmt.Errorf("make node: %w", err)
	}
	a.count(0)
	return a.setAttrsAt(parent, base, h)
}

// setAttrsAt sets owner, mode, attributes and times of what was just made under base in
// a directory that only we can write to. None of the calls follows base.
func (a *applier) setAttrsAt(parent int, base string, h *tar.Header) error {
	if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(parent, base, perm(h), 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	path := fmt.Sprintf("/proc/self/fd/%d/%s", parent, base)
	for name, value := range xattrs(h) {
		if err := xattrErr(name, unix.Lsetxattr(path, name, []byte(value), 0)); err != nil {
			return err
		}
	}
	ts, err := timespecs(h.ModTime)
	if err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(parent, base, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// setAttrs sets owner, mode and attributes, in this order: chown clears the set-id bits
// and security.capability.
func setAttrs(fd int, h *tar.Header) error {
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := unix.Fchmod(fd, perm(h)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	for name, value := range xattrs(h) {
		if err := xattrErr(name, unix.Fsetxattr(fd, name, []byte(value), 0)); err != nil {
			return err
		}
	}
	return nil
}

func perm(h *tar.Header) uint32 { return uint32(h.Mode & 0o7777) } // #nosec G115 -- masked

func attrOf(h *tar.Header) Attr {
	return Attr{Mode: perm(h), UID: uint32(h.Uid), GID: uint32(h.Gid), Mtime: h.ModTime} // #nosec G115 -- checkOwner
}

// checkOwner keeps ids out that the kernel would truncate, to root perhaps
// (CVE-2024-40635); the highest means "do not change".
func checkOwner(h *tar.Header) error {
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || int64(id) >= math.MaxUint32 {
			return fmt.Errorf("owner %d:%d is out of range: %w", h.Uid, h.Gid, errdef.ErrInvalid)
		}
	}
	return nil
}

// mayCarry tells whether a layer may set an attribute. trusted.overlay.* and
// user.overlay.* would be obeyed by overlay (redirects, metacopy), security.selinux and
// .ima belong to the host.
func mayCarry(name string) bool {
	if strings.HasPrefix(name, "user.") {
		return !strings.HasPrefix(name, "user.overlay.")
	}
	return name == "security.capability" || strings.HasPrefix(name, "system.posix_acl_")
}

// xattrs selects what a layer may set.
func xattrs(h *tar.Header) map[string]string {
	var m map[string]string
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if !mayCarry(name) {
			continue
		}
		if m == nil {
			m = map[string]string{}
		}
		m[name] = v
	}
	return m
}

// xattrErr forgives a filesystem that has no such attributes, and the kernel's refusal
// of user.* on links and devices.
func xattrErr(name string, err error) error {
	if err == nil || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if errors.Is(err, unix.EPERM) && strings.HasPrefix(name, "user.") {
		return nil
	}
	return fmt.Errorf("set attribute %.100q: %w", name, err)
}

func timespecs(t time.Time) ([]unix.Timespec, error) {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return nil, fmt.Errorf("time %v: %w: %w", t, err, errdef.ErrInvalid)
	}
	return []unix.Timespec{ts, ts}, nil
}

// setTimesFd uses the handle itself: utimensat with an empty name.
func setTimesFd(fd int, t time.Time) error {
	ts, err := timespecs(t)
	if err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// fdWriter writes to a descriptor without the poller's and os.File's bookkeeping,
// which counts with ten thousands of small files.
type fdWriter int

func (w fdWriter) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Write(int(w), p[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return n, fmt.Errorf("write file: %w", err)
		}
		n += m
	}
	return n, nil
}
