package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
	"github.com/cri-runtime/cri-runtime/oci/runtime"
	"github.com/cri-runtime/cri-runtime/sandbox/journal"
)

func TestFailedPodLeavesNothing(t *testing.T) {
	b := newBench(t)
	b.net.attach = errBroken
	if _, err := b.RunPod(t.Context(), podConfig("a")); !errors.Is(err, errBroken) {
		t.Fatalf("got %v, want %v", err, errBroken)
	}
	if got := b.Pods(PodFilter{}); len(got) != 0 || b.net.left() != 0 {
		t.Errorf("left: pods %v, attachments %d", got, b.net.left())
	}
	b.net.attach = nil
	b.pod(t, "a") // the name is free again
}

func TestPodThatCannotBeTakenBackStaysVisible(t *testing.T) {
	b := newBench(t)
	b.net.attach, b.net.detach = errBroken, errBroken
	if _, err := b.RunPod(t.Context(), podConfig("a")); err == nil {
		t.Fatal("got no error")
	}
	got := b.Pods(PodFilter{})
	if len(got) != 1 || got[0].State != PodNotReady || got[0].Problem == "" {
		t.Fatalf("got %+v, want one pod that is not ready and says why", got)
	}
	b.net.detach = nil
	if err := b.RemovePod(t.Context(), got[0].ID); err != nil {
		t.Fatal(err)
	}
	if left := b.net.left(); left != 0 {
		t.Errorf("got %d attachments, want none", left)
	}
}

// gone is the context of a caller that has hung up.
func gone(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func TestRetryOfRunPodGetsTheSamePod(t *testing.T) {
	b := newBench(t)
	enter, leave := make(chan struct{}), make(chan struct{})
	b.net.attaching = func() { enter <- struct{}{}; <-leave }
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := b.RunPod(ctx, podConfig("a")); err != nil {
			t.Errorf("first call: got %v, want its work to be done", err)
		}
	})
	<-enter
	if _, err := b.RunPod(gone(t), podConfig("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that joins and goes: got %v, want %v", err, context.Canceled)
	}
	cancel() // the first caller goes too, the work goes on
	ids := make([]ID, 2)
	for i := range ids {
		wg.Go(func() { ids[i] = b.pod(t, "a") })
	}
	leave <- struct{}{}
	wg.Wait()
	if ids[0] != ids[1] || b.net.attaches != 1 {
		t.Errorf("got ids %v after %d attachments, want one pod", ids, b.net.attaches)
	}
	b.net.attaching = nil
	other := podConfig("a")
	other.Hostname = "other"
	if _, err := b.RunPod(t.Context(), other); !errors.Is(err, errdef.ErrExists) {
		t.Errorf("another pod of that name: got %v, want %v", err, errdef.ErrExists)
	}
}

func TestStopSignalIsSentOnceAndShorterGraceCounts(t *testing.T) {
	b := newBench(t)
	b.procs.obey = false
	id := b.started(t, b.pod(t, "a"), "c")
	var wg sync.WaitGroup
	begun := time.Now()
	wg.Go(func() {
		if err := b.StopContainer(t.Context(), id, time.Hour); err != nil {
			t.Errorf("long stop: %v", err)
		}
	})
	wg.Go(func() {
		if err := b.StopContainer(t.Context(), id, 200*time.Millisecond); err != nil {
			t.Errorf("short stop: %v", err)
		}
	})
	wg.Wait()
	if took := time.Since(begun); took > time.Minute {
		t.Errorf("took %v: the shorter grace did not count", took)
	}
	if want := []unix.Signal{unix.SIGTERM, unix.SIGKILL}; !slices.Equal(b.procs.signals, want) {
		t.Errorf("signals: got %v, want %v", b.procs.signals, want)
	}
	v, err := b.Container(id)
	if err != nil || v.State != ContainerExited || v.ExitCode != 137 {
		t.Errorf("got %+v, %v, want exited with 137", v, err)
	}
	if err := b.StopContainer(t.Context(), id, 0); err != nil {
		t.Errorf("stop again: %v", err)
	}
}

func TestProgramThatCannotBeExecuted(t *testing.T) {
	b := newBench(t)
	id := b.container(t, b.pod(t, "a"), "c")
	b.procs.starts = &runtime.ExecError{Code: 127, Err: errBroken}
	if err := b.StartContainer(t.Context(), id); err == nil {
		t.Fatal("got no error")
	}
	v, err := b.Container(id)
	if err != nil || v.State != ContainerExited || v.Reason != reasonStart || v.ExitCode != 127 || v.Message == "" {
		t.Errorf("got %+v, %v, want %s with 127", v, err, reasonStart)
	}
	if v.StartedAt.IsZero() || v.FinishedAt.IsZero() {
		t.Errorf("times are missing: %+v", v)
	}
}

func TestExitThatComesBeforeTheStartReturns(t *testing.T) {
	b := newBench(t)
	b.procs.ends = true
	id := b.started(t, b.pod(t, "a"), "c")
	c, err := b.containers.get(id)
	if err != nil {
		t.Fatal(err)
	}
	<-c.ended
	if v := c.view(); v.State != ContainerExited || v.Reason != reasonCompleted {
		t.Errorf("got %+v, want completed", v)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	b := newBench(t)
	pod := b.pod(t, "a")
	b.images.fail = errBroken
	if _, err := b.CreateContainer(t.Context(), pod, containerConfig("c")); !errors.Is(err, errBroken) {
		t.Fatalf("got %v, want %v", err, errBroken)
	}
	if len(b.containers.all()) != 0 || len(b.images.Keys()) != 0 {
		t.Errorf("left: %v, %v", b.containers.all(), b.images.Keys())
	}
	if _, err := b.CreateContainer(t.Context(), "nope", containerConfig("c")); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("unknown pod: got %v, want %v", err, errdef.ErrNotFound)
	}
}

func TestRestartPutsEveryPhaseRight(t *testing.T) {
	b := newBench(t)
	pod := b.pod(t, "a")
	created, running := b.container(t, pod, "created"), b.started(t, pod, "running")
	ended, lost := b.started(t, pod, "ended"), b.started(t, pod, "lost")
	interrupted := b.container(t, pod, "interrupted")
	c, err := b.containers.get(interrupted)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.step(c, *c.record(), ctrStartAsked); err != nil {
		t.Fatal(err)
	}
	half := podRecord{podBase: &podBase{ID: newID(), Config: podConfig("half"), CreatedAt: time.Now()}, podState: podState{Phase: PodCreating}}
	if err := b.podJournal.Write(string(half.ID), &half); err != nil {
		t.Fatal(err)
	}
	if _, err := namespace.Pin(b.paths.pins(half.ID), namespace.Spec{Net: true}); err != nil {
		t.Fatal(err)
	}
	b.net.attached[string(half.ID)], b.net.attached["stranger"], b.images.keys["stranger"] = true, true, true
	b.procs.exited = nil // the daemon is dead
	b.procs.mu.Lock()
	b.procs.end(string(ended), monitor.Exit{At: time.Now(), Known: true, Code: 3})
	delete(b.procs.procs, string(lost))
	b.procs.mu.Unlock()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	b.open(t)
	for id, want := range map[ID]struct {
		state  ContainerState
		reason string
		code   int32
	}{
		created: {state: ContainerCreated}, running: {state: ContainerRunning}, interrupted: {state: ContainerCreated},
		ended: {ContainerExited, reasonError, 3}, lost: {ContainerExited, reasonUnknown, unknownCode},
	} {
		v, err := b.Container(id)
		if err != nil || v.State != want.state || v.Reason != want.reason || v.ExitCode != want.code {
			t.Errorf("%v: got %v %q %d, %v", want, v.State, v.Reason, v.ExitCode, err)
		}
	}
	if got := b.Pods(PodFilter{}); len(got) != 1 || got[0].ID != pod || got[0].State != PodReady {
		t.Errorf("pods: got %+v, want the one that was ready", got)
	}
	<-b.sweepDone
	if want := filepath.Join(b.paths.pins(half.ID), "net"); !slices.Equal(b.net.detached, []string{want}) {
		t.Errorf("detached: got %q, want the one that was being set up from %q", b.net.detached, want)
	}
	if b.net.left() != 1 || slices.Contains(b.images.Keys(), "stranger") {
		t.Errorf("strangers are left: %v, %v", b.net.attached, b.images.Keys())
	}
	for _, id := range []ID{created, interrupted} {
		if err := b.StartContainer(t.Context(), id); err != nil {
			t.Errorf("start after the restart: %v", err)
		}
	}
}

// TestLeftoversGoBeforeNewPods: the sweep takes what it finds in no record for a leftover,
// so lists, stops and removals go on beside it, but nothing new is made.
func TestLeftoversGoBeforeNewPods(t *testing.T) {
	b := newBench(t)
	pod := b.pod(t, "a")
	id := b.started(t, pod, "c")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	collecting, collect := make(chan struct{}), make(chan struct{})
	b.net.collecting = func() { close(collecting); <-collect }
	b.open(t)
	<-collecting
	if len(b.Pods(PodFilter{})) != 1 {
		t.Error("lists are not complete")
	}
	if err := b.StopContainer(t.Context(), id, 0); err != nil {
		t.Errorf("stop beside the sweep: %v", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { b.container(t, pod, "later") })
	wg.Go(func() { b.pod(t, "later") })
	waitBlocked(t)
	hasty, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := b.CreateContainer(hasty, pod, containerConfig("later")); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "leftovers") {
		t.Errorf("create: got %v, want one that names what it waits for", err)
	}
	if _, err := b.RunPod(hasty, podConfig("later")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("run: got %v, want none before the leftovers are gone", err)
	}
	close(collect)
	wg.Wait()
}

func TestEventsInOrder(t *testing.T) {
	b := newBench(t)
	events, stop := b.Subscribe()
	pod := b.pod(t, "a")
	id := b.started(t, pod, "c")
	if err := b.StopContainer(t.Context(), id, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := b.RemovePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	stop()
	var got []EventKind
	for e := range events {
		if e.Pod == nil {
			t.Error("an event without its pod")
		}
		if e.Container == id {
			got = append(got, e.Kind)
		}
	}
	if want := []EventKind{EventCreated, EventStarted, EventStopped, EventDeleted}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRecordsOfALaterVersionAreNotTakenForStrangers(t *testing.T) {
	b := newBench(t)
	pod := b.pod(t, "a")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	later, err := journal.Open(b.paths.podJournal(), podRecordVersion+1)
	if err != nil {
		t.Fatal(err)
	}
	p, err := b.pods.get(pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := later.Write(string(pod), p.record()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), b.config, b.config.State); err == nil {
		t.Error("opened over a record of a later version")
	}
	if err := b.podJournal.Write(string(pod), p.record()); err != nil {
		t.Fatal(err)
	}
	b.open(t)
	if b.net.left() != 1 {
		t.Error("the pod was taken away")
	}
}

// A daemon that took records for damaged has swept away what their pods had. The one that
// takes them back shows those pods as over, which the kubelet removes.
func TestRecordTakenBackIsOfAPodThatIsOver(t *testing.T) {
	b := newBench(t)
	host := podConfig("host") // it has no namespace to miss
	host.Security.Namespaces = Namespaces{Network: ModeNode, IPC: ModeNode, PID: ModeNode}
	id, err := b.RunPod(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	ids := []ID{b.pod(t, "a"), id}
	reopen := func(from, to string) {
		t.Helper()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			path := filepath.Join(b.paths.podJournal(), string(id))
			if err := os.Rename(path+from, path+to); err != nil {
				t.Fatal(err)
			}
		}
		b.open(t)
		<-b.sweepDone
	}
	ready := func(want Phase) {
		t.Helper()
		for _, id := range ids {
			if p, err := b.pods.get(id); err != nil || p.record().Phase != want {
				t.Errorf("pod %s: got %+v, %v, want %v", id, p, err, want)
			}
		}
	}
	reopen(".json", ".json.bad")
	ready(PodRunning) // nobody has swept
	reopen(".json", ".unknown")
	if n := len(b.pods.all()); n != 0 {
		t.Fatalf("%d pods, want none", n)
	}
	reopen(".unknown", ".json.bad")
	ready(PodStopping)
}

func TestStartThatIsWorthARetryLeavesTheContainerCreated(t *testing.T) {
	b := newBench(t)
	id := b.container(t, b.pod(t, "a"), "c")
	b.procs.starts = errdef.ErrRetry
	if err := b.StartContainer(t.Context(), id); !errors.Is(err, errdef.ErrRetry) {
		t.Fatalf("got %v, want %v", err, errdef.ErrRetry)
	}
	if v, err := b.Container(id); err != nil || v.State != ContainerCreated {
		t.Errorf("got %+v, %v, want it created", v, err)
	}
	b.procs.starts = nil
	if err := b.StartContainer(t.Context(), id); err != nil {
		t.Errorf("retry: %v", err)
	}
}
