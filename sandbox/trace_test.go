package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// The parts of an operation follow each other without a gap, and the first one begins
// with it.
func TestStageHasNoGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newStage()
		time.Sleep(time.Second) // before the first part: it counts to it
		st.enter("a")
		time.Sleep(2 * time.Second)
		st.enter("b")
		time.Sleep(3 * time.Second)
		if got := st.String(); got != `"b" (for 3s)` {
			t.Errorf("got %s", got)
		}
		op := st.end(errors.New(strings.Repeat("x", 2000)))
		time.Sleep(time.Second)
		if again := st.end(nil); again.Took() != op.Took() {
			t.Errorf("the operation took %v, later %v", op.Took(), again.Took())
		}
		want := []Step{{"a", 3 * time.Second}, {"b", 3 * time.Second}}
		if !slices.Equal(op.Steps, want) || op.Took() != 6*time.Second || len(op.Error) > traceErrorLimit+3 {
			t.Errorf("got %+v, want %v", op, want)
		}
	})
}

func opNames(t *Trace) []string {
	var names []string
	for _, op := range t.Ops {
		names = append(names, strings.TrimSpace(op.Name+" "+op.Container))
	}
	return names
}

// fakePulls tells of one pull.
type fakePulls struct{ status image.PullStatus }

func (f *fakePulls) LastPull(string) (image.PullStatus, bool) { return f.status, true }

func TestTraceOfAStart(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	config := podConfig("a")
	config.LogDirectory = t.TempDir()
	pod, err := b.RunPod(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ended := now.Add(3 * time.Second)
	b.Pulls = &fakePulls{image.PullStatus{Started: now, Ended: &ended, Phases: []image.PhaseSince{
		{Phase: image.PhaseResolving, Since: now.Add(-time.Hour)}, // the call joined it later
		{Phase: image.PhasePulling, Since: now.Add(time.Second)}, {Phase: image.PhaseDone, Since: now.Add(3 * time.Second)},
	}}}
	done := b.Pulling(ctx, config.Metadata, "example.com/a:1")
	img, err := b.images.Resolve("img")
	if err != nil {
		t.Fatal(err)
	}
	done(img.ID, nil)
	c := containerConfig("web")
	c.LogPath = "0.log"
	id, err := b.CreateContainer(ctx, pod, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.StartContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(config.LogDirectory, "0.log")
	first := time.Now().Add(time.Second).Round(0)
	if err := os.WriteFile(log, []byte(first.Format(time.RFC3339Nano)+" stdout F hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{"RunPodSandbox", "PullImage web", "CreateContainer web", "StartContainer web"}
	check := func() {
		t.Helper()
		for _, name := range []string{string(pod), string(pod[:10]), "ns/a"} {
			tr, err := b.Trace(name)
			if err != nil {
				t.Fatal(err)
			}
			if got := opNames(tr); !slices.Equal(got, want) || tr.State != PodRunning.String() {
				t.Fatalf("%s: got %v, %s, want %v", name, got, tr.State, want)
			}
			for _, op := range tr.Ops {
				if op.Running || op.Error != "" || len(op.Steps) == 0 || op.Begun.IsZero() {
					t.Errorf("got %+v", op)
				}
			}
			if pull := tr.Ops[1]; pull.Image != "example.com/a:1" || pull.Steps[len(pull.Steps)-1].Name != string(image.PhasePulling) {
				t.Errorf("pull: got %+v", pull)
			}
			if at := tr.Ops[3].FirstLog; at == nil || !at.Equal(first) {
				t.Errorf("first log line: got %v, want %v", at, first)
			}
		}
	}
	check()
	info, err := b.PodInfo(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	if tr, ok := info["trace"].(*Trace); !ok || len(tr.Ops) != len(want) {
		t.Errorf("verbose status: got %v", info["trace"])
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b.open(t) // it is in the records
	check()
	if err := os.WriteFile(log+".20261121", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if tr, err := b.Trace("ns/a"); err != nil || tr.Ops[3].FirstLog != nil {
		t.Errorf("after a rotation: got %v, %v, want no first line", tr.Ops[3].FirstLog, err)
	}
}

// The operator's question: why is this pod stuck? It has no id yet for who asked for it.
func TestStuckPodSaysWhy(t *testing.T) {
	b := newBench(t)
	enter, leave := make(chan struct{}, 1), make(chan struct{})
	b.net.attaching = func() { enter <- struct{}{}; <-leave }
	var wg sync.WaitGroup
	wg.Go(func() { b.pod(t, "a") })
	<-enter
	tr, err := b.Trace("ns/a")
	if err != nil {
		t.Fatal(err)
	}
	// What a plugin is: a child with the pod's id in its environment.
	plugin := exec.CommandContext(t.Context(), "sleep", "60")
	plugin.Env = []string{"CNI_CONTAINERID=" + string(tr.Pod)}
	if err := plugin.Start(); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { b.pod(t, "a") }) // the retry of a kubelet
	for tr.Ops[0].Joined == 0 {
		if tr, err = b.Trace(string(tr.Pod)); err != nil {
			t.Fatal(err)
		}
	}
	_ = plugin.Process.Kill()
	_ = plugin.Wait()
	close(leave)
	wg.Wait()
	op := tr.Ops[0]
	if len(tr.Ops) != 1 || !op.Running || op.Name != opRunPod || op.Steps[len(op.Steps)-1].Name != "attach network" || tr.State != PodCreating.String() {
		t.Errorf("got %+v", tr)
	}
	if !strings.Contains(op.Waits, "plugin sleep") {
		t.Errorf("waits: got %q, want the plugin", op.Waits)
	}
}

func TestFailedStartIsRemembered(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	var mu sync.Mutex
	var told []string
	b.Traced = func(_ context.Context, tr *Trace) {
		mu.Lock()
		defer mu.Unlock()
		for _, op := range tr.Ops {
			told = append(told, tr.Name+" "+op.Name+" "+map[bool]string{true: "failed", false: "done"}[op.Error != ""])
		}
	}
	b.net.attach = errBroken
	for range 3 {
		if _, err := b.RunPod(ctx, podConfig("a")); !errors.Is(err, errBroken) {
			t.Fatal(err)
		}
	}
	tr, err := b.Trace("ns/a")
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.Ops) != 1 || tr.State != "failed" || !strings.Contains(tr.Ops[0].Error, errBroken.Error()) {
		t.Fatalf("got %+v, want the last failure", tr)
	}
	if last := tr.Ops[0].Steps[len(tr.Ops[0].Steps)-1].Name; last != "attach network" {
		t.Errorf("it failed in %q, want in the network", last)
	}
	if again, err := b.Trace(string(tr.Pod[:12])); err != nil || again.Pod != tr.Pod {
		t.Errorf("by the id of a log line: got %v, %v", again, err)
	}
	b.net.attach = nil
	pod := b.pod(t, "a")
	bad := containerConfig("c")
	bad.Image = "none"
	if _, err := b.CreateContainer(ctx, pod, bad); err == nil {
		t.Fatal("got no error")
	}
	id := b.container(t, pod, "d")
	b.procs.starts = errBroken
	if err := b.StartContainer(ctx, id); err == nil {
		t.Fatal("got no error")
	}
	b.procs.starts = nil
	if tr, err = b.Trace("ns/a"); err != nil {
		t.Fatal(err)
	}
	var failed []string
	for _, op := range tr.Ops {
		if op.Error != "" {
			failed = append(failed, op.Name+" "+op.Container+": "+op.Steps[len(op.Steps)-1].Name)
		}
	}
	if want := []string{"CreateContainer c: find image", "StartContainer d: compile plan"}; !slices.Equal(failed, want) {
		t.Errorf("got %q, want %q", failed, want)
	}
	mu.Lock()
	defer mu.Unlock()
	want := []string{"a RunPodSandbox failed", "a RunPodSandbox failed", "a RunPodSandbox failed", "a RunPodSandbox done",
		"a CreateContainer failed", "a CreateContainer done", "a StartContainer failed"}
	if !slices.Equal(told, want) {
		t.Errorf("told: got %q, want %q", told, want)
	}
}

// A container that restarts for ever has a record that does not grow.
// A pod that could not be taken back still has a record, which is younger than the
// operation that failed.
func TestFailedTakeBackIsShown(t *testing.T) {
	b := newBench(t)
	b.net.attach, b.net.detach = errBroken, errBroken
	if _, err := b.RunPod(t.Context(), podConfig("a")); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	for id := range b.pods.all() {
		for _, name := range []string{"ns/a", string(id)} {
			tr, err := b.Trace(name)
			if err != nil || len(tr.Ops) != 1 || tr.Ops[0].Name != opRunPod || !strings.Contains(tr.Ops[0].Error, errBroken.Error()) {
				t.Errorf("%s: got %+v, %v, want the failed %s", name, tr, err, opRunPod)
			}
		}
	}
	if n := len(b.pods.all()); n != 1 {
		t.Errorf("%d pods left, want the one", n)
	}
}

func TestManyRestartsKeepTheFirstAndTheLast(t *testing.T) {
	b := newBench(t)
	pod := b.pod(t, "a")
	var last ID
	for attempt := range uint32(12) {
		c := containerConfig("web")
		c.Metadata.Attempt = attempt
		id, err := b.CreateContainer(t.Context(), pod, c)
		if err != nil {
			t.Fatal(err)
		}
		if last != "" { // as the kubelet does, after the next one is there
			if err := b.RemoveContainer(t.Context(), last); err != nil {
				t.Fatal(err)
			}
		}
		last = id
	}
	tr, err := b.Trace(string(pod))
	if err != nil {
		t.Fatal(err)
	}
	var attempts []uint32
	for _, op := range tr.Ops {
		if op.Name == opCreate {
			attempts = append(attempts, op.Attempt)
		}
	}
	if want := []uint32{0, 8, 9, 10, 11}; !slices.Equal(attempts, want) {
		t.Errorf("got attempts %v, want %v", attempts, want)
	}
}

// What is remembered beside the records is bounded, and a pull for no pod is not.
func TestRecentIsBounded(t *testing.T) {
	s := &Service{pods: newIndex("pod", func(*pod) ID { return "" }), containers: newIndex("container", func(*container) ID { return "" })}
	s.Pulling(t.Context(), Metadata{}, "nobody's")(image.ID("x"), nil)
	if len(s.recent.ops) != 0 {
		t.Error("a pull for no pod is remembered")
	}
	for range 3 * recentKept {
		s.Pulling(t.Context(), Metadata{Name: "p", Namespace: "ns", UID: string(newID())}, "r")("", errors.New(strings.Repeat("x", 9000)))
	}
	if len(s.recent.ops) != recentKept {
		t.Errorf("got %d, want %d", len(s.recent.ops), recentKept)
	}
	if text, err := json.Marshal(s.recent.ops[0].TraceOp); err != nil || len(text) > 2*traceErrorLimit {
		t.Errorf("one has %d bytes (%v)", len(text), err)
	}
	if _, err := s.Trace("ns/other"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("got %v, want %v", err, errdef.ErrNotFound)
	}
}

func TestFirstLog(t *testing.T) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 5000, time.UTC)
	for name, tc := range map[string]struct {
		text string
		want bool
	}{
		"a line":            {at.Format(time.RFC3339Nano) + " stdout F x\n", true},
		"nothing":           {"", false},
		"of an earlier one": {at.Add(-time.Hour).Format(time.RFC3339Nano) + " stdout F x\n", false},
		"no log":            {"hello world, this is a text of forty characters", false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "[0].log")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got := firstLog(path, at.Add(-time.Second))
			if (got != nil) != tc.want || got != nil && !got.Equal(at) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	link := filepath.Join(t.TempDir(), "0.log")
	if err := os.Symlink("/etc/passwd", link); err != nil {
		t.Fatal(err)
	}
	if got := firstLog(link, at); got != nil {
		t.Errorf("a link was followed: %v", got)
	}
}

// BenchmarkStage is what tracing costs an operation of six parts.
func BenchmarkStage(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		st := newStage()
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			st.enter(name)
		}
		st.end(nil)
	}
}
