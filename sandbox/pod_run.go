package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/cni"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/file"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/oci/runtime"
)

// newID is 256 random bits, as the kubelet and its tools expect ids to look.
func newID() ID {
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	return ID(hex.EncodeToString(b[:]))
}

func (m Metadata) key() string {
	return fmt.Sprintf("pod %s/%s (uid %s, attempt %d)", m.Namespace, m.Name, m.UID, m.Attempt)
}

// RunPod sets a pod up. A call with the metadata of one under way joins it; one with
// the metadata and configuration of a pod that is ready gets its id.
func (s *Service) RunPod(ctx context.Context, c PodConfig) (ID, error) {
	if _, err := s.runtime(c.Handler); err != nil {
		return "", err
	}
	if err := c.Security.Namespaces.User.check(); err != nil {
		return "", fmt.Errorf("pod config: linux.security_context.namespace_options.userns_options: %w", err)
	}
	return s.flights.do(ctx, c.Metadata.key(), runPodLimit, func(ctx context.Context, st *stage) (ID, error) {
		if err := s.swept(ctx, st); err != nil {
			return "", err
		}
		if p := s.podByMetadata(c.Metadata); p != nil {
			r := p.record()
			if r.Phase == PodRunning && reflect.DeepEqual(r.Config, c) {
				return r.ID, nil
			}
			return "", fmt.Errorf("%s exists already as %s, %v: %w", c.Metadata.key(), r.ID, r.Phase, errdef.ErrExists)
		}
		return s.makePod(ctx, st, c)
	})
}

func (s *Service) podByMetadata(m Metadata) *pod {
	for _, p := range s.pods.all() {
		if p.record().Config.Metadata == m {
			return p
		}
	}
	return nil
}

func (s *Service) makePod(ctx context.Context, st *stage, c PodConfig) (ID, error) {
	r := podRecord{podBase: &podBase{ID: newID(), Config: c, CreatedAt: time.Now()}, podState: podState{Phase: PodCreating, NoInit: true}}
	parent, own := s.podCgroup(c, r.ID)
	r.Parent = string(parent)
	if own {
		r.Cgroup = r.Parent
	}
	p := newPod(&r)
	st.traces(opRunPod, &r)
	p.stage.Store(st)
	defer p.stage.Store(nil)
	p.gate <- struct{}{} // nobody else knows it yet
	defer p.gate.leave()
	if err := s.commitPod(p, r); err != nil {
		return "", err
	}
	s.pods.put(p.id, p)
	if err := s.setUp(ctx, p, st); err != nil {
		return "", errors.Join(fmt.Errorf("run pod %s/%s: %w", c.Metadata.Namespace, c.Metadata.Name, err), s.giveUp(ctx, p, err))
	}
	r = *p.record()
	r.Ops = []Op{st.end(nil)}
	if err := s.stepPod(p, r, podSetUp); err != nil {
		return "", errors.Join(err, s.giveUp(ctx, p, err))
	}
	klog.FromContext(ctx).V(2).Info("pod ready", "pod", klog.KRef(c.Metadata.Namespace, c.Metadata.Name), "id", p.id, "took", time.Since(r.CreatedAt))
	s.podEvent(p, EventCreated)
	s.podEvent(p, EventStarted)
	return p.id, nil
}

// giveUp takes back a pod that could not be set up. What cannot be taken back stays
// visible as a pod that is not ready, so that the kubelet stops and removes it again.
func (s *Service) giveUp(ctx context.Context, p *pod, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	r := *p.record()
	r.Problem = cause.Error()
	if err := s.stepPodDown(ctx, p, r, podStopAsked); err != nil {
		return err
	}
	if err := s.tearDown(ctx, p); err != nil {
		return fmt.Errorf("take back: %w", err)
	}
	return s.forgetPod(p)
}

// setUp makes all that a pod has in the kernel. The record that the pod is being created
// is there, and names follow from its id: a restarted daemon finds all of it and takes it
// back. What came of it is recorded at once, with the pod's readiness.
func (s *Service) setUp(ctx context.Context, p *pod, st *stage) error {
	r := *p.record()
	st.enter("make directories")
	if err := makeLogDir(r.Config.LogDirectory); err != nil {
		return err
	}
	if err := file.Mkdir(s.paths.podDir(p.id), 0o700); err != nil {
		return fmt.Errorf("make pod directory: %w", err)
	}
	st.enter("make cgroup")
	if err := s.makePodCgroup(&r); err != nil {
		return err
	}
	st.enter("make namespaces")
	if err := s.makeNamespaces(p, &r); err != nil {
		return err
	}
	if !r.onHostNetwork() {
		st.enter("attach network")
		a, err := s.Network.Attach(ctx, s.networkPod(&r))
		if err != nil {
			return fmt.Errorf("attach network: %w", err)
		}
		r.Attachment = &a
		p.show(r)
	}
	st.enter("write files")
	files, err := r.contents()
	if err != nil {
		return err
	}
	if err := s.writeFiles(p.id, files); err != nil {
		return err
	}
	if r.Config.Security.Namespaces.IPC != ModeNode {
		if err := s.mountShm(p.id); err != nil {
			return err
		}
	}
	return nil
}

// makeNamespaces pins what the pod does not share with the node.
func (s *Service) makeNamespaces(p *pod, r *podRecord) error {
	ns := r.Config.Security.Namespaces
	spec := namespace.Spec{
		Net: ns.Network != ModeNode, UTS: ns.Network != ModeNode, IPC: ns.IPC != ModeNode,
		Sysctls: r.Config.Sysctls,
	}
	if spec.UTS {
		spec.Hostname = r.Config.Hostname
	}
	if ns.User != nil {
		spec.User = &namespace.UserMap{UIDs: idMaps(ns.User.UIDs), GIDs: idMaps(ns.User.GIDs)}
	}
	pins, err := s.fresh.Pin(s.paths.pins(p.id), spec)
	if err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	r.Namespaces = pins
	p.show(*r)
	return nil
}

// check finds what the kernel would refuse or what would leave the pod without a root.
func (u *UserNamespace) check() error {
	if u == nil {
		return nil
	}
	for name, maps := range map[string][]IDMap{"uids": u.UIDs, "gids": u.GIDs} {
		root := false
		for _, m := range maps {
			if m.Length == 0 {
				return fmt.Errorf("%s: a mapping of length 0: %w", name, errdef.ErrInvalid)
			}
			root = root || m.Container == 0
		}
		if !root {
			return fmt.Errorf("%s: container id 0 is not mapped: %w", name, errdef.ErrInvalid)
		}
	}
	return nil
}

func idMaps(in []IDMap) []namespace.IDMap {
	out := make([]namespace.IDMap, len(in))
	for i, m := range in {
		out[i] = namespace.IDMap{Container: m.Container, Host: m.Host, Size: m.Length}
	}
	return out
}

// podCgroup is where the pod's containers go, and whether that cgroup is ours to make
// and remove. The kubelet names one that it made and will remove.
func (s *Service) podCgroup(c PodConfig, id ID) (cgroup.Path, bool) {
	if c.CgroupParent != "" {
		return cgroup.Path(c.CgroupParent), false
	}
	return s.CgroupParent.Join(string(id)), true
}

func (s *Service) makePodCgroup(r *podRecord) error {
	if err := cgroup.Path(r.Parent).Valid(); err != nil {
		return fmt.Errorf("pod config: linux.cgroup_parent: %w", err)
	}
	if r.Cgroup == "" {
		return nil
	}
	g, err := s.Cgroups.Create(cgroup.Path(r.Cgroup), cgroup.Resources{})
	if err != nil {
		return fmt.Errorf("make pod cgroup: %w", err)
	}
	g.Close()
	return nil
}

func (s *Service) networkPod(r *podRecord) cni.Pod {
	m := r.Config.Metadata
	p := cni.Pod{
		ID: string(r.ID), Namespace: m.Namespace, Name: m.Name, UID: m.UID, NetNS: s.foundNetNS(r),
		CgroupPath: r.Parent, Annotations: r.Config.Annotations,
	}
	for _, pm := range r.Config.PortMappings {
		if pm.HostPort > 0 {
			p.PortMappings = append(p.PortMappings, cni.PortMapping{
				HostIP: pm.HostIP, HostPort: pm.HostPort, ContainerPort: pm.ContainerPort, Protocol: cni.Protocol(pm.Protocol),
			})
		}
	}
	if d := r.Config.DNS; d != nil {
		p.DNS = cni.DNS{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	return p
}

// initID is the monitor's name of a pod's init.
func initID(pod ID) string { return "init-" + string(pod) }

// podInit makes sure that the pod's shared pid namespace has its first process, which
// reaps and whose life holds the namespace, and returns it. It is started when the
// first container asks for that namespace: most pods never do.
func (s *Service) podInit(ctx context.Context, p *pod) (process, error) {
	if err := p.gate.enter(ctx, "pod "+string(p.id)); err != nil {
		return process{}, err
	}
	defer p.gate.leave()
	r := *p.record()
	if r.Phase != PodRunning {
		return process{}, fmt.Errorf("pod %s is %v: %w", p.id, r.Phase, errdef.ErrPhase)
	}
	if r.Init != nil {
		return *r.Init, nil
	}
	r.NoInit = false
	if err := s.commitPod(p, r); err != nil {
		return process{}, err
	}
	g, err := s.Cgroups.Create(cgroup.Path(r.Parent).Join(initID(p.id)), cgroup.Resources{})
	if err != nil {
		return process{}, fmt.Errorf("make cgroup of the pod's init: %w", err)
	}
	defer g.Close()
	proc, err := s.Init.StartInit(ctx, runtime.Init{ID: initID(p.id), Namespaces: r.Namespaces, Group: g})
	if err != nil {
		return process{}, fmt.Errorf("start the pod's init: %w", err)
	}
	r.Init = &process{PID: proc.PID, Start: proc.StartTime}
	return *r.Init, s.commitPod(p, r)
}
