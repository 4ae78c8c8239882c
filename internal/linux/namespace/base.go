package namespace

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/thread"
)

// Base makes a mount namespace that has nothing but the host's /proc, /sys and /dev, the
// first two with all that is mounted below them. A process that is about to make a mount
// namespace of its own enters it first: the kernel then copies some twenty mounts instead
// of all of the host's, and its container's end does not have to take those apart again
// (copy_mnt_ns, umount_tree in fs/namespace.c). What the host mounts below /sys later
// appears there too, where mounts of the host are shared.
func Base() (*os.File, error) {
	var base *os.File
	err := thread.Throwaway(func() (err error) {
		base, err = makeBase()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make base mount namespace: %w", err)
	}
	return base, nil
}

// baseTrees are what Base keeps of the host, and whether with the mounts below.
var baseTrees = []struct {
	name      string
	recursive bool
}{{"proc", true}, {"sys", true}, {"dev", false}}

// makeBase leaves the thread in the new namespace.
func makeBase() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	// Slaves, so that nothing that is detached here is detached on the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return nil, fmt.Errorf("cut mount propagation to the host: %w", err)
	}
	root, err := emptyRoot()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root) //nolint:errcheck // a directory
	for _, t := range baseTrees {
		flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
		if t.recursive {
			flags |= unix.AT_RECURSIVE
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, "/"+t.name, flags)
		if err != nil {
			return nil, fmt.Errorf("clone /%s: %w", t.name, err)
		}
		err = unix.Mkdirat(root, t.name, 0o755)
		if err == nil {
			err = unix.MoveMount(fd, "", root, t.name, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		_ = unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("mount /%s: %w", t.name, err)
		}
	}
	if err := pivot(root); err != nil {
		return nil, err
	}
	return os.Open("/proc/thread-self/ns/mnt")
}

// emptyRoot attaches a tmpfs above the root.
func emptyRoot() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(fs) //nolint:errcheck // nothing was written
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make tmpfs: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		_ = unix.Close(root)
		return -1, fmt.Errorf("attach tmpfs: %w", err)
	}
	return root, nil
}

// pivot makes root, which is mounted above the present one, the only one there is.
func pivot(root int) error {
	if err := unix.MountSetattr(root, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot to the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the host's mounts: %w", err)
	}
	return nil
}
