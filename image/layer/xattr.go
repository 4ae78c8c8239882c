package layer

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	capabilityAttr = "security.capability"
	accessACL      = "system.posix_acl_access"
	defaultACL     = "system.posix_acl_default"

	maxXattr  = 1<<16 - 1 // EROFS counts a value's length in 16 bits
	maxXattrs = 200 << 10 // of one inode together; EROFS ends at 256 KiB with its headers
)

// mayCarry tells whether a layer may set an attribute. trusted.overlay.* and
// user.overlay.* would be obeyed by overlay (redirects, metacopy), security.selinux and
// .ima belong to the host.
func mayCarry(name string) bool {
	if strings.HasPrefix(name, "user.") {
		return !strings.HasPrefix(name, "user.overlay.")
	}
	return name == capabilityAttr || name == accessACL || name == defaultACL
}

// setXattrs gives n the attributes of a header that a layer may set, in the order of
// their names, and refuses what the kernel would not take. It does what setxattr(2)
// would: the kernel forbids user.* and ACLs on links, user.* on devices.
func setXattrs(n *erofs.Node, h *tar.Header) error {
	total := 0
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok || !mayCarry(name) || isLink(n) && name != capabilityAttr {
			continue
		}
		kind := n.Mode & unix.S_IFMT
		if strings.HasPrefix(name, "user.") && kind != unix.S_IFREG && kind != unix.S_IFDIR {
			continue
		}
		if total += len(name) + len(v); total > maxXattrs {
			return fmt.Errorf("extended attributes of more than %d bytes: %w", maxXattrs, errdef.ErrInvalid)
		}
		keep, err := checkXattr(n, name, []byte(v))
		if err != nil {
			return fmt.Errorf("extended attribute %.100q: %w", name, err)
		}
		if keep {
			n.Xattr = append(n.Xattr, erofs.Xattr{Name: strings.Clone(name), Value: []byte(v)})
		}
	}
	sortXattrs(n.Xattr)
	return nil
}

func sortXattrs(x []erofs.Xattr) {
	slices.SortFunc(x, func(a, b erofs.Xattr) int { return strings.Compare(a.Name, b.Name) })
}

// checkXattr validates a value; an access ACL sets the mode of n as it does in the kernel.
// Keep is false for what the kernel does not store.
func checkXattr(n *erofs.Node, name string, v []byte) (keep bool, err error) {
	if name == "user." || len(name) > maxName || len(v) > maxXattr {
		return false, fmt.Errorf("name of %d bytes, value of %d: %w", len(name), len(v), errdef.ErrInvalid)
	}
	switch name {
	case capabilityAttr:
		if !validCapability(v) {
			return false, fmt.Errorf("not a capability set: %w", errdef.ErrInvalid)
		}
	case accessACL:
		mode, extended, err := parseACL(v)
		if err == nil && len(v) > aclHeader {
			n.Mode = n.Mode&^0o777 | mode
		}
		return extended, err
	case defaultACL:
		if !isDir(n) {
			return false, fmt.Errorf("default ACL of something other than a directory: %w", errdef.ErrInvalid)
		}
		_, _, err := parseACL(v)
		return len(v) > aclHeader, err
	}
	return true, nil
}

// validCapability follows is_v2header and is_v3header in security/commoncap.c.
func validCapability(v []byte) bool {
	if len(v) < 4 {
		return false
	}
	const effective, rev2, rev3 = 1, 0x02000000, 0x03000000
	magic := binary.LittleEndian.Uint32(v) &^ effective
	return magic == rev2 && len(v) == 20 || magic == rev3 && len(v) == 24
}

// Tags and sizes of include/uapi/linux/posix_acl.h and posix_acl_xattr.h.
const (
	aclHeader, aclEntry = 4, 8

	aclDone, aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther = 0, 1, 2, 4, 8, 16, 32
)

// parseACL follows posix_acl_from_xattr, posix_acl_valid and posix_acl_equiv_mode in
// fs/posix_acl.c. Extended is false when the permission bits say it all.
func parseACL(v []byte) (mode uint32, extended bool, err error) {
	if len(v) == 0 {
		return 0, false, nil // removes
	}
	bad := fmt.Errorf("not an ACL: %w", errdef.ErrInvalid)
	if len(v) < aclHeader || (len(v)-aclHeader)%aclEntry != 0 || binary.LittleEndian.Uint32(v) != 2 {
		return 0, false, bad
	}
	if v = v[aclHeader:]; len(v) == 0 {
		return 0, false, nil
	}
	a := aclParser{next: aclUserObj}
	for ; len(v) > 0; v = v[aclEntry:] {
		tag, perm, id := binary.LittleEndian.Uint16(v), uint32(binary.LittleEndian.Uint16(v[2:])), binary.LittleEndian.Uint32(v[4:])
		if perm > 7 || !a.entry(tag, perm, id) {
			return 0, false, bad
		}
	}
	if a.next != aclDone {
		return 0, false, bad
	}
	return a.mode, a.mask, nil
}

// aclParser knows the one order that entries have, and that named users and groups want a mask.
type aclParser struct {
	next        uint16 // the tag, or for names and the mask the first, that may follow
	named, mask bool
	mode        uint32
}

func (a *aclParser) entry(tag uint16, perm, id uint32) bool {
	switch {
	case tag == aclUserObj && a.next == aclUserObj:
		a.next, a.mode = aclUser, perm<<6
	case tag == aclUser && a.next == aclUser, tag == aclGroup && a.next == aclGroup:
		a.named = true
		return id != math.MaxUint32
	case tag == aclGroupObj && a.next == aclUser:
		a.next, a.mode = aclGroup, a.mode|perm<<3
	case tag == aclMask && a.next == aclGroup:
		a.next, a.mask, a.mode = aclOther, true, a.mode&^0o070|perm<<3
	case tag == aclOther && (a.next == aclOther || a.next == aclGroup && !a.named):
		a.next, a.mode = aclDone, a.mode|perm
	default:
		return false
	}
	return true
}
