package launch

import (
	"encoding/binary"
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
)

// compiler holds what the parts of one compilation share.
type compiler struct {
	*builder
	spec *specs.Spec
	proc *specs.Process
	in   entry
	opts Options

	mounts    []parsedMount
	root      int   // slot of the container's root mount
	hostProc  int   // slot of the host's procfs, 0 if not opened
	proc1     int   // slot of the container's procfs, 0 if it has none
	dev       int   // slot of the container's own /dev, 0 if it has none
	pts       int   // slot of its devpts
	empty     int   // slot of an empty read-only directory, for masks
	null      int   // slot of the host's null device, for masks
	cgroups   []int // slots of clones of the container's v1 cgroups, 0 for none
	cwdResult int
}

// entry is what all launches begin with.
type entry struct {
	tasks     []string
	cgroupDir string
	gate      bool
	terminal  bool
	oom       *int
	// spaces are the namespaces to make or join; uids and gids the map of a
	// joined user namespace, by which stdio is given to the user.
	spaces     []specs.LinuxNamespace
	uids, gids []specs.LinuxIDMapping
	user       *specs.User
}

// Compile makes the launch of a container's first process.
func Compile(s *specs.Spec, o Options) (*Launch, error) {
	if err := checkSpec(s, o); err != nil {
		return nil, fmt.Errorf("compile launch: %w", err)
	}
	c := &compiler{spec: s, proc: s.Process, opts: o}
	c.in = entry{
		tasks: o.CgroupTasks, cgroupDir: o.CgroupDir, gate: o.Gate, terminal: s.Process.Terminal,
		oom: s.Process.OOMScoreAdj, spaces: s.Linux.Namespaces, user: &s.Process.User,
		uids: s.Linux.UIDMappings, gids: s.Linux.GIDMappings,
	}
	var err error
	if c.mounts, err = parseMounts(s); err != nil {
		return nil, fmt.Errorf("compile launch: %w", err)
	}
	needs := append(c.in.needs(), Need{Kind: Rootfs})
	if o.BaseMounts {
		needs = append(needs, Need{Kind: BaseMounts})
	}
	c.builder = newBuilder(append(needs, mountNeeds(s, c.mounts)...))
	if n := len(c.l.Needs); n > plan.MaxInputs {
		return nil, fmt.Errorf("compile launch: %d descriptors needed, %d possible: %w", n, plan.MaxInputs, errdef.ErrInvalid)
	}
	for _, step := range []func() error{
		c.enter, c.attachRoot, c.mountAll, c.devices, c.console, c.sysctls, c.hidePaths, c.finishRoot, c.names, c.process,
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("compile launch: %w", err)
		}
	}
	return c.l, nil
}

// CompileExec makes the launch of a further process p in the running container
// that s describes.
func CompileExec(s *specs.Spec, p *specs.Process, o ExecOptions) (*Launch, error) {
	if err := checkExec(s, p, o); err != nil {
		return nil, fmt.Errorf("compile exec: %w", err)
	}
	c := &compiler{spec: s, proc: p, opts: Options{Seccomp: o.Seccomp, SeccompFlags: o.SeccompFlags}}
	c.in = entry{
		tasks: o.CgroupTasks, cgroupDir: o.CgroupDir, gate: o.Gate, terminal: p.Terminal, oom: p.OOMScoreAdj,
		user: &p.User, uids: s.Linux.UIDMappings, gids: s.Linux.GIDMappings,
	}
	c.builder = newBuilder(append(c.in.needs(), Need{Kind: Process}))
	for _, step := range []func() error{c.enterContainer, c.console, c.process} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("compile exec: %w", err)
		}
	}
	return c.l, nil
}

// needs are the descriptors that every launch wants.
func (e entry) needs() []Need {
	var ns []Need
	if e.gate {
		ns = append(ns, Need{Kind: Gate})
	}
	if e.terminal {
		ns = append(ns, Need{Kind: PTYSocket})
	} else if e.user != nil {
		ns = append(ns, Need{Kind: Stdin}, Need{Kind: Stdout}, Need{Kind: Stderr})
	}
	for _, t := range e.tasks {
		ns = append(ns, Need{Kind: CgroupTasks, Path: t})
	}
	if e.cgroupDir != "" {
		ns = append(ns, Need{Kind: CgroupDir, Path: e.cgroupDir})
	}
	for _, n := range namespaceFlags {
		if s := find(e.spaces, n.kind); s != nil && s.Path != "" {
			ns = append(ns, Need{Kind: Namespace, Path: s.Path, Type: s.Type})
		}
	}
	return ns
}

func find(ns []specs.LinuxNamespace, kind specs.LinuxNamespaceType) *specs.LinuxNamespace {
	for i := range ns {
		if ns[i].Type == kind {
			return &ns[i]
		}
	}
	return nil
}

// begin is what every launch does before it joins anything.
func (c *compiler) begin() {
	c.l.Terminal = c.in.terminal
	c.say("close what the container must not see")
	c.do(plan.Prelude)
	if c.in.cgroupDir != "" {
		c.CgroupInput = c.need(CgroupDir, 0)
	}
	if c.in.gate {
		c.say("wait for the go-ahead")
		c.do(plan.Wait, plan.S(c.need(Gate, 0)))
	}
	c.stdio()
	for i, t := range c.in.tasks {
		// A 0 into tasks moves the writer alone and takes no global lock.
		c.say("join cgroup %s", path.Dir(t))
		c.do(unix.SYS_WRITE, plan.S(c.need(CgroupTasks, i)), c.Str("0"), plan.I(1))
	}
	if c.in.oom != nil {
		c.say("set oom_score_adj to %d", *c.in.oom)
		v := fmt.Sprint(*c.in.oom)
		fd := c.get(unix.SYS_OPENAT, plan.S(c.openHostProc()), c.Str("self/oom_score_adj"), plan.I(unix.O_WRONLY|cloexec))
		c.do(unix.SYS_WRITE, plan.S(fd), c.Str(v), plan.I(len(v)))
		// Lowering needs CAP_SYS_RESOURCE, which a node may lack: then it stays.
		c.tolerate(unix.EACCES, unix.EPERM)
	}
}

// stdio fills descriptors 0 to 2 first, so that nothing opened later lands there.
func (c *compiler) stdio() {
	c.say("set up standard input and output")
	if c.in.user == nil {
		return
	}
	for fd := range 3 {
		if c.in.terminal {
			// A place holder until the terminal exists.
			c.do(unix.SYS_DUP3, plan.S(c.Status()), plan.I(fd), plan.I(cloexec))
			continue
		}
		slot := c.need(Stdin+NeedKind(fd), 0)
		uid, gid := hostID(c.in.uids, c.in.user.UID), hostID(c.in.gids, c.in.user.GID)
		// A program that is not root re-opens /dev/stdout.
		c.do(plan.ChownPipe, plan.S(slot), plan.I(uid), plan.I(gid))
		c.tolerate(unix.EPERM, unix.EINVAL)
		c.do(unix.SYS_DUP3, plan.S(slot), plan.I(fd), plan.I(0))
	}
}

// hostID maps an id of the container; ids without a map stay.
func hostID(m []specs.LinuxIDMapping, id uint32) uint32 {
	for _, r := range m {
		if id >= r.ContainerID && id-r.ContainerID < r.Size {
			return r.HostID + (id - r.ContainerID)
		}
	}
	return id
}

func (c *compiler) openHostProc() int {
	if c.hostProc != 0 {
		return c.hostProc
	}
	what := c.what
	c.say("open the host's /proc")
	c.hostProc = c.get(unix.SYS_OPENAT, cwdFD, c.Str("/proc"), plan.I(pathDir))
	c.do(plan.CheckFD, plan.S(c.hostProc), plan.I(plan.CheckFS), plan.I(unix.PROC_SUPER_MAGIC))
	c.what = what
	return c.hostProc
}

// enter joins and makes the namespaces of a first process.
func (c *compiler) enter() error {
	var made, later uint64
	for _, n := range namespaceFlags {
		s := find(c.in.spaces, n.kind)
		switch {
		case s == nil:
		case s.Path != "" && (n.kind == specs.PIDNamespace || n.kind == specs.UserNamespace):
			c.l.TwoStage = true
		case s.Path == "" && n.kind != specs.CgroupNamespace:
			made |= uint64(n.flag)
		}
	}
	made |= unix.CLONE_NEWNS
	if c.l.TwoStage {
		made, later = 0, made
	}
	c.CloneFlags = made
	c.begin()
	if c.needsHostProc() {
		c.openHostProc()
	}
	c.fewMounts()
	c.join()
	if c.l.TwoStage {
		c.say("clone the container's process with its own namespaces")
		c.do(plan.Clone, plan.I(later))
		c.undumpable()
	}
	c.newSession()
	if s := find(c.in.spaces, specs.CgroupNamespace); s != nil && s.Path == "" {
		c.say("make cgroup namespace")
		c.do(unix.SYS_UNSHARE, plan.I(unix.CLONE_NEWCGROUP))
	}
	if s := find(c.in.spaces, specs.NetworkNamespace); s != nil && s.Path == "" {
		c.loopback()
	}
	return nil
}

func (c *compiler) needsHostProc() bool {
	return c.proc != nil && (c.proc.ApparmorProfile != "" || c.spec != nil && len(c.spec.Linux.Sysctl) != 0)
}

// fewMounts makes the mount namespace out of one with few mounts, if there is one to enter;
// a second stage does so when it is cloned.
func (c *compiler) fewMounts() {
	if !c.opts.BaseMounts {
		return
	}
	c.say("enter the mount namespace with few mounts")
	c.do(unix.SYS_SETNS, plan.S(c.need(BaseMounts, 0)), plan.I(unix.CLONE_NEWNS))
	if c.CloneFlags&unix.CLONE_NEWNS != 0 {
		c.CloneFlags &^= unix.CLONE_NEWNS
		c.say("make mount namespace")
		c.do(unix.SYS_UNSHARE, plan.I(unix.CLONE_NEWNS))
	}
}

// join enters the pinned namespaces, the user namespace last.
func (c *compiler) join() {
	n := 0
	for _, f := range namespaceFlags {
		s := find(c.in.spaces, f.kind)
		if s == nil || s.Path == "" {
			continue
		}
		c.say("join %s namespace %s", f.kind, s.Path)
		c.do(unix.SYS_SETNS, plan.S(c.need(Namespace, n)), plan.I(f.flag))
		n++
		if f.kind == specs.UserNamespace {
			c.becomeRoot()
		}
	}
}

// becomeRoot takes the ids of root in a joined user namespace; the ids from before
// have no name there, and files made with them would be refused.
func (c *compiler) becomeRoot() {
	c.say("become root of the user namespace")
	c.do(unix.SYS_SETGROUPS, plan.I(0), plan.I(0))
	c.do(unix.SYS_SETRESGID, plan.I(0), plan.I(0), plan.I(0))
	c.do(unix.SYS_SETRESUID, plan.I(0), plan.I(0), plan.I(0))
	c.undumpable()
}

// newSession leaves the session and the key ring of the monitor.
func (c *compiler) newSession() {
	c.say("start a session")
	c.do(unix.SYS_SETSID)
	c.say("join a session keyring of its own")
	c.do(unix.SYS_KEYCTL, plan.I(unix.KEYCTL_JOIN_SESSION_KEYRING), plan.I(0))
	// The kernel may be built without keys, or a sandbox around us forbids them.
	c.tolerate(unix.ENOSYS, unix.EPERM)
}

// loopback brings up lo of a new network namespace.
func (c *compiler) loopback() {
	c.say("bring up the loopback interface")
	req := make([]byte, 40) // struct ifreq
	copy(req, "lo")
	binary.NativeEndian.PutUint16(req[16:], unix.IFF_UP|unix.IFF_RUNNING)
	s := c.get(unix.SYS_SOCKET, plan.I(unix.AF_INET), plan.I(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), plan.I(0))
	c.do(unix.SYS_IOCTL, plan.S(s), plan.I(unix.SIOCSIFFLAGS), c.Bytes(req))
}

// enterContainer joins all namespaces of a running container at once.
func (c *compiler) enterContainer() error {
	c.begin()
	if c.needsHostProc() {
		c.openHostProc()
	}
	flags := unix.CLONE_NEWNS
	for _, n := range namespaceFlags {
		if find(c.spec.Linux.Namespaces, n.kind) != nil {
			flags |= n.flag
		}
	}
	c.say("join the container's namespaces")
	c.do(unix.SYS_SETNS, plan.S(c.need(Process, 0)), plan.I(flags))
	if flags&unix.CLONE_NEWUSER != 0 {
		c.becomeRoot()
	}
	if flags&unix.CLONE_NEWPID != 0 {
		c.l.TwoStage = true
		c.undumpable()
		c.say("clone the process into the container's pid namespace")
		c.do(plan.Clone, plan.I(0))
		c.undumpable()
	}
	c.newSession()
	return nil
}

// names sets host and domain name, in a namespace of its own only: a joined one
// belongs to the pod, which set them.
func (c *compiler) names() error {
	s := find(c.in.spaces, specs.UTSNamespace)
	if s == nil || s.Path != "" {
		return nil
	}
	if h := c.spec.Hostname; h != "" {
		c.say("set hostname %s", h)
		c.do(unix.SYS_SETHOSTNAME, c.Str(h), plan.I(len(h)))
	}
	if d := c.spec.Domainname; d != "" {
		c.say("set domain name %s", d)
		c.do(unix.SYS_SETDOMAINNAME, c.Str(d), plan.I(len(d)))
	}
	return nil
}

// sysctls writes through a procfs that was checked, never through a path of the
// image. The values are data: nothing in them is parsed.
func (c *compiler) sysctls() error {
	how := c.openHow(unix.O_WRONLY|cloexec, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS)
	for _, k := range sortedKeys(c.spec.Linux.Sysctl) {
		v := c.spec.Linux.Sysctl[k]
		c.say("set sysctl %s", k)
		dir := c.proc1
		if dir == 0 {
			dir = c.openHostProc()
		}
		fd := c.get(unix.SYS_OPENAT2, plan.S(dir), c.Str("sys/"+sysctlPath(k)), how, plan.I(24))
		c.do(plan.CheckFD, plan.S(fd), plan.I(plan.CheckFS), plan.I(unix.PROC_SUPER_MAGIC))
		c.do(unix.SYS_WRITE, plan.S(fd), c.Str(v), plan.I(len(v)))
	}
	return nil
}

// sysctlPath turns dots into slashes as sysctl(8) does: with a slash first in the
// name, dots are part of it, as in net/ipv4/conf/eth0.100/forwarding.
func sysctlPath(k string) string {
	i := strings.IndexAny(k, "./")
	if i < 0 || k[i] == '/' {
		return k
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, k)
}
