package mount

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
	root, err := New("tmpfs", "", nil, Attr{NoSuid: true, NoExec: true, NoDev: true})
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := AttachPath(root, "/"); err != nil {
		return nil, err
	}
	for _, t := range baseTrees {
		if err := graft(root, t.name, t.recursive); err != nil {
			return nil, err
		}
	}
	if err := SetAttr(root, false, Attr{ReadOnly: true}); err != nil {
		return nil, err
	}
	if err := pivot(root); err != nil {
		return nil, err
	}
	return os.Open("/proc/thread-self/ns/mnt")
}

// graft puts a clone of what is mounted at /name below the root.
func graft(root *os.File, name string, recursive bool) error {
	tree, err := Clone("/"+name, recursive)
	if err != nil {
		return err
	}
	defer tree.Close()
	place := procFd(root) + "/" + name
	if err := os.Mkdir(place, 0o755); err != nil {
		return err
	}
	return AttachPath(tree, place)
}

// pivot makes root, which is mounted above the present one, the only one there is.
func pivot(root *os.File) error {
	if err := unix.Fchdir(int(root.Fd())); err != nil {
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
