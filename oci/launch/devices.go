package launch

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
)

// defaultDevices are what the runtime-spec promises to every container.
var defaultDevices = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, {Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7}, {Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9}, {Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

// defaultLinks are what programs expect in /dev.
var defaultLinks = [][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
	{"/proc/kcore", "core"},
}

// allDevices are the spec's devices and the default ones that it does not name.
func allDevices(s *specs.Spec) []specs.LinuxDevice {
	named := map[string]bool{"/dev/ptmx": true, "/dev/console": true}
	var all []specs.LinuxDevice
	for _, d := range s.Linux.Devices {
		d.Path = path.Clean("/" + d.Path)
		if !named[d.Path] {
			named[d.Path] = true
			all = append(all, d)
		}
	}
	for _, d := range defaultDevices {
		if !named[d.Path] {
			all = append(all, d)
		}
	}
	return all
}

// DeviceMode is the st_mode and the device number that mknod wants for d.
func DeviceMode(d specs.LinuxDevice) (mode uint32, dev uint64, err error) {
	mode = 0o666
	if d.FileMode != nil {
		mode = uint32(d.FileMode.Perm())
	}
	switch d.Type {
	case "c", "u":
		mode |= unix.S_IFCHR
	case "b":
		mode |= unix.S_IFBLK
	case "p":
		return mode | unix.S_IFIFO, 0, nil
	default:
		return 0, 0, fmt.Errorf("device %s: unknown type %q: %w", d.Path, d.Type, errdef.ErrInvalid)
	}
	if d.Major < 0 || d.Minor < 0 || d.Major >= 1<<12 || d.Minor >= 1<<20 {
		return 0, 0, fmt.Errorf("device %s: number %d:%d out of range: %w", d.Path, d.Major, d.Minor, errdef.ErrInvalid)
	}
	return mode, unix.Mkdev(uint32(d.Major), uint32(d.Minor)), nil
}

// makeDev gives the slot of a fresh /dev: a tmpfs, or the tree that came with its
// devices from outside of the user namespace.
func (c *compiler) makeDev(m parsedMount, attr uint64) int {
	if hasUserNamespace(c.spec) {
		c.dev = c.need(DeviceTree, 0)
		return c.dev
	}
	c.dev = c.newFS("tmpfs", m.source, attr&^unix.MOUNT_ATTR_RDONLY, m.data)
	return c.dev
}

// devices fills /dev. A /dev of the host's is left as it is.
func (c *compiler) devices() error {
	if c.dev == 0 {
		return nil
	}
	for _, d := range allDevices(c.spec) {
		inDev := strings.HasPrefix(d.Path, "/dev/")
		if hasUserNamespace(c.spec) {
			if !inDev {
				return fmt.Errorf("linux.devices: %s: only /dev can hold devices with a user namespace: %w", d.Path, errdef.ErrInvalid)
			}
			continue
		}
		if err := c.makeDevice(d); err != nil {
			return err
		}
	}
	c.say("make the links in /dev")
	links := defaultLinks
	if c.pts != 0 {
		links = append(slices.Clip(links), [2]string{"pts/ptmx", "ptmx"})
	}
	for _, l := range links {
		c.do(unix.SYS_SYMLINKAT, c.Str(l[0]), plan.S(c.dev), c.Str(l[1]))
		c.tolerate(unix.EEXIST) // a volume of that name was mounted before
	}
	return nil
}

func (c *compiler) makeDevice(d specs.LinuxDevice) error {
	mode, dev, err := DeviceMode(d)
	if err != nil {
		return err
	}
	c.say("make device %s", d.Path)
	dir, name := c.dev, strings.TrimPrefix(d.Path, "/dev/")
	switch {
	case name == d.Path:
		dir, name = c.mkPath(c.root, path.Dir(d.Path), plan.MkNoProc, 0), path.Base(d.Path)
	case strings.Contains(name, "/"):
		dir, name = c.mkPath(c.dev, path.Dir(name), 0, 0), path.Base(name)
	}
	c.do(unix.SYS_MKNODAT, plan.S(dir), c.Str(name), plan.I(mode), plan.I(dev))
	c.tolerate(unix.EEXIST)
	if d.Type != "p" {
		// What was there before must be the same device.
		fd := c.get(unix.SYS_OPENAT, plan.S(dir), c.Str(name), plan.I(unix.O_PATH|unix.O_NOFOLLOW|cloexec))
		check := plan.CheckCharDev
		if d.Type == "b" {
			check = plan.CheckBlockDev
		}
		c.do(plan.CheckFD, plan.S(fd), plan.I(check), plan.I(d.Major), plan.I(d.Minor))
	}
	if d.UID != nil || d.GID != nil {
		var uid, gid uint32
		if d.UID != nil {
			uid = *d.UID
		}
		if d.GID != nil {
			gid = *d.GID
		}
		c.do(unix.SYS_FCHOWNAT, plan.S(dir), c.Str(name), plan.I(uid), plan.I(gid), plan.I(unix.AT_SYMLINK_NOFOLLOW))
	}
	return nil
}

const devptsMagic = 0x1cd1

// console makes the terminal in the container's own devpts, gives its master away
// and puts the other side where standard input and output belong.
func (c *compiler) console() error {
	if !c.in.terminal {
		c.readOnlyDev()
		return nil
	}
	c.say("open the container's devpts")
	pts := c.pts
	if pts == 0 {
		// Only the filesystem is trusted, not the path: devpts holds nothing
		// but what the kernel put there.
		how := c.openHow(pathDir, unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_IN_ROOT)
		from := cwdFD
		if c.root != 0 {
			from = plan.S(c.root)
		} else {
			c.do(unix.SYS_CHDIR, c.Str("/"))
		}
		pts = c.get(unix.SYS_OPENAT2, from, c.Str("dev/pts"), how, plan.I(24))
		c.do(plan.CheckFD, plan.S(pts), plan.I(plan.CheckFS), plan.I(devptsMagic))
	}
	c.say("make a terminal")
	const how = unix.O_RDWR | unix.O_NOCTTY | cloexec
	master := c.get(unix.SYS_OPENAT, plan.S(pts), c.Str("ptmx"), plan.I(how))
	c.do(unix.SYS_IOCTL, plan.S(master), plan.I(unix.TIOCSPTLCK), c.Words(plan.I(0)))
	slave := c.get(unix.SYS_IOCTL, plan.S(master), plan.I(unix.TIOCGPTPEER), plan.I(how))
	c.do(unix.SYS_FCHOWN, plan.S(slave), plan.I(c.proc.User.UID), plan.I(int64(-1)))
	if s := c.proc.ConsoleSize; s != nil {
		size := uint64(uint16(s.Height)) | uint64(uint16(s.Width))<<16
		c.do(unix.SYS_IOCTL, plan.S(master), plan.I(unix.TIOCSWINSZ), c.Words(plan.I(size)))
	}
	if c.dev != 0 {
		c.say("mount the terminal at /dev/console")
		const create = unix.O_CREAT | unix.O_NOFOLLOW | unix.O_WRONLY | cloexec
		c.do(unix.SYS_OPENAT, plan.S(c.dev), c.Str("console"), plan.I(create), plan.I(0o600))
		tree := c.get(unix.SYS_OPEN_TREE, plan.S(slave), c.Str(""), plan.I(unix.OPEN_TREE_CLONE|unix.AT_EMPTY_PATH|cloexec))
		c.attachAt(tree, plan.S(c.dev), "console")
	}
	c.say("hand over the terminal")
	c.do(plan.SendFD, plan.S(c.need(PTYSocket, 0)), plan.S(master))
	for fd := range 3 {
		c.do(unix.SYS_DUP3, plan.S(slave), plan.I(fd), plan.I(0))
	}
	c.say("make the terminal the controlling one")
	c.do(unix.SYS_IOCTL, plan.I(0), plan.I(unix.TIOCSCTTY), plan.I(0))
	c.readOnlyDev()
	return nil
}

// readOnlyDev makes /dev read-only once it is filled, if the spec says so.
func (c *compiler) readOnlyDev() {
	for _, m := range c.mounts {
		if m.ownDev() && (m.set|m.setRecursive)&unix.MOUNT_ATTR_RDONLY != 0 {
			c.say("make /dev read-only")
			c.setAttr(c.dev, false, c.mountAttr(unix.MOUNT_ATTR_RDONLY, 0))
		}
	}
}
