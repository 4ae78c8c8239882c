package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/internal/linux/pidfd"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
	"github.com/cri-runtime/cri-runtime/sandbox/journal"
)

// recover makes the records and the kernel agree after a start of the daemon: what the
// records know and the kernel lacks has ended, what the kernel has and no record knows
// is taken away. After a reboot there are no records, and the same code gives back
// what the old pods had on disk: snapshots and addresses.
//
// Lists are complete when it returns. Leftovers are taken away behind it, before the
// first new pod or container is made: see swept.
func (s *Service) recover(ctx context.Context) error {
	known := map[string]monitor.Process{}
	for _, p := range s.Processes.List() {
		known[p.ID] = p
	}
	if err := load(ctx, s.podJournal, s.pods, podRecordVersion, loadPod); err != nil {
		return err
	}
	if err := load(ctx, s.containerJournal, s.containers, containerRecordVersion, loadContainer); err != nil {
		return err
	}
	for _, c := range s.containers.all() {
		if err := s.recoverContainer(ctx, c, known); err != nil {
			klog.FromContext(ctx).Error(err, "Container not put right; its removal tries again", "container", c.id)
		}
	}
	for _, p := range s.pods.all() {
		s.recoverPod(ctx, p, known)
	}
	ctx, s.stopSweep = context.WithCancel(context.WithoutCancel(ctx))
	s.sweeping.Go(func() {
		defer close(s.sweepDone)
		s.sweep(ctx, known)
	})
	return nil
}

// swept waits until what an earlier life of the daemon left has been taken away. Whoever
// makes a pod or a container asks first, since the sweep takes what it finds in no
// record for a leftover. What only changes objects that have a record need not wait.
func (s *Service) swept(ctx context.Context, st *stage) error {
	select {
	case <-s.sweepDone:
		return nil
	default:
	}
	st.enter("take away leftovers of the last start")
	select {
	case <-s.sweepDone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("take away leftovers of the last start: %w", ctx.Err())
	}
}

func loadPod(rec journal.Record) (ID, *pod, error) {
	r, err := decodePod(rec)
	if err != nil {
		return "", nil, err
	}
	return r.ID, newPod(r), nil
}

func loadContainer(rec journal.Record) (ID, *container, error) {
	r, err := decodeContainer(rec)
	if err != nil {
		return "", nil, err
	}
	return r.ID, newContainer(r), nil
}

// load reads a journal into an index. It refuses records that a later version wrote:
// without them the sweep would take their pods for strangers and end them.
func load[T comparable](ctx context.Context, j *journal.Journal, into *index[T], version int, object func(journal.Record) (ID, T, error)) error {
	records, damaged, err := j.Load()
	if err != nil {
		return err
	}
	for _, err := range damaged {
		klog.FromContext(ctx).Error(err, "Damaged record left out")
	}
	for _, r := range records {
		if r.TakenBack {
			klog.FromContext(ctx).Info("Record taken back: it was moved aside as damaged, and reads whole", "of", into.kind, "record", r.Name)
		}
		if r.Version < 1 || r.Version > version {
			return fmt.Errorf("record %s has version %d, known here is %d: start the newer program, or drain the node first: %w",
				r.Name, r.Version, version, errdef.ErrInvalid)
		}
	}
	type decoded struct {
		id  ID
		t   T
		err error
	}
	all := make([]decoded, len(records))
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(records)) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(records)); i = next.Add(1) - 1 {
				all[i].id, all[i].t, all[i].err = object(records[i])
			}
		})
	}
	workers.Wait()
	objects := make(map[ID]T, len(records))
	for i, r := range records {
		if d := all[i]; d.err != nil || d.id != ID(r.Name) {
			klog.FromContext(ctx).Error(d.err, "Record dropped: it cannot be read", "of", into.kind, "record", r.Name)
		} else {
			objects[d.id] = d.t
		}
	}
	into.fill(objects)
	return nil
}

// recoverContainer puts one container right.
func (s *Service) recoverContainer(ctx context.Context, c *container, known map[string]monitor.Process) error {
	r := *c.record()
	proc, running := known[string(c.id)]
	switch r.Phase {
	case PhaseCreating: // nobody has its id
		return s.discard(ctx, c)
	case PhaseCreated: // its root is mounted again when it is started
		return nil
	case PhaseStarting:
		if !running {
			// What the monitor had begun may have outlived it.
			if err := s.removeCgroup(ctx, r.Cgroup); err != nil {
				return err
			}
			return s.step(c, r, ctrNotStarted)
		}
		r.Process = &process{PID: proc.PID, Start: proc.StartTime}
		r.StartedAt = time.Now()
		if err := s.step(c, r, ctrStarted); err != nil {
			return err
		}
	case PhaseRunning:
		if !running {
			return s.end(ctx, c, s.lost(&r))
		}
	case PhaseExited:
		return s.release(ctx, c)
	}
	if e, ended := s.Processes.Exit(string(c.id)); ended {
		return s.end(ctx, c, e)
	}
	return nil
}

// lost is the end of a process that the monitor does not know. When it is alive all
// the same, nobody could ever see its end: it is killed rather than left unwatched.
func (s *Service) lost(r *containerRecord) monitor.Exit {
	if r.Process != nil {
		if start, err := pidfd.StartTime(r.Process.PID); err == nil && start == r.Process.Start {
			if p, err := pidfd.Open(r.Process.PID); err == nil {
				_ = p.Signal(unix.SIGKILL) // its cgroup is killed next in any case
				_ = p.Close()
			}
		}
	}
	return monitor.Exit{At: time.Now(), Code: unknownCode}
}

// recoverPod puts one pod right. One that was being set up or stopped is torn down; if
// that cannot be done now, it stays listed as not ready and the kubelet asks again.
func (s *Service) recoverPod(ctx context.Context, p *pod, known map[string]monitor.Process) {
	r := *p.record()
	log := klog.FromContext(ctx).WithValues("pod", p.id)
	if err := s.checkPod(&r, known); r.Phase == PodRunning && err == nil || r.Phase == PodStopped {
		return
	} else if r.Phase == PodRunning {
		r.Problem = err.Error()
		log.Error(err, "Pod is not ready any more")
	}
	fresh := r.Phase == PodCreating
	if err := s.stepPodDown(ctx, p, r, podStopAsked); err != nil {
		log.Error(err, "Pod not put right")
		return
	}
	if !fresh {
		return // the kubelet stops it
	}
	if err := s.tearDown(ctx, p); err != nil {
		log.Error(err, "Pod that was cut off in its start not taken back; the kubelet asks again")
		return
	}
	if err := s.forgetPod(p); err != nil {
		log.Error(err, "Pod not forgotten")
	}
}

// checkPod says what a ready pod lacks in the kernel.
func (s *Service) checkPod(r *podRecord, known map[string]monitor.Process) error {
	for kind, path := range r.Namespaces {
		if _, err := namespace.Inode(path); err != nil {
			return fmt.Errorf("%s namespace: %w", kind, err)
		}
	}
	if len(r.Namespaces) == 0 { // they are in it
		if _, err := os.Lstat(s.paths.podDir(r.ID)); err != nil {
			return fmt.Errorf("its directory: %w", err)
		}
	}
	if r.Init != nil {
		if _, ok := known[initID(r.ID)]; !ok {
			return fmt.Errorf("the init of its pid namespace: %w", errdef.ErrNotFound)
		}
		if _, ended := s.Processes.Exit(initID(r.ID)); ended {
			return fmt.Errorf("the init of its pid namespace has ended: %w", errdef.ErrPhase)
		}
	}
	return nil
}

// sweep takes away what no record knows. Each part goes on when another fails.
func (s *Service) sweep(ctx context.Context, known map[string]monitor.Process) {
	log := klog.FromContext(ctx)
	report := func(what string, err error) {
		if err != nil {
			log.Error(err, "Leftover not taken away; the next start tries again", "what", what)
		}
	}
	for id := range known {
		report("process "+id, s.sweepProcess(ctx, id))
	}
	for _, key := range s.Snapshots.Keys() {
		if owner, _, _ := strings.Cut(key, "-"); !s.hasContainer(ID(owner)) {
			report("snapshot "+key, s.Snapshots.Release(ctx, key))
		}
	}
	var valid []string
	for id := range s.pods.all() {
		valid = append(valid, string(id))
	}
	report("network attachments", s.Network.GC(ctx, valid))
	report("pod directories", s.sweepDirs(s.paths.podsDir(), func(id ID) (bool, error) {
		_, ok := s.pods.all()[id]
		if ok {
			return true, nil
		}
		return false, errors.Join(s.unmountShm(id), namespace.Unpin(s.paths.pins(id)))
	}))
	report("bundles", s.sweepDirs(s.paths.bundlesDir(), func(id ID) (bool, error) { return s.hasContainer(id), s.sweepVolumes(id) }))
	report("cgroups", s.sweepCgroups(ctx))
}

func (s *Service) hasContainer(id ID) bool {
	_, ok := s.containers.all()[id]
	return ok
}

// sweepProcess ends a process that belongs to no container and no pod: an exec whose
// session died with the daemon, or what a lost record was about.
func (s *Service) sweepProcess(ctx context.Context, id string) error {
	pod, isInit := strings.CutPrefix(id, "init-")
	if isInit {
		if p, ok := s.pods.all()[ID(pod)]; ok && p.record().Init != nil {
			return nil
		}
	} else if s.hasContainer(ID(id)) {
		return nil
	}
	if _, ended := s.Processes.Exit(id); !ended {
		if err := s.Processes.Signal(id, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, endLimit)
		defer cancel()
		select {
		case <-s.Processes.Done(id):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.Processes.Forget(ctx, id)
}

func (s *Service) sweepDirs(dir string, keep func(ID) (bool, error)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		kept, err := keep(ID(e.Name()))
		if err != nil || kept {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.RemoveAll(dir+"/"+e.Name()))
	}
	return errors.Join(errs...)
}

// sweepVolumes detaches image volumes of a container that no record knows.
func (s *Service) sweepVolumes(id ID) error {
	if s.hasContainer(id) {
		return nil
	}
	entries, err := os.ReadDir(s.paths.bundle(id) + "/volumes")
	if err != nil {
		return ignoreMissing(err)
	}
	for i := range entries {
		if err := unix.Unmount(s.paths.volume(id, i), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// sweepCgroups removes pods' cgroups that we made and nobody needs any more.
func (s *Service) sweepCgroups(ctx context.Context) error {
	names, err := s.Cgroups.Children(s.CgroupParent)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if _, ok := s.pods.all()[ID(name)]; !ok && len(name) == 64 {
			errs = append(errs, s.removeCgroup(ctx, string(cgroup.Path(s.CgroupParent).Join(name))))
		}
	}
	return errors.Join(errs...)
}
