package mount

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Entry is one line of this process's mount table.
type Entry = mountinfo.Info

// Table reads the mount table; keep nil keeps all entries.
func Table(keep func(*Entry) bool) ([]*Entry, error) {
	var filter mountinfo.FilterFunc
	if keep != nil {
		filter = func(e *Entry) (skip, stop bool) { return !keep(e), false }
	}
	all, err := mountinfo.GetMounts(filter)
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return all, nil
}

// IsMountPoint tells whether something is mounted on path.
func IsMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	if err != nil {
		return false, fmt.Errorf("look for mount on %s: %w", path, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("look for mount on %s: %w", path, errors.ErrUnsupported)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// PropagationOf tells how the mount that holds path propagates. A mount that is
// shared and slave at once counts as Shared.
func PropagationOf(path string) (Propagation, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return 0, fmt.Errorf("find mount of %s: %w", path, err)
	}
	all, err := Table(func(e *Entry) bool { return within(real, e.Mountpoint) })
	if err != nil {
		return 0, err
	}
	if len(all) == 0 {
		return 0, fmt.Errorf("find mount of %s: %w", path, errdef.ErrNotFound)
	}
	// The longest mount point holds the path; of several on one point, the last.
	best := all[0]
	for _, e := range all[1:] {
		if len(e.Mountpoint) >= len(best.Mountpoint) {
			best = e
		}
	}
	tags := strings.Fields(best.Optional)
	has := func(prefix string) bool {
		return slices.ContainsFunc(tags, func(t string) bool { return strings.HasPrefix(t, prefix) })
	}
	switch {
	case has("shared:"):
		return Shared, nil
	case has("master:"):
		return Slave, nil
	case has("unbindable"):
		return Unbindable, nil
	}
	return Private, nil
}

func within(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir+"/")
}

// PrivateDir makes dir a mount of its own that propagates nowhere, so that the
// mounts below it are in no other mount namespace and can be removed at once. It
// does nothing when dir is one already.
func PrivateDir(dir string) error {
	is, err := IsMountPoint(dir)
	if err != nil {
		return err
	}
	if !is {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s on itself: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", dir, err)
	}
	return nil
}
