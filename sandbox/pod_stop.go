package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
)

// StopPod ends all containers of a pod and gives back what it has in the kernel. It
// succeeds for a pod that is stopped or gone; a call for one being stopped joins.
func (s *Service) StopPod(ctx context.Context, id ID) error {
	p, err := s.pods.get(id)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.stopPod(ctx, p)
}

func (s *Service) stopPod(ctx context.Context, p *pod) error {
	_, err := s.flights.do(ctx, "stop pod "+string(p.id), undoLimit, func(ctx context.Context, st *stage) (ID, error) {
		if p.record().Phase == PodStopped {
			return p.id, nil
		}
		st.traces(opStop, p.record())
		p.stage.Store(st)
		defer p.stage.Store(nil)
		st.enter("wait for the pod")
		if err := s.markStopping(ctx, p); err != nil {
			return "", err
		}
		st.enter("stop containers")
		if err := s.stopContainers(ctx, p.id); err != nil {
			return "", err
		}
		if err := p.gate.enter(ctx, "pod "+string(p.id)); err != nil {
			return "", err
		}
		defer p.gate.leave()
		st.enter("tear down")
		if err := s.tearDown(ctx, p); err != nil {
			return "", fmt.Errorf("stop pod %s: %w", p.id, err)
		}
		s.podEvent(p, EventStopped)
		klog.FromContext(ctx).V(2).Info("pod stopped", "id", p.id)
		return p.id, nil
	})
	return err
}

// markStopping waits for a set-up under way and commits that the pod will stop, so
// that no container is created in it any more.
func (s *Service) markStopping(ctx context.Context, p *pod) error {
	if err := p.gate.enter(ctx, "pod "+string(p.id)); err != nil {
		return err
	}
	defer p.gate.leave()
	if p.record().Phase == PodStopped {
		return nil
	}
	return s.stepPodDown(ctx, p, *p.record(), podStopAsked)
}

func (s *Service) stopContainers(ctx context.Context, id ID) error {
	var g errgroup.Group
	for _, c := range s.containersOf(id) {
		g.Go(func() error { return s.stopContainer(ctx, c, 0) })
	}
	return g.Wait()
}

// tearDown takes back all that setUp makes, whatever there is of it, and commits that
// the pod is stopped. The caller holds the gate and has committed PodStopping.
func (s *Service) tearDown(ctx context.Context, p *pod) error {
	r := *p.record()
	if r.Phase == PodStopped {
		return nil
	}
	p.usage.close()
	var errs []error
	if !r.onHostNetwork() {
		if err := s.Network.Detach(ctx, s.networkPod(&r)); err != nil {
			errs = append(errs, fmt.Errorf("detach network: %w", err))
		}
	}
	errs = append(errs, s.endInit(ctx, &r), s.unmountShm(p.id))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := namespace.Unpin(s.paths.pins(p.id)); err != nil {
		return fmt.Errorf("release namespaces: %w", err)
	}
	if err := s.removeCgroup(ctx, r.Cgroup); err != nil {
		return err
	}
	if err := s.removePodDir(p.id); err != nil {
		return err
	}
	r.Init, r.NoInit, r.Namespaces = nil, true, nil
	return s.stepPodDown(ctx, p, r, podTornDown)
}

// removeCgroup ends what is in a cgroup and removes it.
func (s *Service) removeCgroup(ctx context.Context, path string) error {
	if path == "" {
		return nil
	}
	if err := s.Cgroups.Destroy(ctx, cgroup.Path(path)); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}

// endInit kills the pod's init, and with it what is left in its pid namespace.
func (s *Service) endInit(ctx context.Context, r *podRecord) error {
	if r.NoInit {
		return nil
	}
	name := initID(r.ID)
	if done := s.Processes.Done(name); done != nil {
		if err := s.Processes.Signal(name, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, errdef.ErrNotFound) {
			return fmt.Errorf("kill the pod's init: %w", err)
		}
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("wait for the pod's init to end: %w", ctx.Err())
		}
		if err := s.Processes.Forget(ctx, name); err != nil {
			return fmt.Errorf("forget the pod's init: %w", err)
		}
	}
	return s.removeCgroup(ctx, string(cgroup.Path(r.Parent).Join(name)))
}

// RemovePod stops a pod, removes its containers and forgets it. It succeeds for a pod
// that is gone.
func (s *Service) RemovePod(ctx context.Context, id ID) error {
	p, err := s.pods.get(id)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.stopPod(ctx, p); err != nil {
		return err
	}
	for _, c := range s.containersOf(p.id) {
		if err := s.removeContainer(ctx, c); err != nil {
			return fmt.Errorf("remove pod %s: %w", p.id, err)
		}
	}
	if err := p.gate.enter(ctx, "pod "+string(p.id)); err != nil {
		return err
	}
	defer p.gate.leave()
	if p.gone {
		return nil // another call was faster
	}
	if err := s.forgetPod(p); err != nil {
		return err
	}
	s.podEvent(p, EventDeleted)
	return nil
}

func (s *Service) forgetPod(p *pod) error {
	if err := s.podJournal.Remove(string(p.id)); err != nil {
		return fmt.Errorf("forget pod %s: %w", p.id, err)
	}
	p.gone = true
	s.pods.drop(p.id)
	return nil
}

// podEvent tells subscribers. A pod's own events carry its id as the container's.
func (s *Service) podEvent(p *pod, k EventKind) { s.event(p.id, p, k, time.Now()) }

// event tells subscribers what happened to id in pod p.
func (s *Service) event(id ID, p *pod, k EventKind, at time.Time) {
	if !s.events.wanted() {
		return
	}
	e := Event{Container: id, Kind: k, At: at, Pod: p.view()}
	for _, c := range s.containersOf(p.id) {
		if c.visible() {
			e.Containers = append(e.Containers, c.view())
		}
	}
	s.events.send(e)
}
