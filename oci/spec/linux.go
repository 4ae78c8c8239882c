package spec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// What reveals or changes the host through procfs and sysfs, which are not
// namespaced there.
var (
	defaultMasked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
		"/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

func buildLinux(c Container) (*specs.Linux, error) {
	namespaces, err := buildNamespaces(c.Namespaces)
	if err != nil {
		return nil, err
	}
	resources, err := buildResources(c)
	if err != nil {
		return nil, err
	}
	nodes, err := buildDevices(c)
	if err != nil {
		return nil, err
	}
	if err := checkSysctls(c); err != nil {
		return nil, err
	}
	l := &specs.Linux{
		UIDMappings: idMappings(c.Namespaces.UIDs),
		GIDMappings: idMappings(c.Namespaces.GIDs),
		Sysctl:      maps.Clone(c.Sysctls),
		Resources:   resources,
		CgroupsPath: c.Cgroup.Path,
		Namespaces:  namespaces,
		Devices:     nodes,
		MountLabel:  c.MountLabel,
	}
	if c.Privileged {
		return l, nil
	}
	l.Seccomp = c.Seccomp
	l.MaskedPaths, l.ReadonlyPaths = c.Paths.Masked, c.Paths.Readonly
	if c.Paths.Default {
		l.MaskedPaths, l.ReadonlyPaths = defaultMasked, defaultReadonly
	}
	if l.MaskedPaths, err = cleanPaths("masked_paths", l.MaskedPaths); err != nil {
		return nil, err
	}
	l.ReadonlyPaths, err = cleanPaths("readonly_paths", l.ReadonlyPaths)
	return l, err
}

func cleanPaths(field string, paths []string) ([]string, error) {
	var out []string
	for i, p := range paths {
		if !strings.HasPrefix(p, "/") || path.Clean(p) == "/" || strings.ContainsRune(p, 0) {
			return nil, fmt.Errorf("%s[%d]: %.80q is not an absolute path below the root: %w", field, i, p, errdef.ErrInvalid)
		}
		if p = path.Clean(p); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out, nil
}

func buildNamespaces(n Namespaces) ([]specs.LinuxNamespace, error) {
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	for _, k := range []struct {
		kind specs.LinuxNamespaceType
		n    Namespace
	}{
		{specs.UserNamespace, n.User}, {specs.PIDNamespace, n.PID}, {specs.IPCNamespace, n.IPC},
		{specs.NetworkNamespace, n.Network}, {specs.UTSNamespace, n.UTS}, {specs.CgroupNamespace, n.Cgroup},
	} {
		switch {
		case k.n.Mode == New && k.n.Path == "":
			out = append(out, specs.LinuxNamespace{Type: k.kind})
		case k.n.Mode == Join && strings.HasPrefix(k.n.Path, "/"):
			out = append(out, specs.LinuxNamespace{Type: k.kind, Path: k.n.Path})
		case k.n.Mode == Host && k.n.Path == "":
		default:
			return nil, fmt.Errorf("namespace %s: mode %d with path %.80q: %w", k.kind, k.n.Mode, k.n.Path, errdef.ErrInvalid)
		}
	}
	if (len(n.UIDs) > 0 || len(n.GIDs) > 0) && n.User.Mode == Host {
		return nil, fmt.Errorf("id mappings without a user namespace: %w", errdef.ErrInvalid)
	}
	if n.User.Mode == New && (len(n.UIDs) == 0 || len(n.GIDs) == 0) {
		return nil, fmt.Errorf("user namespace without id mappings: %w", errdef.ErrInvalid)
	}
	return out, nil
}

func idMappings(maps []IDMap) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range maps {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.Container, HostID: m.Host, Size: m.Length})
	}
	return out
}

// namespacedSysctls are those below kernel/ and fs/ that belong to the IPC namespace.
var namespacedSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/msg_next_id", "kernel/sem",
	"kernel/sem_next_id", "kernel/shmall", "kernel/shmmax", "kernel/shmmni",
	"kernel/shm_next_id", "kernel/shm_rmid_forced", "kernel/auto_msgmni",
}

// checkSysctls lets only settings of the container's own namespaces pass: writing
// any other one would change the node.
func checkSysctls(c Container) error {
	for name, value := range c.Sysctls {
		p := sysctlPath(name)
		var own Mode
		switch {
		case strings.HasPrefix(p, "net/"):
			own = c.Namespaces.Network.Mode
		case strings.HasPrefix(p, "fs/mqueue/"), slices.Contains(namespacedSysctls, p):
			own = c.Namespaces.IPC.Mode
		case p == "kernel/domainname":
			own = c.Namespaces.UTS.Mode
		default:
			return fmt.Errorf("sysctl %.80q belongs to no namespace of a container: %w", name, errdef.ErrInvalid)
		}
		if own == Host {
			return fmt.Errorf("sysctl %.80q would change the node's namespace: %w", name, errdef.ErrInvalid)
		}
		for part := range strings.SplitSeq(p, "/") {
			if part == "" || part == "." || part == ".." || strings.ContainsRune(part, 0) {
				return fmt.Errorf("sysctl %.80q: not a name: %w", name, errdef.ErrInvalid)
			}
		}
		if strings.ContainsAny(value, "\x00\n") {
			return fmt.Errorf("sysctl %.80q: the value has a NUL or a line break: %w", name, errdef.ErrInvalid)
		}
	}
	return nil
}

// sysctlPath turns a name into a path below /proc/sys as sysctl(8) does: whichever
// of "." and "/" comes first separates, and the other one is part of a name.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}
