package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
)

// abilities are what a program says that it can do.
type abilities struct {
	// features is nil for programs without that command, which came with
	// runtime-spec 1.1: nothing beyond 1.0 is then asked of them.
	features *features.Features
	spec     string // the newest version of the runtime-spec that it knows
	// sub and perController: exec takes a sub-cgroup, in v1 for one controller.
	sub, perController bool
}

// probe asks the program. Only a program that cannot be run is an error.
func (c *CLI) probe(ctx context.Context) (a abilities, err error) {
	version, err := c.runWith(ctx, "", []string{c.Program, "--version"}, "--version")
	if err != nil {
		return a, err
	}
	for line := range strings.Lines(string(version)) {
		if v, ok := strings.CutPrefix(line, "spec: "); ok {
			a.spec = strings.TrimSpace(v)
		}
	}
	if out, err := c.runWith(ctx, "", []string{c.Program, "features"}, "features"); err == nil {
		var f features.Features
		if err := json.Unmarshal(out, &f); err != nil {
			return a, fmt.Errorf("read its features: %w", err)
		}
		a.features = &f
		if f.OCIVersionMax != "" {
			a.spec = f.OCIVersionMax
		}
	} else if ctx.Err() != nil {
		return a, err
	}
	help, err := c.runWith(ctx, "", []string{c.Program, "exec", "--help"}, "exec --help")
	if err != nil && ctx.Err() != nil {
		return a, err
	}
	a.sub = strings.Contains(string(help), "--cgroup")
	a.perController = strings.Contains(string(help), "<controller>:")
	return a, nil
}

// subCgroup is how exec is told of the session's cgroup; "" when it cannot be. In v1
// only the freezer's hierarchy has one, if the program made the container's there.
func (a abilities) subCgroup(g *cgroup.Group) string {
	name := g.Path()
	base := string(name)[strings.LastIndexByte(string(name), '/')+1:]
	switch {
	case len(g.TasksPaths()) == 0 && a.sub:
		return base
	case a.perController && slices.ContainsFunc(g.TasksPaths(), func(tasks string) bool { return inSession(tasks, g) }):
		return "freezer:" + base
	}
	return ""
}

func isOn(on *bool) bool { return on != nil && *on }

func (a abilities) userNamespaces() bool {
	return a.idMap() && slices.Contains(a.features.Linux.Namespaces, string(specs.UserNamespace))
}

func (a abilities) idMap() bool {
	f := a.features
	return f != nil && f.Linux != nil && f.Linux.MountExtensions != nil && f.Linux.MountExtensions.IDMap != nil &&
		isOn(f.Linux.MountExtensions.IDMap.Enabled)
}

func (a abilities) mountOption(o string) bool {
	return a.features != nil && slices.Contains(a.features.MountOptions, o)
}

// adapt makes the config.json: the spec with the bundle's root, in the version that the
// program knows, and limits that it can set. What it cannot do is an error.
func (c *CLI) adapt(spec *specs.Spec) (*specs.Spec, error) {
	if err := c.can.check(spec); err != nil {
		return nil, fmt.Errorf("runtime %s: %w", c.Name, err)
	}
	out := *spec
	out.Root = &specs.Root{Path: dirRootfs, Readonly: spec.Root != nil && spec.Root.Readonly}
	if spec.Process != nil {
		out.Process = c.adaptProcess(spec.Process)
	}
	if older(c.can.spec, out.Version) {
		out.Version = c.can.spec // nothing newer is left in it
	}
	return &out, nil
}

// check refuses what the program would not know and might pass over.
func (a abilities) check(spec *specs.Spec) error {
	for _, m := range spec.Mounts {
		if (len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0) && !a.idMap() {
			return fmt.Errorf("mount at %s: no idmapped mounts: %w", m.Destination, errdef.ErrInvalid)
		}
		if slices.Contains(m.Options, "rro") && !a.mountOption("rro") {
			return errdef.WithPrefix(errdef.RROUnsupported, fmt.Errorf("mount at %s: no recursive read-only: %w", m.Destination, errdef.ErrInvalid))
		}
	}
	l := spec.Linux
	if l == nil {
		return nil
	}
	if (len(l.UIDMappings) > 0 || len(l.GIDMappings) > 0) && !a.userNamespaces() {
		return fmt.Errorf("no user namespaces with idmapped mounts: %w", errdef.ErrInvalid)
	}
	return a.checkSecurity(spec)
}

// checkSecurity looks at profiles, as far as the program says anything about them.
func (a abilities) checkSecurity(spec *specs.Spec) error {
	if a.features == nil || a.features.Linux == nil {
		return nil
	}
	f := a.features.Linux
	if spec.Linux.Seccomp != nil && (f.Seccomp == nil || !isOn(f.Seccomp.Enabled)) {
		return fmt.Errorf("built without seccomp: %w", errdef.ErrInvalid)
	}
	if p := spec.Process; p != nil && p.ApparmorProfile != "" && (f.Apparmor == nil || !isOn(f.Apparmor.Enabled)) {
		return fmt.Errorf("built without AppArmor: %w", errdef.ErrInvalid)
	}
	if p := spec.Process; p != nil && p.SelinuxLabel != "" && (f.Selinux == nil || !isOn(f.Selinux.Enabled)) {
		return fmt.Errorf("built without SELinux: %w", errdef.ErrInvalid)
	}
	return nil
}

// older compares versions like "1.0.2"; an unknown one is not older.
func older(a, b string) bool {
	x, okA := numbers(a)
	y, okB := numbers(b)
	return okA && okB && slices.Compare(x, y) < 0
}

func numbers(version string) (out []int, ok bool) {
	version, _, _ = strings.Cut(version, "-")
	for part := range strings.SplitSeq(version, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil, false
		}
		out = append(out, n)
	}
	return out, true
}

// adaptProcess asks for no more than this process may give: without CAP_SYS_RESOURCE
// the kernel refuses a lower oom_score_adj and a higher hard limit, and the program
// would fail as a whole.
func (c *CLI) adaptProcess(p *specs.Process) *specs.Process {
	out := *p
	if c.resource {
		return &out
	}
	if p.OOMScoreAdj != nil {
		adj := max(*p.OOMScoreAdj, ownOOMScoreAdj())
		out.OOMScoreAdj = &adj
	}
	out.Rlimits = slices.Clone(p.Rlimits)
	for i := range out.Rlimits {
		r := &out.Rlimits[i]
		var own unix.Rlimit
		if n, ok := rlimitNumbers[r.Type]; ok && unix.Getrlimit(n, &own) == nil {
			r.Hard = min(r.Hard, own.Max)
			r.Soft = min(r.Soft, r.Hard)
		}
	}
	return &out
}

var rlimitNumbers = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// ownOOMScoreAdj is what the program inherits, 0 if it cannot be read.
func ownOOMScoreAdj() int {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return n
}

// mayRaiseLimits tells whether this process has CAP_SYS_RESOURCE.
func mayRaiseLimits() (bool, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false, fmt.Errorf("read own capabilities: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			if err != nil {
				return false, fmt.Errorf("read own capabilities: %w", err)
			}
			return mask>>unix.CAP_SYS_RESOURCE&1 == 1, nil
		}
	}
	return false, errors.New("read own capabilities: no CapEff in /proc/self/status")
}
