package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
)

// pod is a pod's one writer. Its record is changed only inside the gate.
type pod struct {
	id     ID
	gate   gate
	now    atomic.Pointer[podRecord]
	stage  atomic.Pointer[stage]   // of the operation under way, nil for none
	gone   bool                    // forgotten: a late writer must not bring the record back; inside the gate
	disk   written[*podRecord]     // inside the gate
	viewed atomic.Pointer[PodView] // of the record that was last looked at
	usage  podSampler
}

func newPod(r *podRecord) *pod {
	p := &pod{id: r.ID, gate: newGate()}
	p.now.Store(r)
	return p
}

func (p *pod) record() *podRecord { return p.now.Load() }

// commitPod makes r the pod's record: durable first, visible second.
func (s *Service) commitPod(p *pod, r podRecord) error {
	if p.gone {
		return fmt.Errorf("pod %s was removed meanwhile: %w", r.ID, errdef.ErrNotFound)
	}
	if err := p.disk.commit(s.podJournal, r.ID, &r); err != nil {
		return fmt.Errorf("pod %s: %w", r.ID, err)
	}
	p.now.Store(&r)
	return nil
}

// show makes r what readers see, for a pod whose record on disk still says that it is
// being created.
func (p *pod) show(r podRecord) { p.now.Store(&r) }

// stepPod commits the phase that event leads to.
func (s *Service) stepPod(p *pod, r podRecord, e podEvent) error {
	phase, err := nextPod(r.Phase, e)
	if err != nil {
		return fmt.Errorf("pod %s: %w", r.ID, err)
	}
	r.Phase = phase
	return s.commitPod(p, r)
}

// stepPodDown commits a step towards the pod's end. It does so also when the record
// cannot be written, for want of space or descriptors: else the pod could not be
// stopped any more. A restarted daemon takes the same steps again.
func (s *Service) stepPodDown(ctx context.Context, p *pod, r podRecord, e podEvent) error {
	phase, err := nextPod(r.Phase, e)
	if err != nil {
		return fmt.Errorf("pod %s: %w", r.ID, err)
	}
	r.Phase = phase
	if err = s.commitPod(p, r); err == nil || p.gone {
		return err
	}
	klog.FromContext(ctx).Error(err, "Pod's record not written; going on without", "pod", p.id, "phase", phase.String())
	p.now.Store(&r)
	return nil
}

func (r *podRecord) onHostNetwork() bool {
	return r.Config.Security.Namespaces.Network == ModeNode
}

func (r *podRecord) ips() []netip.Addr {
	if r.Attachment == nil {
		return nil
	}
	return r.Attachment.IPs
}

func (r *podRecord) userns() *UserNamespace { return r.Config.Security.Namespaces.User }

// rootID is the host's user id of the pod's root.
func (r *podRecord) rootID() uint32 { return hostID(r.userns(), false) }

// rootGID is the host's group id of the pod's root group.
func (r *podRecord) rootGID() uint32 { return hostID(r.userns(), true) }

func hostID(u *UserNamespace, group bool) uint32 {
	if u == nil {
		return 0
	}
	maps := u.UIDs
	if group {
		maps = u.GIDs
	}
	for _, m := range maps {
		if m.Container == 0 {
			return m.Host
		}
	}
	return 0
}

// netNS is the path of the pod's pinned network namespace, or "" when there is none.
func (r *podRecord) netNS() string { return pinned(r.Namespaces[namespace.Net]) }

// foundNetNS is netNS, also of a pod that was cut off before it was recorded.
func (s *Service) foundNetNS(r *podRecord) string {
	if path := r.netNS(); path != "" || r.onHostNetwork() {
		return path
	}
	return pinned(filepath.Join(s.paths.pins(r.ID), string(namespace.Net)))
}

// pinned is path if a namespace is there, else "".
func pinned(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil || st.Type != unix.NSFS_MAGIC {
		return ""
	}
	return path
}

// view is what readers see. All who see one record share a view.
func (p *pod) view() *PodView {
	r := p.record()
	v := p.viewed.Load()
	if v == nil || v.of != r {
		v = r.view()
		p.viewed.Store(v)
	}
	return v
}

func (r *podRecord) view() *PodView {
	v := &PodView{
		ID: r.ID, Config: r.Config, State: PodNotReady, CreatedAt: r.CreatedAt, IPs: r.ips(),
		NetNS: r.Namespaces[namespace.Net], Problem: r.Problem, of: r,
	}
	if r.Phase == PodRunning {
		v.State = PodReady
	}
	return v
}

// Pod finds a pod by its id or a unique beginning of it.
func (s *Service) Pod(id ID) (*PodView, error) {
	p, err := s.pods.get(id)
	if err != nil {
		return nil, err
	}
	return p.view(), nil
}

// Pods lists the pods that f selects, oldest first. A pod that is still being set up
// is not listed: nobody has its id yet.
func (s *Service) Pods(f PodFilter) []*PodView {
	var out []*PodView
	for p := range s.pods.among(f.ID, "") {
		v := p.view()
		if v.of.Phase != PodCreating && v.ID.matches(f.ID) && hasLabels(v.Config.Labels, f.Labels) &&
			(f.State == nil || *f.State == v.State) {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b *PodView) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return out
}

// PodInfo is the verbose part of a pod's status.
func (s *Service) PodInfo(_ context.Context, id ID) (map[string]any, error) {
	p, err := s.pods.get(id)
	if err != nil {
		return nil, err
	}
	r := p.record()
	info := map[string]any{
		"phase": r.Phase.String(), "cgroupParent": r.Parent, "namespaces": r.Namespaces,
		"runtimeHandler": r.Config.Handler, "trace": s.trace(podRef{p.id, r.Config.Metadata}, r), "network": r.Attachment,
	}
	if r.Init != nil {
		info["pid"] = r.Init.PID
	}
	if r.Problem != "" {
		info["problem"] = r.Problem
	}
	if st := p.stage.Load(); st != nil {
		info["stage"] = st.String()
	}
	return info, nil
}

// UpdatePodResources records what the kubelet has already given the pod's cgroup.
func (s *Service) UpdatePodResources(ctx context.Context, id ID, overhead, resources *Resources) error {
	p, err := s.pods.get(id)
	if err != nil {
		return err
	}
	if err := p.gate.enter(ctx, "pod "+string(p.id)); err != nil {
		return err
	}
	defer p.gate.leave()
	r := *p.record()
	base := *r.podBase
	r.podBase = &base
	if overhead != nil {
		r.Config.Overhead = overhead
	}
	if resources != nil {
		r.Config.Resources = resources
	}
	return s.commitPod(p, r)
}

// containersOf are the containers of a pod. The list is not to be changed.
func (s *Service) containersOf(id ID) []*container { return s.containers.of(id) }

// ignoreMissing drops the error of taking away what is gone.
func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
