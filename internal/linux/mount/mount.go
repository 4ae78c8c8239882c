// Package mount wraps the kernel's descriptor based mount calls in types, and
// builds overlay filesystems on every kernel since 6.1.
//
// Mounts are made detached, as descriptors outside any mount table: they vanish
// with their last descriptor, so nothing is left behind by a crash. Paths below an
// untrusted root are resolved by openat2 only. The package starts no goroutine
// that outlives a call, and leaves nothing on disk.
package mount

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Attr are the flags of a mount. Unset flags are left as they are.
type Attr struct {
	ReadOnly, NoSuid, NoDev, NoExec, NoAtime bool
	Propagation                              Propagation // 0 leaves it
	IDMap                                    *os.File    // user namespace; detached mounts only
}

// Propagation is how mounts spread between mount namespaces.
type Propagation int

// The propagation types.
const (
	Private Propagation = iota + 1
	Slave
	Shared
	Unbindable
)

func (p Propagation) flag() uint64 {
	switch p {
	case Private:
		return unix.MS_PRIVATE
	case Slave:
		return unix.MS_SLAVE
	case Shared:
		return unix.MS_SHARED
	case Unbindable:
		return unix.MS_UNBINDABLE
	}
	return 0
}

func (a Attr) flags() (f uint64) {
	for _, x := range []struct {
		on   bool
		flag uint64
	}{
		{a.ReadOnly, unix.MOUNT_ATTR_RDONLY}, {a.NoSuid, unix.MOUNT_ATTR_NOSUID},
		{a.NoDev, unix.MOUNT_ATTR_NODEV}, {a.NoExec, unix.MOUNT_ATTR_NOEXEC},
		{a.NoAtime, unix.MOUNT_ATTR_NOATIME},
	} {
		if x.on {
			f |= x.flag
		}
	}
	return f
}

// Clone copies the mount, or tree of mounts, at path and returns it detached. The
// path is trusted; symbolic links are followed, as they are for hostPath volumes.
func Clone(path string, recursive bool) (*os.File, error) {
	return clone(unix.AT_FDCWD, path, recursive)
}

// CloneAt is Clone of what dir refers to.
func CloneAt(dir *os.File, recursive bool) (*os.File, error) {
	return clone(int(dir.Fd()), "", recursive)
}

func clone(dir int, path string, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(dir, path, flags)
	if err != nil {
		return nil, fmt.Errorf("clone mount %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), "mount "+path), nil
}

// Attach puts the detached mount tree on the place that target refers to.
func Attach(tree, target *os.File) error {
	err := unix.MoveMount(int(tree.Fd()), "", int(target.Fd()), "",
		unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("attach mount to %s: %w", target.Name(), err)
	}
	return nil
}

// AttachPath is Attach on a trusted path.
func AttachPath(tree *os.File, path string) error {
	err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("attach mount to %s: %w", path, err)
	}
	return nil
}

// SetAttr changes the flags of a mount, or of all mounts of its tree.
func SetAttr(tree *os.File, recursive bool, a Attr) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: a.flags(), Propagation: a.Propagation.flag()}
	if a.NoAtime {
		attr.Attr_clr |= unix.MOUNT_ATTR__ATIME // the access time modes exclude each other
	}
	if a.IDMap != nil {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(a.IDMap.Fd())
	}
	if err := unix.MountSetattr(int(tree.Fd()), "", flags, &attr); err != nil {
		return fmt.Errorf("set attributes of %s: %w", tree.Name(), err)
	}
	return nil
}

// New makes a filesystem and returns it as a detached mount. Options are
// "key=value" or "flag"; each is at most 255 bytes (fsconfig).
func New(fstype, source string, options []string, a Attr) (*os.File, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open filesystem %s: %w", fstype, err)
	}
	defer func() { _ = unix.Close(fs) }()
	if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return nil, explain(fs, "set source of "+fstype, err)
		}
	}
	for _, o := range options {
		if err := setOption(fs, o); err != nil {
			return nil, explain(fs, "set option of "+fstype+" "+o, err)
		}
	}
	return create(fs, fstype, a)
}

func setOption(fs int, option string) error {
	key, value, ok := strings.Cut(option, "=")
	if !ok {
		return unix.FsconfigSetFlag(fs, key)
	}
	return unix.FsconfigSetString(fs, key, value)
}

func create(fs int, fstype string, a Attr) (*os.File, error) {
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, explain(fs, "create "+fstype, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(a.flags()))
	if err != nil {
		return nil, explain(fs, "mount "+fstype, err)
	}
	f := os.NewFile(uintptr(fd), "mount "+fstype)
	if a.IDMap == nil && a.Propagation == 0 {
		return f, nil
	}
	if err := SetAttr(f, false, Attr{IDMap: a.IDMap, Propagation: a.Propagation}); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// explain adds what the filesystem wrote to its context's log, one line per read.
func explain(fs int, what string, err error) error {
	var lines []string
	buf := make([]byte, 512)
	for len(lines) < 8 {
		n, e := unix.Read(fs, buf)
		if e != nil || n <= 0 {
			break
		}
		if line := strings.TrimSpace(string(buf[:n])); strings.HasPrefix(line, "e ") {
			lines = append(lines, line[2:])
		}
	}
	if len(lines) == 0 {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %s: %w", what, strings.Join(lines, "; "), err)
}

// OpenInRoot opens path as a process whose root directory is root would, without
// following magic links of procfs. It never leaves root.
func OpenInRoot(root *os.File, path string, flags int) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o600
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		// A rename elsewhere in the tree makes the kernel unsure: it asks to try again.
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open in root", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// OpenRegularInRoot opens a regular file for reading. What an image has in its place is
// refused without being opened: to open a device node is to operate the device.
func OpenRegularInRoot(root *os.File, path string) (*os.File, error) {
	at, err := OpenInRoot(root, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer func() { _ = at.Close() }()
	info, err := at.Stat()
	if err != nil {
		return nil, fmt.Errorf("open in root: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, &os.PathError{Op: "open in root", Path: path, Err: fmt.Errorf("it is no regular file but %v: %w", info.Mode().Type(), errdef.ErrInvalid)}
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
}

// Detach unmounts path lazily; what is not mounted is no error.
func Detach(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}
