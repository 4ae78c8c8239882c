package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/oci/spec"
)

// describe turns a container's configuration into its runtime-spec.
func (s *Service) describe(ctx context.Context, r *containerRecord, p *pod, img *image.Image, who account) (*specs.Spec, error) {
	pr, cfg, sec := p.record(), r.Config, r.Config.Security
	merged, err := spec.Merge(imageConfig(img), request(cfg))
	if err != nil {
		return nil, err
	}
	r.StopSignal = merged.StopSignal
	mounts, err := s.mounts(r, pr)
	if err != nil {
		return nil, err
	}
	namespaces, err := s.namespaces(ctx, r, p)
	if err != nil {
		return nil, err
	}
	devices, err := describeDevices(cfg)
	if err != nil {
		return nil, err
	}
	appArmor, err := s.appArmor(ctx, sec)
	if err != nil {
		return nil, err
	}
	oom := int(cfg.Resources.OOMScoreAdj)
	rs, err := spec.Build(spec.Container{
		Process: spec.Process{
			Args: merged.Args, Env: merged.Env, Cwd: merged.Cwd, Terminal: cfg.TTY, User: who.User, Home: who.home,
			Capabilities: spec.Capabilities{
				Add: sec.CapAdd, Drop: sec.CapDrop, AddAmbient: sec.CapAmbient, Available: s.Capabilities,
			},
			NoNewPrivileges: sec.NoNewPrivs, AppArmorProfile: appArmor, OOMScoreAdj: &oom,
		},
		Hostname: s.hostname(pr), ReadonlyRootfs: sec.ReadonlyRootfs, Privileged: sec.Privileged,
		Paths:      spec.Paths{Masked: sec.MaskedPaths, Readonly: sec.ReadonlyPaths},
		Namespaces: namespaces, Mounts: mounts, Devices: devices, Resources: cfg.Resources.spec(),
		Cgroup: spec.Cgroup{Path: r.Cgroup}, Annotations: cfg.Annotations,
	})
	if err != nil {
		return nil, err
	}
	if err := s.setSeccomp(rs, sec); err != nil {
		return nil, err
	}
	return rs, injectCDI(rs, cfg)
}

func imageConfig(img *image.Image) spec.ImageConfig {
	c := img.Config
	return spec.ImageConfig{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkingDir: c.WorkingDir,
		StopSignal: c.StopSignal, Volumes: c.Volumes,
	}
}

func request(c ContainerConfig) spec.Request {
	q := spec.Request{Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir, StopSignal: c.StopSignal}
	for _, e := range c.Envs {
		q.Env = append(q.Env, e.Key+"="+string(e.Value))
	}
	for _, m := range c.Mounts {
		q.Mounted = append(q.Mounted, m.ContainerPath)
	}
	return q
}

func (s *Service) hostname(pr *podRecord) string {
	if pr.Config.Hostname != "" || !pr.onHostNetwork() {
		return pr.Config.Hostname
	}
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

// namespaces says which of the pod's, the node's and its own namespaces a container gets.
func (s *Service) namespaces(ctx context.Context, r *containerRecord, p *pod) (spec.Namespaces, error) {
	pr, want := p.record(), r.Config.Security.Namespaces
	pinned := func(k namespace.Kind) spec.Namespace {
		if path := pr.Namespaces[k]; path != "" {
			return spec.Namespace{Mode: spec.Join, Path: path}
		}
		return spec.Namespace{Mode: spec.Host}
	}
	// The network is the pod's, whatever the container says: peers do the same.
	out := spec.Namespaces{
		Network: pinned(namespace.Net), UTS: pinned(namespace.UTS), User: pinned(namespace.User),
		IPC: pinned(namespace.IPC), Cgroup: spec.Namespace{Mode: spec.New},
	}
	if r.Config.Security.Privileged {
		out.Cgroup.Mode = spec.Host
	}
	switch want.IPC {
	case ModeNode:
		out.IPC = spec.Namespace{Mode: spec.Host}
	case ModeContainer:
		out.IPC = spec.Namespace{Mode: spec.New}
	case ModePod:
	case ModeTarget:
		return out, fmt.Errorf("container config: linux.security_context.namespace_options.ipc: TARGET: %w", errdef.ErrInvalid)
	}
	if u := pr.userns(); u != nil {
		out.UIDs, out.GIDs = specMaps(u.UIDs), specMaps(u.GIDs)
	}
	var err error
	out.PID, err = s.pidNamespace(ctx, r, p)
	return out, err
}

func (s *Service) pidNamespace(ctx context.Context, r *containerRecord, p *pod) (spec.Namespace, error) {
	switch r.Config.Security.Namespaces.PID {
	case ModeNode:
		return spec.Namespace{Mode: spec.Host}, nil
	case ModeContainer:
		return spec.Namespace{Mode: spec.New}, nil
	case ModePod:
		proc, err := s.podInit(ctx, p)
		return joinPID(proc.PID), err
	case ModeTarget:
		target, err := s.containers.get(r.Config.Security.Namespaces.TargetID)
		if err != nil {
			return spec.Namespace{}, fmt.Errorf("container config: linux.security_context.namespace_options.target_id: %w", err)
		}
		tr := target.record()
		if tr.Phase != PhaseRunning || tr.Pod != p.id {
			return spec.Namespace{}, fmt.Errorf("container config: linux.security_context.namespace_options.target_id: container %s is %v in pod %s: %w", tr.ID, tr.Phase, tr.Pod, errdef.ErrPhase)
		}
		return joinPID(tr.Process.PID), nil
	}
	return spec.Namespace{}, fmt.Errorf("container config: linux.security_context.namespace_options.pid: unknown mode: %w", errdef.ErrInvalid)
}

func joinPID(pid int) spec.Namespace {
	return spec.Namespace{Mode: spec.Join, Path: fmt.Sprintf("/proc/%d/ns/pid", pid)}
}

func specMaps(in []IDMap) []spec.IDMap {
	out := make([]spec.IDMap, len(in))
	for i, m := range in {
		out[i] = spec.IDMap{Container: m.Container, Host: m.Host, Length: m.Length}
	}
	return out
}

// setSeccomp adds the profile last: what the default one allows depends on the
// capabilities that the container got.
func (s *Service) setSeccomp(rs *specs.Spec, sec ContainerSecurity) error {
	if sec.Privileged {
		return nil
	}
	var caps []string
	if rs.Process.Capabilities != nil {
		caps = rs.Process.Capabilities.Bounding
	}
	switch sec.Seccomp.Kind {
	case ProfileUnset, ProfileUnconfined:
	case ProfileRuntimeDefault:
		rs.Linux.Seccomp = s.Security.Seccomp(caps)
	case ProfileLocalhost:
		path := sec.Seccomp.Name
		if !filepath.IsAbs(path) {
			path = filepath.Join(s.SeccompDir, filepath.Clean("/"+path))
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("container config: linux.security_context.seccomp: %w: %w", err, errdef.ErrInvalid)
		}
		if rs.Linux.Seccomp, err = spec.ParseSeccomp(body, goruntime.GOARCH, caps); err != nil {
			return fmt.Errorf("seccomp profile %s: %w", path, err)
		}
	}
	return nil
}

// appArmor is the name of the profile to run under, "" for none.
func (s *Service) appArmor(ctx context.Context, sec ContainerSecurity) (string, error) {
	if sec.Privileged && sec.AppArmor.Kind != ProfileLocalhost {
		return "", nil
	}
	switch sec.AppArmor.Kind {
	case ProfileUnset, ProfileRuntimeDefault:
		return s.Security.AppArmor(ctx)
	case ProfileLocalhost:
		ok, err := s.Security.AppArmorLoaded(sec.AppArmor.Name)
		if err != nil {
			return "", fmt.Errorf("AppArmor profile %q: %w", sec.AppArmor.Name, err)
		}
		if !ok {
			return "", fmt.Errorf("container config: linux.security_context.apparmor: profile %q is not loaded: %w", sec.AppArmor.Name, errdef.ErrInvalid)
		}
		return sec.AppArmor.Name, nil
	case ProfileUnconfined:
	}
	return "", nil
}

// spec is what the runtime-spec is told of r.
func (r Resources) spec() spec.Resources {
	out := spec.Resources{
		CPUShares: r.CPUShares, CPUQuota: r.CPUQuota, CPUPeriod: r.CPUPeriod, CpusetCPUs: r.CpusetCPUs, CpusetMems: r.CpusetMems,
		MemoryLimit: r.MemoryLimit, MemorySwap: r.MemorySwapLimit, Unified: r.Unified,
	}
	for _, h := range r.HugepageLimits {
		out.Hugepages = append(out.Hugepages, spec.Hugepages{PageSize: h.PageSize, Limit: h.Limit})
	}
	return out
}

// sorted copies a slice in order, for stable records.
func sorted[T ~string](in []T) []T {
	out := slices.Clone(in)
	slices.Sort(out)
	return out
}
