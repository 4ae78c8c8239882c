package launch

import (
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Unsupported names the fields of a spec that are set and not implemented.
func Unsupported(s *specs.Spec) []string {
	var fields []string
	add := func(set bool, name string) {
		if set {
			fields = append(fields, name)
		}
	}
	add(s.Hooks != nil, "hooks")
	add(s.Solaris != nil, "solaris")
	add(s.Windows != nil, "windows")
	add(s.VM != nil, "vm")
	add(s.ZOS != nil, "zos")
	add(s.FreeBSD != nil, "freebsd")
	if p := s.Process; p != nil {
		fields = append(fields, unsupportedProcess(p)...)
	}
	l := s.Linux
	if l == nil {
		return fields
	}
	add(len(l.NetDevices) != 0, "linux.netDevices")
	add(l.MountLabel != "", "linux.mountLabel")
	add(l.IntelRdt != nil, "linux.intelRdt")
	add(l.MemoryPolicy != nil, "linux.memoryPolicy")
	add(len(l.TimeOffsets) != 0, "linux.timeOffsets")
	add(l.Personality != nil && len(l.Personality.Flags) != 0, "linux.personality.flags")
	for _, n := range l.Namespaces {
		switch {
		case n.Type == specs.TimeNamespace:
			fields = append(fields, "linux.namespaces: time")
		case n.Type == specs.MountNamespace && n.Path != "":
			fields = append(fields, "linux.namespaces: mount with a path")
		case n.Type == specs.UserNamespace && n.Path == "":
			fields = append(fields, "linux.namespaces: user without a path")
		}
	}
	return fields
}

func unsupportedProcess(p *specs.Process) []string {
	var fields []string
	if p.SelinuxLabel != "" {
		fields = append(fields, "process.selinuxLabel")
	}
	if p.ExecCPUAffinity != nil {
		fields = append(fields, "process.execCPUAffinity")
	}
	if p.CommandLine != "" {
		fields = append(fields, "process.commandLine")
	}
	if p.User.Username != "" {
		fields = append(fields, "process.user.username")
	}
	return fields
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdef.ErrInvalid)...)
}

func checkSpec(s *specs.Spec, o Options) error {
	switch {
	case s.Process == nil:
		return invalid("process is missing")
	case s.Linux == nil:
		return invalid("linux is missing")
	case s.Root == nil:
		return invalid("root is missing")
	case find(s.Linux.Namespaces, specs.MountNamespace) == nil:
		return invalid("linux.namespaces: a mount namespace is missing")
	case (s.Linux.Seccomp != nil) != (len(o.Seccomp) != 0):
		return invalid("linux.seccomp and the compiled filter do not agree")
	}
	if u := Unsupported(s); len(u) != 0 {
		return invalid("not supported: %s", strings.Join(u, ", "))
	}
	if err := checkLinux(s); err != nil {
		return err
	}
	return checkProcess(s.Process)
}

func checkLinux(s *specs.Spec) error {
	l := s.Linux
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, n := range l.Namespaces {
		if seen[n.Type] {
			return invalid("linux.namespaces: %s twice", n.Type)
		}
		seen[n.Type] = true
	}
	if p := l.RootfsPropagation; p != "" && propagations[strings.TrimPrefix(p, "r")] == 0 {
		return invalid("linux.rootfsPropagation: %q", p)
	}
	if p := l.Personality; p != nil && p.Domain != specs.PerLinux && p.Domain != specs.PerLinux32 {
		return invalid("linux.personality: domain %q", p.Domain)
	}
	if hasUserNamespace(s) && (len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0) {
		return invalid("linux.uidMappings: missing for the user namespace")
	}
	for k := range l.Sysctl {
		if err := checkSysctl(k, seen); err != nil {
			return err
		}
	}
	return nil
}

// checkSysctl lets through what a namespace of the container's confines. Whether
// that namespace is the pod's is for the caller to know.
func checkSysctl(key string, has map[specs.LinuxNamespaceType]bool) error {
	k := strings.ReplaceAll(sysctlPath(key), "//", "/")
	if path.Clean(k) != k || strings.HasPrefix(k, "/") || strings.HasPrefix(k, "..") || strings.ContainsAny(k, "\x00") {
		return invalid("linux.sysctl: %q is no name", key)
	}
	ipc := strings.HasPrefix(k, "fs/mqueue/")
	switch k {
	case "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax",
		"kernel/shmmni", "kernel/shm_rmid_forced":
		ipc = true
	case "kernel/hostname", "kernel/domainname":
		if has[specs.UTSNamespace] {
			return nil
		}
	}
	switch {
	case ipc && has[specs.IPCNamespace]:
	case strings.HasPrefix(k, "net/") && has[specs.NetworkNamespace]:
	case strings.HasPrefix(k, "user/") && has[specs.UserNamespace]:
	default:
		return invalid("linux.sysctl: %s is not confined to a namespace of the container", key)
	}
	return nil
}

func checkExec(s *specs.Spec, p *specs.Process, o ExecOptions) error {
	if s.Linux == nil || p == nil {
		return invalid("linux or process is missing")
	}
	if (s.Linux.Seccomp != nil) != (len(o.Seccomp) != 0) {
		return invalid("linux.seccomp and the compiled filter do not agree")
	}
	if u := unsupportedProcess(p); len(u) != 0 {
		return invalid("not supported: %s", strings.Join(u, ", "))
	}
	return checkProcess(p)
}

func checkProcess(p *specs.Process) error {
	switch {
	case len(p.Args) == 0 || p.Args[0] == "":
		return invalid("process.args is empty")
	case !path.IsAbs(p.Cwd):
		return invalid("process.cwd: %q is not absolute", p.Cwd)
	case len(p.User.AdditionalGids) > 65536:
		return invalid("process.user.additionalGids: more than 65536")
	}
	for _, s := range append(append([]string{p.Cwd}, p.Args...), p.Env...) {
		if strings.Contains(s, "\x00") {
			return invalid("process: a string holds a NUL byte")
		}
	}
	if a := p.OOMScoreAdj; a != nil && (*a < -1000 || *a > 1000) {
		return invalid("process.oomScoreAdj: %d", *a)
	}
	return checkScheduling(p)
}

func checkScheduling(p *specs.Process) error {
	for _, r := range p.Rlimits {
		if _, ok := rlimits[r.Type]; !ok {
			return invalid("process.rlimits: unknown limit %q", r.Type)
		}
		if r.Soft > r.Hard {
			return invalid("process.rlimits: %s: soft limit above the hard one", r.Type)
		}
	}
	if q := p.IOPriority; q != nil && (ioClasses[q.Class] == 0 || q.Priority < 0 || q.Priority > 7) {
		return invalid("process.ioPriority: %s %d", q.Class, q.Priority)
	}
	if q := p.Scheduler; q != nil {
		if _, ok := schedPolicies[q.Policy]; !ok {
			return invalid("process.scheduler: policy %q", q.Policy)
		}
		for _, f := range q.Flags {
			if schedFlags[f] == 0 {
				return invalid("process.scheduler: flag %q", f)
			}
		}
	}
	return nil
}
