package prepare

import (
	"errors"
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/launch"
)

// deviceTree makes the /dev of a container in a user namespace. Its superblock
// belongs to the initial user namespace, since device nodes on others do not work.
func (f *Files) deviceTree(d *launch.DeviceNeed) error {
	options := append([]string{fmt.Sprintf("uid=%d", d.RootUID), fmt.Sprintf("gid=%d", d.RootGID)}, d.Options...)
	fd, err := newTmpfs(options)
	if err != nil {
		return fmt.Errorf("make /dev: %w", err)
	}
	f.keep(fd, "/dev")
	for _, dev := range d.Devices {
		if err := makeDevice(fd, dev, d); err != nil {
			return fmt.Errorf("make device %s: %w", dev.Path, err)
		}
	}
	return nil
}

func newTmpfs(options []string) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open tmpfs: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	for _, o := range options {
		if k, v, ok := strings.Cut(o, "="); ok {
			err = unix.FsconfigSetString(fs, k, v)
		} else {
			err = unix.FsconfigSetFlag(fs, o)
		}
		if err != nil {
			return -1, fmt.Errorf("option %s: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("mount tmpfs: %w", err)
	}
	return fd, nil
}

func makeDevice(dir int, dev specs.LinuxDevice, d *launch.DeviceNeed) error {
	mode, number, err := launch.DeviceMode(dev)
	if err != nil {
		return err
	}
	name, ok := strings.CutPrefix(dev.Path, "/dev/")
	if !ok {
		return errors.New("it is not below /dev")
	}
	for i, c := range name {
		if c != '/' {
			continue
		}
		if err := unix.Mkdirat(dir, name[:i], 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make directory %s: %w", path.Dir(dev.Path), err)
		}
		if err := unix.Fchownat(dir, name[:i], int(d.RootUID), int(d.RootGID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if err := unix.Mknodat(dir, name, mode, int(number)); err != nil {
		return err
	}
	// mknod's mode is cut by the umask, which belongs to the whole process.
	if err := unix.Fchmodat(dir, name, mode&0o777, 0); err != nil {
		return err
	}
	uid, gid := d.RootUID, d.RootGID
	if dev.UID != nil {
		uid = d.HostUID(*dev.UID)
	}
	if dev.GID != nil {
		gid = d.HostGID(*dev.GID)
	}
	return unix.Fchownat(dir, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
}
