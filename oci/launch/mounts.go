package launch

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
)

// parsedMount is a mount of the spec with its options sorted.
type parsedMount struct {
	mountOptions
	index  int
	dest   string
	fstype string
	source string
	uids   []specs.LinuxIDMapping
	gids   []specs.LinuxIDMapping
}

func parseMounts(s *specs.Spec) ([]parsedMount, error) {
	var ms []parsedMount
	for i, m := range s.Mounts {
		o, err := parseOptions(m.Options)
		if err != nil {
			return nil, fmt.Errorf("mounts[%d] at %s: %w", i, m.Destination, err)
		}
		if m.Type == "bind" || m.Type == "none" {
			o.bind = true
		}
		dest := path.Clean("/" + m.Destination)
		p := parsedMount{o, i, dest, m.Type, m.Source, m.UIDMappings, m.GIDMappings}
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("mounts[%d] at %s: %w", i, m.Destination, err)
		}
		ms = append(ms, p)
	}
	return ms, nil
}

// check refuses mounts on and below /proc, which would let a container redirect
// what the runtime writes there.
func (m parsedMount) check() error { //nolint:cyclop // a flat list of refusals
	switch {
	case m.dest == "/":
		return fmt.Errorf("the root cannot be mounted over: %w", errdef.ErrInvalid)
	case strings.HasPrefix(m.dest, "/proc/"):
		return fmt.Errorf("nothing can be mounted below /proc: %w", errdef.ErrInvalid)
	case m.dest == "/proc" && m.fstype != "proc" && (!m.bind || path.Clean(m.source) != "/proc"):
		return fmt.Errorf("only procfs can be mounted on /proc: %w", errdef.ErrInvalid)
	case m.bind && m.source == "":
		return fmt.Errorf("source is empty: %w", errdef.ErrInvalid)
	case m.bind && !path.IsAbs(m.source):
		return fmt.Errorf("source %s is not absolute: %w", m.source, errdef.ErrInvalid)
	case !m.bind && !knownFS[m.fstype]:
		return fmt.Errorf("filesystem type %q is not supported: %w", m.fstype, errdef.ErrInvalid)
	case !m.bind && (m.idmap || len(m.uids) != 0):
		return fmt.Errorf("an id map needs a bind mount: %w", errdef.ErrInvalid)
	case m.idmap && (len(m.uids) == 0 || len(m.gids) == 0):
		return fmt.Errorf("id map is empty: %w", errdef.ErrInvalid)
	}
	return nil
}

var knownFS = map[string]bool{
	"proc": true, "sysfs": true, "tmpfs": true, "devpts": true, "mqueue": true, "cgroup": true, "cgroup2": true,
}

func hasUserNamespace(s *specs.Spec) bool {
	return find(s.Linux.Namespaces, specs.UserNamespace) != nil
}

// ownDev says whether the mount is a fresh /dev, to be filled.
func (m parsedMount) ownDev() bool { return m.dest == "/dev" && m.fstype == "tmpfs" && !m.bind }

// mountNeeds are the descriptors of volumes, and of /dev in a user namespace.
func mountNeeds(s *specs.Spec, ms []parsedMount) []Need {
	var ns []Need
	for _, m := range ms {
		switch {
		case m.bind:
			ns = append(ns, Need{Kind: Volume, Path: m.source, Volume: &VolumeNeed{
				Mount: m.index, Destination: m.dest, Recursive: m.recursive,
				Set: m.set, SetRecursive: m.setRecursive, Clear: m.clear,
				Propagation: m.propagation, PropagationRecursive: m.propagationRecursive,
				UIDs: m.uids, GIDs: m.gids, IDMapRecurse: m.idmapRecurse,
			}})
		case m.ownDev() && hasUserNamespace(s):
			ns = append(ns, Need{Kind: DeviceTree, Path: m.dest, Devices: &DeviceNeed{
				Options: m.data, Devices: allDevices(s),
				RootUID: hostID(s.Linux.UIDMappings, 0), RootGID: hostID(s.Linux.GIDMappings, 0),
				UIDs: s.Linux.UIDMappings, GIDs: s.Linux.GIDMappings,
			}})
		}
	}
	return ns
}

// attachRoot puts the root where it can be mounted on and pivoted to.
func (c *compiler) attachRoot() error {
	c.root = c.need(Rootfs, 0)
	c.say("cut mount propagation to the host")
	c.do(unix.SYS_MOUNT, plan.I(0), c.Str("/"), plan.I(0), plan.I(unix.MS_REC|unix.MS_SLAVE), plan.I(0))
	if len(c.spec.Linux.MaskedPaths) != 0 {
		c.maskSources()
	}
	c.cgroupSources()
	c.say("attach the root filesystem")
	c.do(unix.SYS_UMASK, plan.I(0))
	c.attachAt(c.root, cwdFD, "/")
	return nil
}

// cgroupSources clones the container's directories in the v1 hierarchies, which is all that a
// mount of the hierarchy shows in a cgroup namespace. The kernel looks at every cgroup of the
// node for each such mount (cgroup_lock_and_drain_offline, in cgroup1_get_tree).
func (c *compiler) cgroupSources() {
	c.cgroups = make([]int, len(c.opts.Hierarchies))
	if s := find(c.in.spaces, specs.CgroupNamespace); s == nil || s.Path != "" || !c.showsHierarchies() {
		return
	}
	for i, h := range c.opts.Hierarchies {
		if h.Source != "" {
			c.say("clone cgroup %s", h.Source)
			c.cgroups[i] = c.get(unix.SYS_OPEN_TREE, cwdFD, c.Str(h.Source), plan.I(unix.OPEN_TREE_CLONE|cloexec))
		}
	}
}

func (c *compiler) showsHierarchies() bool {
	for _, m := range c.mounts {
		if !m.bind && m.fstype == "cgroup" {
			return true
		}
	}
	return false
}

// maskSources makes what masks are clones of. Before Linux 6.15 only attached mounts
// can be cloned, so the empty directory is put where the host's /dev was; it goes
// with the host's tree. Not on /: it would hide from the detaching that follows the
// pivot. Not on /proc or /sys: the kernel gives a user namespace new ones only while
// the old are visible.
func (c *compiler) maskSources() {
	c.say("open the host's null device")
	c.null = c.get(unix.SYS_OPENAT, cwdFD, c.Str("/dev/null"), plan.I(unix.O_PATH|unix.O_NOFOLLOW|cloexec))
	c.do(plan.CheckFD, plan.S(c.null), plan.I(plan.CheckCharDev), plan.I(1), plan.I(3))
	c.say("make the empty directory that masks others")
	const attr = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	c.empty = c.newFS("tmpfs", "tmpfs", attr, []string{"size=4k", "nr_inodes=2", "mode=755"})
	c.attachAt(c.empty, cwdFD, "/dev")
}

func (c *compiler) mountAll() error { //nolint:cyclop // one case per kind of mount, in the order of the plan
	volume := 0
	for _, m := range c.mounts {
		flags := plan.MkNoProc
		if m.bind {
			c.say("mount volume %d at %s", m.index, m.dest)
			tree := c.need(Volume, volume)
			volume++
			c.attach(tree, c.mkPath(c.root, m.dest, flags|plan.MkLike, tree))
			continue
		}
		c.say("mount %s at %s", m.fstype, m.dest)
		attr := m.set | m.setRecursive
		if m.fstype == "proc" || m.fstype == "sysfs" || m.ownDev() {
			// A link in their place is an attack: what is done to these
			// mounts later would happen somewhere else.
			flags |= plan.MkNoLinks
		}
		var fs int
		switch {
		case m.ownDev():
			fs = c.makeDev(m, attr)
		case m.fstype == "cgroup" && len(c.opts.Hierarchies) != 0:
			fs = c.cgroupTree(attr)
		case m.fstype == "cgroup":
			fs = c.newFS("cgroup2", "cgroup", attr, m.data)
		default:
			fs = c.newFS(m.fstype, m.source, attr, m.data)
		}
		c.attach(fs, c.mkPath(c.root, m.dest, flags, 0))
		switch {
		case m.dest == "/proc":
			c.proc1 = fs
		case m.fstype == "devpts" && m.dest == "/dev/pts":
			c.pts = fs
		case m.fstype == "cgroup" && len(c.opts.Hierarchies) != 0:
			c.fillCgroupTree(fs, attr)
		}
		if m.propagation != 0 {
			c.setAttr(fs, m.propagationRecursive, c.mountAttr(0, m.propagation))
		}
	}
	return nil
}

// cgroupTree is the directory of v1 hierarchies, read-only only once it is filled.
func (c *compiler) cgroupTree(attr uint64) int {
	return c.newFS("tmpfs", "tmpfs", attr&^unix.MOUNT_ATTR_RDONLY, []string{"mode=755"})
}

func (c *compiler) fillCgroupTree(tree int, attr uint64) {
	what := c.what
	for i, h := range c.opts.Hierarchies {
		c.say("%s: hierarchy %s", what, h.Dir)
		fs := c.cgroups[i]
		if fs != 0 {
			c.setAttr(fs, false, c.mountAttr(attr&^unix.MOUNT_ATTR__ATIME, unix.MS_PRIVATE))
		} else {
			options := h.Controllers
			if h.Name != "" {
				options = []string{"none", "name=" + h.Name}
			}
			fs = c.newFS("cgroup", "cgroup", attr, options)
		}
		c.do(unix.SYS_MKDIRAT, plan.S(tree), c.Str(h.Dir), plan.I(dirMode))
		c.attachAt(fs, plan.S(tree), h.Dir)
		for _, ctl := range h.Controllers {
			if ctl != h.Dir {
				c.do(unix.SYS_SYMLINKAT, c.Str(h.Dir), plan.S(tree), c.Str(ctl))
			}
		}
	}
	c.what = what
	if attr&unix.MOUNT_ATTR_RDONLY != 0 {
		c.setAttr(tree, false, c.mountAttr(unix.MOUNT_ATTR_RDONLY, 0))
	}
}

// hidePaths covers what the spec wants masked or read-only.
func (c *compiler) hidePaths() error {
	l := c.spec.Linux
	if len(l.MaskedPaths) != 0 {
		for _, p := range l.MaskedPaths {
			c.say("mask %s", p)
			c.do(plan.Mask, plan.S(c.root), c.Str(path.Clean("/"+p)), plan.S(c.empty), plan.S(c.null))
		}
	}
	if len(l.ReadonlyPaths) != 0 {
		attr := c.mountAttr(unix.MOUNT_ATTR_RDONLY, 0)
		for _, p := range l.ReadonlyPaths {
			c.say("make %s read-only", p)
			c.do(plan.ReadOnly, plan.S(c.root), c.Str(path.Clean("/"+p)), attr)
		}
	}
	return nil
}

// finishRoot makes the container's root the root of the mount namespace.
func (c *compiler) finishRoot() error {
	if cwd := path.Clean(c.proc.Cwd); cwd != "/" {
		c.say("make working directory %s", cwd)
		c.mkPath(c.root, cwd, 0, 0)
	}
	if c.spec.Root.Readonly {
		c.say("make the root filesystem read-only")
		c.setAttr(c.root, false, c.mountAttr(unix.MOUNT_ATTR_RDONLY, 0))
	}
	c.pivot()
	if p := c.spec.Linux.RootfsPropagation; p != "" {
		c.say("set propagation of the root filesystem to %s", p)
		c.setAttr(c.root, false, c.mountAttr(0, propagations[strings.TrimPrefix(p, "r")]))
	}
	return nil
}

func (c *compiler) pivot() {
	c.say("make the root filesystem the root")
	dot := c.Str(".")
	c.do(unix.SYS_FCHDIR, plan.S(c.root))
	c.do(unix.SYS_PIVOT_ROOT, dot, dot)
	c.say("detach the host's filesystems")
	c.do(unix.SYS_UMOUNT2, dot, plan.I(unix.MNT_DETACH))
	c.do(unix.SYS_CHDIR, c.Str("/"))
	c.do(plan.CheckRoot, plan.S(c.root))
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
