package layer

import (
	"archive/tar"
	"fmt"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const maxName = 255 // NAME_MAX, and XATTR_NAME_MAX

// cleanPath makes a name relative to the root: "" is the root itself. ".." is refused
// even where it would stay inside, since no builder writes it.
func cleanPath(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("NUL in name: %w", errdef.ErrInvalid)
	}
	clean := true
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
			clean = false
		case p == "..":
			return "", fmt.Errorf("name leads upwards: %w", errdef.ErrInvalid)
		case len(p) > maxName:
			return "", fmt.Errorf("name of %d bytes: %w", len(p), errdef.ErrInvalid)
		}
	}
	if !clean {
		name = rejoin(name)
	}
	if len(name) < unix.PathMax {
		return name, nil
	}
	return "", fmt.Errorf("path of %d bytes: %w", len(name), errdef.ErrInvalid)
}

func rejoin(name string) string {
	if s := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/"); !strings.HasPrefix(s, "/") &&
		!strings.Contains(s, "//") && !strings.Contains("/"+s+"/", "/./") {
		return s // what builders write: "./etc/", "etc/"
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		if p != "" && p != "." {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "/")
}

func split(path string) (dir, base string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
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

// describe makes an inode of a header, without what it holds.
func describe(h *tar.Header) (*erofs.Node, error) {
	n := &erofs.Node{Mode: uint32(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid), // #nosec G115 -- masked; checkOwner
		Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond())} // #nosec G115 -- below 1e9
	switch h.Typeflag {
	case tar.TypeDir:
		n.Mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		n.Mode = unix.S_IFLNK | 0o777 // filesystems keep no other
		if h.Linkname == "" || len(h.Linkname) >= unix.PathMax || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, fmt.Errorf("symbolic link to %.200q: %w", h.Linkname, errdef.ErrInvalid)
		}
		n.Target = strings.Clone(h.Linkname)
	case tar.TypeFifo:
		n.Mode |= unix.S_IFIFO
	case tar.TypeChar, tar.TypeBlock:
		n.Mode |= unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			n.Mode = n.Mode&^unix.S_IFMT | unix.S_IFBLK
		}
		// What the kernel would truncate: 4096:0 would become overlay's whiteout.
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return nil, fmt.Errorf("device %d:%d: %w", h.Devmajor, h.Devminor, errdef.ErrInvalid)
		}
		n.Rdev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	default:
		n.Mode |= unix.S_IFREG
		n.Size = h.Size
	}
	return n, setXattrs(n, h)
}

func isDir(n *erofs.Node) bool { return n.Mode&unix.S_IFMT == unix.S_IFDIR }

func isLink(n *erofs.Node) bool { return n.Mode&unix.S_IFMT == unix.S_IFLNK }

// isWhiteout tells whether overlay takes n as the mark of a deleted name.
func isWhiteout(n *erofs.Node) bool { return n.Mode&unix.S_IFMT == unix.S_IFCHR && n.Rdev == 0 }

func isOpaque(n *erofs.Node) bool {
	for _, x := range n.Xattr {
		if x.Name == opaqueAttr {
			return true
		}
	}
	return false
}

func makeOpaque(n *erofs.Node) { mark(n, erofs.Xattr{Name: opaqueAttr, Value: []byte("y")}) }

// mark sets an attribute that overlay obeys.
func mark(n *erofs.Node, x erofs.Xattr) {
	if !slices.ContainsFunc(n.Xattr, func(old erofs.Xattr) bool { return old.Name == x.Name }) {
		n.Xattr = append(n.Xattr, x)
		sortXattrs(n.Xattr)
	}
}
