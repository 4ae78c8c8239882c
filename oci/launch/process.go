package launch

import (
	"encoding/binary"
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process is the end of every launch: limits, rights, identity, exec.
//
// Without no_new_privs a seccomp filter needs CAP_SYS_ADMIN and is installed
// before the rights go; the filter must then allow what follows. With it the
// filter comes last and need not.
func (c *compiler) process() error {
	if err := c.limits(); err != nil {
		return err
	}
	if a := c.proc.ApparmorProfile; a != "" {
		c.apparmor(a)
	}
	c.workDir()
	c.say("close what was opened on the way")
	c.do(unix.SYS_CLOSE_RANGE, plan.I(3), plan.I(uint32(1<<32-1)), plan.I(unix.CLOSE_RANGE_CLOEXEC))
	if err := c.rights(); err != nil {
		return err
	}
	c.say("enter working directory %s", c.proc.Cwd)
	c.do(plan.Skip, plan.S(c.cwdResult), plan.I(0), plan.I(3), plan.I(0))
	c.chdir(false)
	c.do(plan.CheckCwd)
	c.say("report that the program comes next")
	c.do(plan.Ready)
	if c.proc.NoNewPrivileges {
		c.seccomp()
	}
	c.program()
	return nil
}

func (c *compiler) program() {
	args := c.proc.Args
	c.say("exec: %q", args[0])
	candidates := []plan.Arg{}
	if strings.Contains(args[0], "/") {
		candidates = append(candidates, c.Str(args[0]))
	} else {
		c.l.searched = true
		for dir := range strings.SplitSeq(envPath(c.proc.Env), ":") {
			// A relative directory would run what lies where the process
			// happens to begin.
			if path.IsAbs(dir) {
				candidates = append(candidates, c.Str(path.Join(dir, args[0])))
			}
		}
	}
	if len(candidates) == 0 {
		candidates = append(candidates, c.Str("/nonexistent/"+args[0]))
	}
	c.do(plan.Exec, c.Words(candidates...), plan.I(len(candidates)), c.Table(args), c.Table(c.proc.Env))
}

func envPath(env []string) string {
	p := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			p = v
		}
	}
	return p
}

// limits sets what the monitor's own settings would otherwise leak into.
func (c *compiler) limits() error {
	nofile := false
	for _, r := range c.proc.Rlimits {
		n := rlimits[r.Type]
		nofile = nofile || n == unix.RLIMIT_NOFILE
		c.say("set limit %s to %d:%d", r.Type, r.Soft, r.Hard)
		c.do(unix.SYS_PRLIMIT64, plan.I(0), plan.I(n), c.Words(plan.I(r.Soft), plan.I(r.Hard)), plan.I(0))
	}
	if !nofile {
		// The Go runtime raises the soft limit of the monitor, and programs
		// that use select break on descriptors above 1023. Hard stays.
		c.say("set limit RLIMIT_NOFILE")
		lim := c.Words(plan.I(0), plan.I(0))
		c.do(unix.SYS_PRLIMIT64, plan.I(0), plan.I(unix.RLIMIT_NOFILE), plan.I(0), lim)
		c.do(plan.Poke, lim, plan.I(1024), plan.I(8))
		c.do(unix.SYS_PRLIMIT64, plan.I(0), plan.I(unix.RLIMIT_NOFILE), lim, plan.I(0))
		c.tolerate(unix.EINVAL) // a hard limit below 1024
	}
	if p := c.spec.Linux.Personality; p != nil {
		c.say("set personality %s", p.Domain)
		v := 0
		if p.Domain == specs.PerLinux32 {
			v = 0x0008
		}
		c.do(unix.SYS_PERSONALITY, plan.I(v))
	}
	if p := c.proc.IOPriority; p != nil {
		c.say("set I/O priority %s %d", p.Class, p.Priority)
		c.do(unix.SYS_IOPRIO_SET, plan.I(1), plan.I(0), plan.I(ioClasses[p.Class]<<13|p.Priority))
	}
	if s := c.proc.Scheduler; s != nil {
		c.scheduler(s)
	}
	mask := 0o022
	if u := c.proc.User.Umask; u != nil {
		mask = int(*u & 0o777)
	}
	c.say("set umask %#o", mask)
	c.do(unix.SYS_UMASK, plan.I(mask))
	return nil
}

func (c *compiler) scheduler(s *specs.Scheduler) {
	c.say("set scheduler %s", s.Policy)
	var flags uint64
	for _, f := range s.Flags {
		flags |= schedFlags[f]
	}
	b := binary.NativeEndian.AppendUint32(nil, 48) // struct sched_attr, first version
	b = binary.NativeEndian.AppendUint32(b, schedPolicies[s.Policy])
	b = binary.NativeEndian.AppendUint64(b, flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Nice))
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Priority))
	for _, v := range []uint64{s.Runtime, s.Deadline, s.Period} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	c.do(unix.SYS_SCHED_SETATTR, plan.I(0), c.Bytes(b), plan.I(0))
}

// apparmor sets the profile for the next exec. It is written through the host's
// procfs, opened before the image could put anything in its place.
func (c *compiler) apparmor(profile string) {
	c.say("set AppArmor profile %s", profile)
	proc := plan.S(c.openHostProc())
	fd := c.get(unix.SYS_OPENAT, proc, c.Str("self/attr/apparmor/exec"), plan.I(unix.O_WRONLY|cloexec))
	c.tolerate(unix.ENOENT) // before Linux 5.8
	c.do(plan.Skip, plan.S(fd), plan.I(-int(unix.ENOENT)), plan.I(1), plan.I(1))
	c.add(plan.Ins{Op: unix.SYS_OPENAT, Args: []plan.Arg{proc, c.Str("self/attr/exec"), plan.I(unix.O_WRONLY | cloexec)}, Out: fd})
	c.do(plan.CheckFD, plan.S(fd), plan.I(plan.CheckFS), plan.I(unix.PROC_SUPER_MAGIC))
	v := "exec " + profile
	c.do(unix.SYS_WRITE, plan.S(fd), c.Str(v), plan.I(len(v)))
}

// workDir enters the working directory as root, and process tries again as the
// user: either may be the one who is allowed to.
func (c *compiler) workDir() {
	c.say("enter working directory %s", c.proc.Cwd)
	c.cwdResult = c.chdir(true)
	c.do(plan.Skip, plan.S(c.cwdResult), plan.I(0), plan.I(1), plan.I(1))
	c.do(plan.CheckCwd)
}

func (c *compiler) chdir(try bool) int {
	how := c.openHow(pathDir, unix.RESOLVE_NO_MAGICLINKS)
	fd := c.get(unix.SYS_OPENAT2, cwdFD, c.Str(path.Clean(c.proc.Cwd)), how, plan.I(24))
	if try {
		c.tolerate(unix.EACCES)
	}
	r := c.get(unix.SYS_FCHDIR, plan.S(fd))
	if try {
		c.tolerate(unix.EACCES, unix.EBADF)
	}
	return r
}

// rights drops capabilities and becomes the user.
func (c *compiler) rights() error {
	caps := c.proc.Capabilities
	if caps == nil {
		caps = &specs.LinuxCapabilities{}
	}
	var sets [5]uint64
	for i, s := range []struct {
		field string
		names []string
	}{
		{"bounding", caps.Bounding}, {"effective", caps.Effective}, {"permitted", caps.Permitted},
		{"inheritable", caps.Inheritable}, {"ambient", caps.Ambient},
	} {
		var err error
		if sets[i], err = capSet(s.field, s.names); err != nil {
			return err
		}
	}
	if c.proc.NoNewPrivileges {
		c.say("set no_new_privs")
		c.prctl(unix.PR_SET_NO_NEW_PRIVS, 1)
	}
	c.dropBounding(sets[0])
	if !c.proc.NoNewPrivileges {
		c.seccomp()
	}
	c.identity(c.proc.User)
	c.say("set capabilities")
	c.do(plan.CapSet, plan.I(sets[1]), plan.I(sets[2]), plan.I(sets[3]))
	c.prctl(unix.PR_SET_KEEPCAPS, 0)
	c.prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	for i, n := range capNames {
		if sets[4]>>i&1 != 0 {
			c.say("raise ambient capability %s", n)
			c.prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, i)
			// The node may lack it; CapSet left it out then.
			c.tolerate(unix.EPERM)
		}
	}
	return nil
}

func (c *compiler) dropBounding(keep uint64) {
	c.say("drop capabilities from the bounding set")
	c.do(plan.DropBounding, plan.I(keep))
}

// identity becomes the user, keeping permitted capabilities for CapSet.
func (c *compiler) identity(u specs.User) {
	c.say("become user %d:%d", u.UID, u.GID)
	c.prctl(unix.PR_SET_KEEPCAPS, 1)
	groups := plan.I(0)
	if len(u.AdditionalGids) != 0 {
		var b []byte
		for _, g := range u.AdditionalGids {
			b = binary.NativeEndian.AppendUint32(b, g)
		}
		groups = c.Bytes(b)
	}
	c.do(unix.SYS_SETGROUPS, plan.I(len(u.AdditionalGids)), groups)
	c.do(unix.SYS_SETRESGID, plan.I(u.GID), plan.I(u.GID), plan.I(u.GID))
	c.do(unix.SYS_SETRESUID, plan.I(u.UID), plan.I(u.UID), plan.I(u.UID))
	c.undumpable()
}

func (c *compiler) seccomp() {
	if len(c.opts.Seccomp) == 0 {
		return
	}
	c.say("install seccomp filter")
	prog := c.Words(plan.I(len(c.opts.Seccomp)/8), c.Bytes(c.opts.Seccomp))
	c.do(unix.SYS_SECCOMP, plan.I(1), plan.I(c.opts.SeccompFlags), prog)
}

// CompilePodInit makes the launch of a pod's init.
func CompilePodInit(p PodInit) (*Launch, error) {
	c := &compiler{}
	c.in = entry{tasks: p.CgroupTasks, cgroupDir: p.CgroupDir, gate: p.Gate, oom: p.OOMScoreAdj}
	c.in.spaces = append([]specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}, p.Join...)
	if p.UserNamespace != "" {
		c.in.spaces = append(c.in.spaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: p.UserNamespace})
	}
	for i, n := range c.in.spaces {
		if i > 1 && n.Path == "" {
			return nil, fmt.Errorf("compile pod init: namespace %s has no path", n.Type)
		}
	}
	c.builder = newBuilder(append(c.in.needs(), Need{Kind: InitProgram}))
	c.opts.Seccomp = p.Seccomp
	if err := c.enter(); err != nil {
		return nil, err
	}
	c.say("make an empty root filesystem")
	c.do(unix.SYS_MOUNT, plan.I(0), c.Str("/"), plan.I(0), plan.I(unix.MS_REC|unix.MS_SLAVE), plan.I(0))
	const attr = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	c.root = c.newFS("tmpfs", "tmpfs", attr, []string{"size=4k", "nr_inodes=2", "mode=555"})
	c.attachAt(c.root, cwdFD, "/")
	c.pivot()
	c.say("set no_new_privs")
	c.prctl(unix.PR_SET_NO_NEW_PRIVS, 1)
	c.dropBounding(0)
	c.identity(specs.User{UID: initUser, GID: initUser})
	c.say("drop capabilities")
	c.do(plan.CapSet, plan.I(0), plan.I(0), plan.I(0))
	c.say("report that the program comes next")
	c.do(plan.Ready)
	c.seccomp()
	c.say("exec the pod's init")
	c.do(unix.SYS_EXECVEAT, plan.S(c.need(InitProgram, 0)), c.Str(""), c.Table([]string{"pod"}), c.Table(nil), plan.I(unix.AT_EMPTY_PATH))
	return c.l, nil
}

// initUser is nobody that an image knows, and inside the smallest id map.
const initUser = 65535
