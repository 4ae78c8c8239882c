package sandbox

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
)

// TestReadingsAreShared makes one reading for all who ask within a second, and a new one
// for those who ask later.
func TestReadingsAreShared(t *testing.T) {
	b := newBench(t)
	pod := b.pod(t, "a")
	c := b.started(t, pod, "c")
	one, err := b.ContainerStats(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	list, err := b.ListContainerStats(t.Context(), ContainerFilter{})
	if err != nil || len(list) != 1 || list[0].Stats != one.Stats {
		t.Errorf("list: got %+v, %v, want the reading of %v", list, err, one.Stats.At)
	}
	p, err := b.PodStats(t.Context(), pod)
	if err != nil || len(p.Containers) != 1 || p.Containers[0].Stats != one.Stats {
		t.Errorf("pod: got %+v, %v, want the container's reading of %v", p.Containers, err, one.Stats.At)
	}
	if pods, err := b.ListPodStats(t.Context(), PodFilter{}); err != nil || len(pods) != 1 || pods[0].Stats != p.Stats {
		t.Errorf("pods: got %+v, %v, want the reading of %v", pods, err, p.Stats.At)
	}
	// As if it had been made earlier.
	old := *one.Stats
	old.At = old.At.Add(-sampleMaxAge)
	got, err := b.containers.get(c)
	if err != nil {
		t.Fatal(err)
	}
	got.usage.last = &old
	if next, err := b.ContainerStats(t.Context(), c); err != nil || next.Stats == &old || !next.Stats.At.After(old.At) {
		t.Errorf("after a second: got %+v, %v, want a new reading", next.Stats, err)
	}
}

// TestStatsLetGoOfNetwork stops a pod whose counters are being read: the namespace of its
// network, and so its links, must not stay for that.
func TestStatsLetGoOfNetwork(t *testing.T) {
	b := newBench(t)
	id := b.pod(t, "a")
	if s, err := b.PodStats(t.Context(), id); err != nil || s.Stats.At.IsZero() {
		t.Fatalf("stats: got %+v, %v", s.Stats, err)
	}
	p, err := b.pods.get(id)
	if err != nil {
		t.Fatal(err)
	}
	if p.usage.net == nil {
		t.Fatal("the table of network devices is not kept open")
	}
	r := p.record() // as a reader has it that is slower than the stop
	netns, err := namespace.Inode(r.netNS())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.StopPod(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := p.usage.read(b.Cgroups, r); err == nil || p.usage.net != nil {
		t.Errorf("a late reading: got %v, want that nothing is opened again (namespace %d)", err, netns)
	}
	if s, err := b.PodStats(t.Context(), id); err != nil || s.Stats == nil || len(s.Stats.Network) != 0 {
		t.Errorf("stats of a stopped pod: got %+v, %v, want none", s.Stats, err)
	}
}

// TestRate makes a rate of readings that are far enough apart, and keeps it between them.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m sampler
		for i, step := range []struct {
			after time.Duration
			usage uint64
			want  uint64 // 0: none
		}{
			{0, 1000, 0},
			{rateSpan / 2, 2000, 0},
			{rateSpan / 2, 1000 + uint64(rateSpan), 1e9},
			{rateSpan / 2, 1000 + uint64(rateSpan), 1e9},
			{rateSpan / 2, 1000 + uint64(rateSpan)*3/2, 5e8},
			{rateSpan, 0, 5e8}, // a counter that went back says nothing
		} {
			time.Sleep(step.after)
			now := Stats{At: time.Now()}
			now.CPU.UsageNanoCores = m.rate(now.At, step.usage)
			m.last = &now
			if got := now.CPU.UsageNanoCores; (got == nil) != (step.want == 0) || got != nil && *got != step.want {
				t.Errorf("step %d: got %v, want %d", i, got, step.want)
			}
		}
	})
}

// TestViewsAreShared gives all readers of one record the same view, and those of the next
// one another.
func TestViewsAreShared(t *testing.T) {
	b := newBench(t)
	pod := b.pod(t, "a")
	id := b.container(t, pod, "c")
	before, err := b.Container(id)
	if err != nil {
		t.Fatal(err)
	}
	if list := b.Containers(ContainerFilter{Pod: pod}); len(list) != 1 || list[0] != before {
		t.Errorf("list: got %v, want the same view", list)
	}
	before.Memo.Store("made of it")
	if err := b.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	after, err := b.Container(id)
	if err != nil || after.State != ContainerRunning || after.Memo.Load() != nil || before.State != ContainerCreated {
		t.Errorf("after the start: got %+v, %v, want a new view of a running container", after, err)
	}
	p1, _ := b.Pod(pod)
	p2 := b.Pods(PodFilter{})
	if len(p2) != 1 || p1 != p2[0] {
		t.Errorf("pods: got %v and %v, want the same view", p1, p2)
	}
	if err := b.StopPod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if p3, err := b.Pod(pod); err != nil || p3 == p1 || p3.State != PodNotReady || p1.State != PodReady {
		t.Errorf("stopped pod: got %+v, %v", p3, err)
	}
}

// TestIndex finds by id, by owner and by both, in tables that stay as they were taken.
func TestIndex(t *testing.T) {
	owner := map[string]ID{"a1": "a", "a2": "a", "b1": "b", "new a1": "a"}
	x := newIndex("thing", func(s string) ID { return owner[s] })
	for _, s := range []string{"a1", "a2", "b1"} {
		x.put(ID(s), s)
	}
	old := x.of("a")
	among := func(id, owner ID) []string { return slices.Sorted(x.among(id, owner)) }
	for _, tc := range []struct {
		id, owner ID
		want      []string
	}{
		{"", "", []string{"a1", "a2", "b1"}}, {"a2", "", []string{"a2"}}, {"", "a", []string{"a1", "a2"}},
		{"", "none", []string{"a1", "a2", "b1"}}, // it may be the beginning of an id
	} {
		if got := among(tc.id, tc.owner); !slices.Equal(got, tc.want) {
			t.Errorf("among %q of %q: got %v, want %v", tc.id, tc.owner, got, tc.want)
		}
	}
	x.put("a1", "new a1")
	x.drop("b1")
	x.drop("b1")
	if got := x.of("a"); !slices.Equal(got, []string{"a2", "new a1"}) || !slices.Equal(old, []string{"a1", "a2"}) {
		t.Errorf("of a: got %v, want the new one; before: %v", got, old)
	}
	if got := x.of("b"); got != nil || len(x.now.Load().byOwner) != 1 {
		t.Errorf("of b: got %v in %v, want no trace of it", got, x.now.Load().byOwner)
	}
}
