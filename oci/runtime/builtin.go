package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/internal/linux/pidfd"
	"github.com/cri-runtime/cri-runtime/oci/launch"
	"github.com/cri-runtime/cri-runtime/oci/launch/podinit"
	"github.com/cri-runtime/cri-runtime/oci/launch/prepare"
	"github.com/cri-runtime/cri-runtime/oci/launch/seccomp"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
)

// A Starter runs launch plans; *monitor.Client is one.
type Starter interface {
	Start(ctx context.Context, s monitor.Start) (monitor.Process, error)
}

// Builtin is the default runtime: it compiles the spec into a plan, opens what the
// plan needs and has the monitor run it. It keeps nothing between calls but compiled
// seccomp filters and, from the first start on, one mount namespace. Methods may be
// called concurrently.
type Builtin struct {
	starter     Starter
	filters     *seccomp.Cache
	hierarchies []launch.Hierarchy
	features    Features
	base        func() *os.File // made at the first call; nil for none
}

// filterCache is how many compiled seccomp profiles are kept: a node uses few.
const filterCache = 64

// NewBuiltin makes the built-in runtime for the cgroup hierarchies of h.
func NewBuiltin(s Starter, h *cgroup.Host, f Features) *Builtin {
	b := &Builtin{starter: s, filters: seccomp.NewCache(filterCache), features: f, base: sync.OnceValue(baseMounts)}
	for _, l := range h.Legacy() {
		b.hierarchies = append(b.hierarchies, launch.Hierarchy{Dir: l.Dir, Controllers: l.Controllers, Name: l.Name, Source: l.Mount})
	}
	return b
}

// baseMounts makes the mount namespace that launches start from. It goes with the process.
func baseMounts() *os.File {
	base, err := mount.Base()
	if err != nil {
		klog.Background().Info("Containers start from the host's mount namespace, which takes longer the more mounts it has", "cause", err)
		return nil
	}
	return base
}

// Features are what the kernel lets the built-in launcher do.
func (b *Builtin) Features() Features { return b.features }

// Delete has nothing to do: all that a launch leaves ends with the process.
func (b *Builtin) Delete(context.Context, string) error { return nil }

// Plan compiles the launch of s, for those who want to read it.
func (b *Builtin) Plan(spec *specs.Spec, g *cgroup.Group) (*launch.Launch, error) {
	return b.plan(spec, g, true)
}

// plan compiles a launch that starts from the base mounts, if there are any and the
// container's cgroups are among them.
func (b *Builtin) plan(spec *specs.Spec, g *cgroup.Group, base bool) (*launch.Launch, error) {
	filter, err := b.filter(spec)
	if err != nil {
		return nil, err
	}
	o := launch.Options{Seccomp: filter.Bytes(), SeccompFlags: uint64(filter.Flags)}
	if g != nil {
		o.CgroupTasks, o.CgroupDir = g.TasksPaths(), g.DirPath()
	}
	o.Hierarchies = b.sources(o.CgroupTasks)
	o.BaseMounts = base && !slices.ContainsFunc(o.Hierarchies, func(h launch.Hierarchy) bool {
		return h.Source != "" && !strings.HasPrefix(h.Source, "/sys/")
	})
	l, err := launch.Compile(spec, o)
	if err != nil {
		return nil, fmt.Errorf("compile launch: %w", err)
	}
	return l, nil
}

// sources names the container's directory in each hierarchy in which it has one.
func (b *Builtin) sources(tasks []string) []launch.Hierarchy {
	list := slices.Clone(b.hierarchies)
	for i := range list {
		mount := list[i].Source
		list[i].Source = ""
		for _, t := range tasks {
			if strings.HasPrefix(t, mount+"/") {
				list[i].Source = filepath.Dir(t)
			}
		}
	}
	return list
}

func (b *Builtin) filter(spec *specs.Spec) (seccomp.Program, error) {
	if spec.Linux == nil || spec.Linux.Seccomp == nil {
		return seccomp.Program{}, nil
	}
	p, err := b.filters.Compile(spec.Linux.Seccomp)
	if err != nil {
		return p, fmt.Errorf("compile seccomp profile: %w", err)
	}
	return p, nil
}

// Start runs a container's first process.
func (b *Builtin) Start(ctx context.Context, s Start) (monitor.Process, error) {
	base := b.base()
	l, err := b.plan(s.Spec, s.Group, base != nil)
	if err != nil {
		dropLog(s)
		return monitor.Process{}, err
	}
	s.enter("open descriptors")
	in := prepare.Inputs{Rootfs: s.Rootfs, BaseMounts: base, Stdin: s.Stdio.Stdin, Stdout: s.Stdio.Stdout, Stderr: s.Stdio.Stderr}
	if in.UserNS, err = openUserNS(s.Spec); err != nil {
		dropLog(s)
		return monitor.Process{}, err
	}
	defer closeFile(in.UserNS)
	files, err := prepare.Open(ctx, l, in)
	if err != nil {
		dropLog(s)
		return monitor.Process{}, err
	}
	defer closeOpened(files)
	s.enter("launch")
	return b.run(ctx, l, files, monitor.Start{ID: s.ID, Log: s.Log, Stdin: s.StdinKeep})
}

// dropLog closes what the monitor's client would have taken.
func dropLog(s Start) {
	closeFile(s.StdinKeep)
	if s.Log != nil {
		closeFile(s.Log.File)
		closeFile(s.Log.Stdout)
		closeFile(s.Log.Stderr)
	}
}

// Exec runs one more process in a running container.
func (b *Builtin) Exec(ctx context.Context, e Exec) (monitor.Process, error) {
	filter, err := b.filter(e.Spec)
	if err != nil {
		return monitor.Process{}, err
	}
	l, err := launch.CompileExec(e.Spec, e.Process, launch.ExecOptions{
		CgroupTasks: e.Group.TasksPaths(), CgroupDir: e.Group.DirPath(), Seccomp: filter.Bytes(), SeccompFlags: uint64(filter.Flags),
	})
	if err != nil {
		return monitor.Process{}, fmt.Errorf("compile exec: %w", err)
	}
	target, err := pidfd.Open(e.PID)
	if err != nil {
		return monitor.Process{}, fmt.Errorf("find the container's process: %w", err)
	}
	defer func() { _ = target.Close() }()
	// With the descriptor in hand the id cannot change its owner any more; before, it may
	// have, and its namespaces would be the host's.
	start, err := pidfd.StartTime(e.PID)
	if err == nil && start != e.StartTime {
		err = errors.New("its id belongs to another process now")
	}
	if err != nil {
		return monitor.Process{}, fmt.Errorf("the container's process %d has ended: %w: %w", e.PID, err, errdef.ErrPhase)
	}
	files, err := prepare.Open(ctx, l, prepare.Inputs{
		Process: target.File(), Stdin: e.Stdio.Stdin, Stdout: e.Stdio.Stdout, Stderr: e.Stdio.Stderr,
	})
	if err != nil {
		return monitor.Process{}, err
	}
	defer closeOpened(files)
	return b.run(ctx, l, files, monitor.Start{ID: e.ID, Ephemeral: true})
}

// StartInit starts the first process of a pod's shared pid namespace.
func (b *Builtin) StartInit(ctx context.Context, s Init) (monitor.Process, error) {
	p := launch.PodInit{
		CgroupTasks: s.Group.TasksPaths(), CgroupDir: s.Group.DirPath(), UserNamespace: s.Namespaces[namespace.User],
		Seccomp: podinit.Filter(),
	}
	for kind, typ := range map[namespace.Kind]specs.LinuxNamespaceType{namespace.UTS: specs.UTSNamespace, namespace.IPC: specs.IPCNamespace} {
		if path := s.Namespaces[kind]; path != "" {
			p.Join = append(p.Join, specs.LinuxNamespace{Type: typ, Path: path})
		}
	}
	l, err := launch.CompilePodInit(p)
	if err != nil {
		return monitor.Process{}, fmt.Errorf("compile pod init: %w", err)
	}
	program, err := podinit.Program()
	if err != nil {
		return monitor.Process{}, err
	}
	defer program.Close()
	files, err := prepare.Open(ctx, l, prepare.Inputs{InitProgram: program})
	if err != nil {
		return monitor.Process{}, err
	}
	defer closeOpened(files)
	return b.run(ctx, l, files, monitor.Start{ID: s.ID})
}

// run hands a launch to the monitor and puts a failed step into words.
func (b *Builtin) run(ctx context.Context, l *launch.Launch, files *prepare.Files, s monitor.Start) (monitor.Process, error) {
	s.Plan, s.Files = l.Plan.Marshal(), slices.Clone(files.List)
	s.PTYAt = slices.IndexFunc(l.Needs, func(n launch.Need) bool { return n.Kind == launch.PTYSocket })
	if s.TTY = s.PTYAt >= 0; s.TTY {
		s.Files[s.PTYAt] = nil // the monitor's client puts its socket there
	}
	proc, err := b.starter.Start(ctx, s)
	var step *monitor.StepFailure
	if !errors.As(err, &step) {
		return proc, err
	}
	err = l.Explain(int(step.Step), step.Errno)
	if failed, ok := errors.AsType[*launch.StepError](err); ok && failed.Exec {
		return proc, &ExecError{Code: int32(failed.ExitCode()), Err: err}
	}
	return proc, err
}

// openUserNS opens the user namespace by which volumes are mapped, if there is one.
func openUserNS(spec *specs.Spec) (*os.File, error) {
	if spec.Linux == nil {
		return nil, nil
	}
	for _, n := range spec.Linux.Namespaces {
		if n.Type == specs.UserNamespace && n.Path != "" {
			f, err := os.Open(n.Path)
			if err != nil {
				return nil, fmt.Errorf("open user namespace: %w", err)
			}
			return f, nil
		}
	}
	return nil, nil
}

func closeFile(f *os.File) {
	if f != nil {
		_ = f.Close()
	}
}

func closeOpened(f *prepare.Files) { _ = f.Close() }
