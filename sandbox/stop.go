package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/pidfd"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
)

// The reasons of an exit that the kubelet and its users know.
const (
	reasonCompleted = "Completed"
	reasonError     = "Error"
	reasonOOM       = "OOMKilled"
	reasonStart     = "StartError"
	reasonUnknown   = "ContainerStatusUnknown"
)

// unknownCode is the exit code of a process whose real one nobody could see.
const unknownCode = 255

// endLimit bounds what follows an exit: killing strays, removing the cgroup.
const endLimit = 60 * time.Second

// StopContainer sends the stop signal, once, and after timeout SIGKILL. A later call
// with a shorter timeout kills earlier. A start under way gets that time to finish. It returns when the exit is recorded, and
// succeeds for a container that is not running or gone.
func (s *Service) StopContainer(ctx context.Context, id ID, timeout time.Duration) error {
	c, err := s.containers.get(id)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.stopContainer(ctx, c, timeout)
}

func (s *Service) stopContainer(ctx context.Context, c *container, timeout time.Duration) error {
	if err := s.settle(ctx, c, timeout); err != nil {
		return err
	}
	if !c.running() {
		return nil
	}
	if e, ended := s.Processes.Exit(string(c.id)); ended {
		// Being recorded just now, or it could not be when it was told.
		return s.end(ctx, c, e)
	}
	begun := time.Now()
	if timeout > 0 {
		if c.signaled.CompareAndSwap(false, true) {
			if err := s.signal(c, unix.Signal(c.record().StopSignal)); err != nil {
				return fmt.Errorf("stop container %s: %w", c.id, err)
			}
		}
		grace := time.NewTimer(timeout)
		defer grace.Stop()
		select {
		case <-c.ended:
			return nil
		case <-grace.C:
		case <-ctx.Done():
			return fmt.Errorf("stop container %s: waited %v for its stop signal to be obeyed: %w", c.id, time.Since(begun).Round(time.Millisecond), ctx.Err())
		}
	}
	if err := s.kill(ctx, c); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill container %s: %v after SIGKILL %s: %w", c.id, time.Since(begun).Round(time.Millisecond), blocker(c.record()), ctx.Err())
	}
}

// settle waits for a start under way, so that a stop does not miss the process. A start
// that takes longer than patience is cut off: a program that hangs in it must not hold
// the pod.
func (s *Service) settle(ctx context.Context, c *container, patience time.Duration) error {
	cut := time.AfterFunc(patience, func() { s.flights.cut(startOf(c.id)) })
	defer cut.Stop()
	if err := c.gate.enter(ctx, "container "+string(c.id)); err != nil {
		return err
	}
	c.gate.leave()
	return nil
}

func (s *Service) signal(c *container, sig unix.Signal) error {
	err := s.Processes.Signal(string(c.id), sig)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, errdef.ErrNotFound) {
		return nil // it has just ended
	}
	return err
}

// kill ends the first process and all that share its cgroup.
func (s *Service) kill(ctx context.Context, c *container) error {
	if err := s.signal(c, unix.SIGKILL); err != nil {
		return err
	}
	g, err := s.Cgroups.Open(cgroup.Path(c.record().Cgroup))
	if errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer g.Close()
	return g.Kill(ctx)
}

// blocker says what a process that does not die is waiting for.
func blocker(r *containerRecord) string {
	if r.Process == nil {
		return "its process is unknown"
	}
	st, err := pidfd.ReadStat(r.Process.PID)
	if err != nil {
		return fmt.Sprintf("process %d is gone but its exit is not recorded", r.Process.PID)
	}
	wchan, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", r.Process.PID))
	if err != nil || len(wchan) == 0 {
		wchan = []byte("?")
	}
	return fmt.Sprintf("process %d is in state %c, waiting in %s", r.Process.PID, st.State, strings.TrimSpace(string(wchan)))
}

// exited is called when a process that the monitor knows has ended, its log complete.
func (s *Service) exited(ctx context.Context, id string, e monitor.Exit) {
	c, err := s.containers.get(ID(id))
	if err != nil {
		return // an exec or a pod's init: whoever started it waits for it
	}
	// A start under way may hold the gate as long as its caller lets it.
	ctx, cancel := context.WithTimeout(ctx, createLimit+endLimit)
	defer cancel()
	if err := s.end(ctx, c, e); err != nil {
		klog.FromContext(ctx).Error(err, "Container's end not completed; it is tried again at removal", "container", id)
	}
}

// end records how a container ended and then takes away what it had in the kernel.
// The order is the kubelet's: the exit and the OOM counter are recorded before the
// cgroup goes, and the event comes last.
func (s *Service) end(ctx context.Context, c *container, e monitor.Exit) error {
	if err := c.gate.enter(ctx, "container "+string(c.id)); err != nil {
		return err
	}
	defer c.gate.leave()
	r := *c.record()
	switch r.Phase {
	case PhaseCreating, PhaseCreated: // the start failed and said so
		return s.Processes.Forget(ctx, string(c.id))
	case PhaseExited: // told twice, at a start of the daemon
		return s.release(ctx, c)
	case PhaseStarting, PhaseRunning:
	}
	r.Ended = s.judge(&r, e)
	if err := s.stepEnded(ctx, c, r); err != nil {
		return err
	}
	if err := s.release(ctx, c); err != nil {
		return err
	}
	if p, err := s.pods.get(r.Pod); err == nil {
		s.event(c.id, p, EventStopped, r.Ended.At)
	}
	return nil
}

// judge names the reason of an exit. OOMKilled is said only when the kernel counted an
// OOM kill in the container's cgroup and the first process died of SIGKILL, or when
// the whole group died: a child's kill alone is not the container's end.
func (s *Service) judge(r *containerRecord, e monitor.Exit) *ending {
	out := &ending{At: e.At, ExitCode: e.Code, Reason: reasonError}
	switch {
	case !e.Known:
		out.ExitCode, out.Reason = unknownCode, reasonUnknown
		out.Message = "the exit status was not seen: the process ended while no parent of it was alive"
	case e.Code == 0:
		out.Reason = reasonCompleted
	case e.Signal == int(unix.SIGKILL) && s.oomKills(r) > 0:
		out.Reason = reasonOOM
	}
	return out
}

func (s *Service) oomKills(r *containerRecord) uint64 {
	g, err := s.Cgroups.Open(cgroup.Path(r.Cgroup))
	if err != nil {
		return 0
	}
	defer g.Close()
	n, err := g.OOMKills()
	if err != nil {
		return 0
	}
	return n
}

// release takes away what an ended container had: strays in its cgroup, the cgroup,
// the runtime's bundle and the monitor's record.
func (s *Service) release(ctx context.Context, c *container) error {
	r := c.record()
	if c.released {
		return nil
	}
	c.usage.close()
	if f := c.rootfs.Swap(nil); f != nil {
		f.Close()
	}
	if err := s.removeCgroup(ctx, r.Cgroup); err != nil {
		return err
	}
	if rt, err := s.runtime(r.Handler); err == nil {
		if err := rt.Delete(ctx, string(c.id)); err != nil {
			return fmt.Errorf("delete from the runtime: %w", err)
		}
	}
	if c.unsaved {
		return nil
	}
	if err := s.Processes.Forget(ctx, string(c.id)); err != nil {
		return err
	}
	c.released = r.Phase == PhaseExited // else it may be started again
	return nil
}

// removeContainer kills what runs, gives everything back and forgets the container.
func (s *Service) removeContainer(ctx context.Context, c *container) error {
	if err := s.stopContainer(ctx, c, 0); err != nil {
		return err
	}
	if err := c.gate.enter(ctx, "container "+string(c.id)); err != nil {
		return err
	}
	defer c.gate.leave()
	if _, err := s.containers.get(c.id); errors.Is(err, errdef.ErrNotFound) {
		return nil // another call was faster
	}
	if err := s.discard(ctx, c); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	if p, err := s.pods.get(c.record().Pod); err == nil {
		s.event(c.id, p, EventDeleted, time.Now())
	}
	return nil
}

// discard gives back all that a container has and drops its record last, so that a
// crash in the middle leaves something to discard again.
func (s *Service) discard(ctx context.Context, c *container) error {
	r := c.record()
	c.unsaved = false
	if err := s.release(ctx, c); err != nil {
		return err
	}
	if err := s.unmountVolumes(r); err != nil {
		return err
	}
	for _, key := range append([]string{string(r.ID)}, r.Views...) {
		if err := s.Snapshots.Release(ctx, key); err != nil {
			return fmt.Errorf("release snapshot %s: %w", key, err)
		}
	}
	if err := s.removeBundle(c.id); err != nil {
		return err
	}
	if err := s.containerJournal.Remove(string(c.id)); err != nil {
		return err
	}
	c.gone = true
	s.containers.drop(c.id)
	return nil
}
