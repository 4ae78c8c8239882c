package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/file"
)

// container is a container's one writer. Its record is changed only inside the gate.
type container struct {
	id       ID
	gate     gate
	now      atomic.Pointer[containerRecord]
	ended    chan struct{}             // closed once PhaseExited is committed
	signaled atomic.Bool               // the stop signal was sent
	unsaved  bool                      // its end could not be written: the monitor keeps the exit; inside the gate
	gone     bool                      // discarded: a late writer must not bring the record back; inside the gate
	disk     written[*containerRecord] // inside the gate
	rootfs   atomic.Pointer[os.File]
	viewed   atomic.Pointer[ContainerView] // of the record that was last looked at
	spec     *specs.Spec                   // until the start, if this daemon made it; inside the gate
	released bool                          // nothing is left of its process; inside the gate
	usage    sampler
}

func newContainer(r *containerRecord) *container {
	c := &container{id: r.ID, gate: newGate(), ended: make(chan struct{})}
	c.now.Store(r)
	if r.Phase == PhaseExited {
		close(c.ended)
	}
	return c
}

func (c *container) record() *containerRecord { return c.now.Load() }

// commit makes r the container's record: durable first, visible second.
func (s *Service) commit(c *container, r containerRecord) error {
	if c.gone {
		return fmt.Errorf("container %s was removed meanwhile: %w", r.ID, errdef.ErrNotFound)
	}
	if err := c.disk.commit(s.containerJournal, r.ID, &r); err != nil {
		return fmt.Errorf("container %s: %w", r.ID, err)
	}
	c.show(&r)
	return nil
}

// show makes r what readers see.
func (c *container) show(r *containerRecord) {
	before := c.now.Swap(r)
	if r.Phase == PhaseExited && before.Phase != PhaseExited {
		close(c.ended)
	}
}

// stepEnded commits that c has ended. It does so also when the record cannot be
// written, for want of space or descriptors: else nothing could be stopped any more,
// and so nothing given back. The monitor then keeps the exit until the removal, and a
// restarted daemon finds it there.
func (s *Service) stepEnded(ctx context.Context, c *container, r containerRecord) error {
	phase, err := nextContainer(r.Phase, ctrExited)
	if err != nil {
		return fmt.Errorf("container %s: %w", r.ID, err)
	}
	r.Phase = phase
	if err = s.commit(c, r); err == nil || c.gone {
		return err
	}
	klog.FromContext(ctx).Error(err, "End of container not written; going on without", "container", c.id)
	c.unsaved = true
	c.show(&r)
	return nil
}

// step commits the phase that event leads to.
func (s *Service) step(c *container, r containerRecord, e containerEvent) error {
	phase, err := nextContainer(r.Phase, e)
	if err != nil {
		return fmt.Errorf("container %s: %w", r.ID, err)
	}
	r.Phase = phase
	return s.commit(c, r)
}

// visible tells whether the container is listed: one still being created is not.
func (c *container) visible() bool { return c.record().Phase != PhaseCreating }

func (c *container) running() bool { return c.record().Phase == PhaseRunning }

// view is what readers see. All who see one record share a view.
func (c *container) view() *ContainerView {
	r := c.record()
	v := c.viewed.Load()
	if v == nil || v.of != r {
		v = r.view()
		c.viewed.Store(v)
	}
	return v
}

func (r *containerRecord) view() *ContainerView {
	v := &ContainerView{
		ID: r.ID, Pod: r.Pod, Config: r.Config, ImageID: r.ImageID, ImageRef: r.ImageRef, ImageName: r.ImageName,
		LogPath: r.LogPath, CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, Resources: r.Resources, User: &r.User,
		StopSignal: r.StopSignal, Mounts: r.Mounts, CgroupPath: r.Cgroup, Handler: r.Handler, Args: r.Args, of: r,
	}
	switch r.Phase {
	case PhaseCreating, PhaseCreated, PhaseStarting:
		v.State = ContainerCreated
	case PhaseRunning:
		v.State, v.PID = ContainerRunning, r.Process.PID
	case PhaseExited:
		v.State = ContainerExited
		v.FinishedAt, v.ExitCode, v.Reason, v.Message = r.Ended.At, r.Ended.ExitCode, r.Ended.Reason, r.Ended.Message
	}
	return v
}

// Container finds a container by its id or a unique beginning of it.
func (s *Service) Container(id ID) (*ContainerView, error) {
	c, err := s.containers.get(id)
	if err != nil {
		return nil, err
	}
	return c.view(), nil
}

// Containers lists the containers that f selects, oldest first.
func (s *Service) Containers(f ContainerFilter) []*ContainerView {
	var out []*ContainerView
	for _, c := range s.selected(f) {
		out = append(out, c.view)
	}
	return out
}

// shown is a container with what readers see of it at one moment.
type shown struct {
	*container
	view *ContainerView
}

// selected are the containers that f selects, oldest first.
func (s *Service) selected(f ContainerFilter) []shown {
	var out []shown
	for c := range s.containers.among(f.ID, f.Pod) {
		v := c.view()
		if v.of.Phase != PhaseCreating && v.ID.matches(f.ID) && v.Pod.matches(f.Pod) && hasLabels(v.Config.Labels, f.Labels) &&
			(f.State == nil || *f.State == v.State) {
			out = append(out, shown{c, v})
		}
	}
	slices.SortFunc(out, func(a, b shown) int { return a.view.CreatedAt.Compare(b.view.CreatedAt) })
	return out
}

// ContainerInfo is the verbose part of a container's status.
func (s *Service) ContainerInfo(_ context.Context, id ID) (map[string]any, error) {
	c, err := s.containers.get(id)
	if err != nil {
		return nil, err
	}
	r := c.record()
	info := map[string]any{
		"sandboxID": r.Pod, "phase": r.Phase.String(), "snapshotKey": string(r.ID), "cgroup": r.Cgroup,
		"runtimeHandler": r.Handler, "trace": r.Ops, "imageID": r.ImageID,
	}
	if r.Process != nil {
		info["pid"] = r.Process.PID
	}
	if spec, err := s.readSpec(r.ID); err == nil {
		info["runtimeSpec"] = spec
	}
	return info, nil
}

// specLimit bounds a runtime-spec that is read back: a request has at most 16 MiB.
const specLimit = 64 << 20

func (s *Service) readSpec(id ID) (*specs.Spec, error) {
	body, err := file.Read(s.paths.spec(id), specLimit)
	if err != nil {
		return nil, fmt.Errorf("read runtime-spec: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(body, &spec); err != nil {
		return nil, fmt.Errorf("read runtime-spec %s: %w", id, err)
	}
	return &spec, nil
}

func (s *Service) writeSpec(id ID, spec *specs.Spec) error {
	body, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode runtime-spec: %w", err)
	}
	if err := file.Mkdir(s.paths.bundle(id), 0o700); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	// The container's record, which comes next, says that the file is whole.
	if err := file.Write(s.paths.spec(id), body, 0o600); err != nil {
		return fmt.Errorf("write runtime-spec: %w", err)
	}
	return nil
}

// removeBundle deletes what writeSpec has made, or whatever there is.
func (s *Service) removeBundle(id ID) error {
	if err := file.Remove(s.paths.spec(id)); err != nil {
		return fmt.Errorf("remove runtime-spec: %w", err)
	}
	err := unix.Rmdir(s.paths.bundle(id))
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err := os.RemoveAll(s.paths.bundle(id)); err != nil { // with image volumes
		return fmt.Errorf("remove bundle: %w", err)
	}
	return nil
}

// UpdateContainerResources changes the limits of a container: at once when it runs,
// with its start when it is only created. It is all or nothing.
func (s *Service) UpdateContainerResources(ctx context.Context, id ID, res Resources, annotations map[string]string) error {
	c, err := s.containers.get(id)
	if err != nil {
		return err
	}
	if err := c.gate.enter(ctx, "container "+string(c.id)); err != nil {
		return err
	}
	defer c.gate.leave()
	r := *c.record()
	if r.Phase != PhaseCreated && r.Phase != PhaseRunning {
		return fmt.Errorf("update resources of container %s, which is %v: %w", c.id, r.Phase, errdef.ErrPhase)
	}
	merged := r.Resources.merge(res)
	if r.Phase == PhaseRunning {
		g, err := s.Cgroups.Open(cgroup.Path(r.Cgroup))
		if err != nil {
			return fmt.Errorf("update resources of container %s: %w", c.id, err)
		}
		defer g.Close()
		if err := g.Update(res.cgroup()); err != nil {
			return fmt.Errorf("update resources of container %s: %w", c.id, err)
		}
	}
	r.own()
	r.Resources = merged
	if len(annotations) > 0 {
		r.Config.Annotations = mergeMaps(r.Config.Annotations, annotations)
	}
	return s.commit(c, r)
}

// ReopenContainerLog opens the log file anew after the kubelet renamed it. When it
// fails no new file is left.
func (s *Service) ReopenContainerLog(ctx context.Context, id ID) error {
	c, err := s.containers.get(id)
	if err != nil {
		return err
	}
	r := c.record()
	if r.Phase != PhaseRunning {
		return fmt.Errorf("reopen the log of container %s, which is %v: %w", c.id, r.Phase, errdef.ErrPhase)
	}
	if r.LogPath == "" {
		return fmt.Errorf("reopen the log of container %s: it has none: %w", c.id, errdef.ErrInvalid)
	}
	if err := s.Streams.Reopen(ctx, string(c.id), r.LogPath); err != nil {
		return fmt.Errorf("reopen the log of container %s: %w", c.id, err)
	}
	return nil
}

// runtime finds the runtime of a handler; "" is the default one.
func (s *Service) runtime(handler string) (Runtime, error) {
	if handler == "" {
		handler = s.Default
	}
	rt, ok := s.Runtimes[handler]
	if !ok {
		return nil, fmt.Errorf("runtime handler %q is not configured: %w", handler, errdef.ErrInvalid)
	}
	return rt, nil
}

// RemoveContainer forgets a container and deletes its writable layer; one that runs is
// killed first. It succeeds for a container that is gone.
func (s *Service) RemoveContainer(ctx context.Context, id ID) error {
	c, err := s.containers.get(id)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.removeContainer(ctx, c)
}
