package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// clock is a time that only the test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func testProgress() (*progress, *clock) {
	c := &clock{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	p := newProgress()
	p.now = c.now
	return p, c
}

func only(t *testing.T, p *progress) PullStatus {
	t.Helper()
	list := p.list()
	if len(list) != 1 {
		t.Fatalf("pulls: got %d, want 1", len(list))
	}
	return list[0]
}

// TestProgressArithmetic follows one pull of three layers through its life.
func TestProgressArithmetic(t *testing.T) {
	p, c := testProgress()
	pull := p.begin("r.example/x:1")
	pull.observer().Host("mirror.example")
	pull.observer().Bytes(1000, false)
	pull.observer().Waiting("429", c.now().Add(time.Minute))
	s := only(t, p)
	if s.Phase != PhaseResolving || s.Host != "mirror.example" || s.Waiting == nil || s.Waiting.Until.Sub(s.Started) != time.Minute || s.Layers == nil {
		t.Errorf("resolving: got %+v", s)
	}
	layers := pull.pulling([]descriptor{{Digest: "sha256:a", Size: 1000}, {Digest: "sha256:b", Size: 500}, {Digest: "sha256:c", Size: 300}})
	a, b, shared := layers[0], layers[1], layers[2]
	shared.shared()
	c.pass(10 * time.Second)
	a.Host("mirror.example")
	a.Bytes(400, true)
	for range 4 {
		c.pass(500 * time.Millisecond)
		a.Bytes(100, false)
	}
	if _, err := io.Copy(io.Discard, a.unpacking(strings.NewReader(strings.Repeat("x", 3000)))); err != nil {
		t.Fatal(err)
	}
	b.Waiting("r.example: 503", c.now().Add(2*time.Second))
	s = only(t, p)
	if s.Phase != PhasePulling || s.Total != 1800 || s.Done != 1100 || s.Resumed != 400 || s.Shared != 300 || s.Unpacked != 3000 || s.Seconds != 12 {
		t.Errorf("sums: got %+v", s)
	}
	if l := s.Layers[0]; l.State != LayerDownloading || l.Done != 800 || l.Resumed != 400 || l.Rate < 200 || l.Rate > 270 || l.Waiting != nil {
		t.Errorf("first layer: got %+v", l)
	}
	if l := s.Layers[1]; l.State != LayerWaiting || l.Waiting.Reason != "r.example: 503" || l.Done != 0 {
		t.Errorf("second layer: got %+v", l)
	}
	if l := s.Layers[2]; l.State != LayerShared || l.Done != 300 {
		t.Errorf("third layer: got %+v", l)
	}
	a.Restarted() // what came was damaged
	if l := only(t, p).Layers[0]; l.Done != 0 || l.Resumed != 0 || l.Unpacked != 0 || l.State != LayerDownloading {
		t.Errorf("restarted: got %+v", l)
	}
	a.Bytes(1000, false)
	b.Host("r.example")
	b.Bytes(500, false)
	if l := only(t, p).Layers[1]; l.State != LayerUnpacking || l.Waiting != nil || l.Host != "r.example" {
		t.Errorf("all bytes here: got %+v", l)
	}
	a.end(nil)
	b.end(nil)
	pull.enter(PhasePublishing)
	if s := only(t, p); s.Phase != PhasePublishing || s.Done != s.Total || s.Rate != 0 || s.Ended != nil {
		t.Errorf("publishing: got %+v", s)
	}
	c.pass(time.Second)
	pull.end("sha256:id", nil)
	s = only(t, p)
	if s.Phase != PhaseDone || s.Image != "sha256:id" || s.Error != "" || !s.Ended.Equal(c.now()) || s.Seconds != 13 {
		t.Errorf("done: got %+v", s)
	}
	counts := (&Store{progress: p}).PullCounts()
	if counts.Results["ok"] != 1 || counts.Hosts["mirror.example"] != 2400 || counts.Hosts["r.example"] != 500 || counts.Resumed != 400 {
		t.Errorf("counts: got %+v", counts)
	}
}

// TestRate: the average covers three seconds, silence counts, and so does a late start.
func TestRate(t *testing.T) {
	second := func(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
	for name, tc := range map[string]struct {
		add func(m *meter)
		at  time.Duration
		min int64
		max int64
	}{
		"nothing":          {func(*meter) {}, second(5), 0, 0},
		"steady":           {steady(0, 10, 1000), second(10), 950, 1050},
		"just begun":       {steady(60, 60.5, 1000), second(60.5), 900, 1100},
		"first bytes":      {func(m *meter) { m.add(second(60.1), 100) }, second(60.1), 200, 200}, // no less than half a second
		"silent for 2 s":   {steady(0, 10, 1000), second(12), 300, 500},
		"silent for 4 s":   {steady(0, 10, 1000), second(14), 0, 0},
		"after a long gap": {func(m *meter) { steady(0, 10, 1000)(m); steady(3600, 3602, 500)(m) }, second(3602), 450, 550},
		"faster than ever": {func(m *meter) { steady(0, 10, 1000)(m); steady(10, 14, 9000)(m) }, second(14), 8500, 9500},
	} {
		t.Run(name, func(t *testing.T) {
			var m meter
			tc.add(&m)
			if got := m.perSecond(tc.at); got < tc.min || got > tc.max {
				t.Errorf("got %d, want %d to %d", got, tc.min, tc.max)
			}
		})
	}
}

// steady adds perSecond bytes a second, in parts of 10 ms.
func steady(from, to float64, perSecond int64) func(*meter) {
	return func(m *meter) {
		for at := time.Duration(from * float64(time.Second)); at < time.Duration(to*float64(time.Second)); at += 10 * time.Millisecond {
			m.add(at, perSecond/100)
		}
	}
}

// TestEndedPullsAreForgotten: ten are kept, for a quarter of an hour, those in flight for
// as long as they fly.
func TestEndedPullsAreForgotten(t *testing.T) {
	p, c := testProgress()
	p.begin("flying")
	for i := range 15 {
		pull := p.begin(fmt.Sprint("r.example/", i))
		c.pass(time.Minute)
		pull.end("", errors.New("no"))
		pull.end("", nil) // a second end is none
	}
	list := p.list()
	if len(list) != 11 || list[0].Ref != "flying" || list[1].Ref != "r.example/5" || list[10].Ref != "r.example/14" || list[10].Error != "no" {
		t.Errorf("got %d: %+v", len(list), list)
	}
	c.pass(10 * time.Minute)
	if list := p.list(); len(list) != 7 || list[1].Ref != "r.example/9" {
		t.Errorf("10 minutes later: got %d: %+v", len(list), list)
	}
	c.pass(time.Hour)
	if s := only(t, p); s.Ref != "flying" || p.results["other"] != 15 || p.results["ok"] != 0 {
		t.Errorf("an hour later: got %+v, results %v", s, p.results)
	}
}

func TestResults(t *testing.T) {
	for want, err := range map[string]error{
		"ok": nil, "canceled": context.Canceled, "denied": errdef.ErrDenied, "not_found": errdef.ErrNotFound, "invalid": errdef.ErrInvalid,
		"exhausted": unix.ENOSPC, "unavailable": errdef.WithPrefix(errdef.RegistryUnavailable, errors.New("x")),
		"signature": errdef.WithPrefix(errdef.SignatureValidationFailed, errdef.ErrInvalid), "other": errors.New("x"),
	} {
		if err != nil {
			err = fmt.Errorf("pull: %w", err)
		}
		if got := result(err); got != want {
			t.Errorf("%v: got %s, want %s", err, got, want)
		}
	}
}

// TestManyHosts: names of registries come from users, and are not kept without end.
func TestManyHosts(t *testing.T) {
	p, _ := testProgress()
	for i := range 1000 {
		o := p.begin("x").observer()
		o.Host(fmt.Sprint("host", i))
		o.Bytes(1, false)
		if o.name() != fmt.Sprint("host", i) {
			t.Fatalf("host %d is shown as %s", i, o.name())
		}
	}
	c := (&Store{progress: p}).PullCounts()
	if len(c.Hosts) != hostsKept+1 || c.Hosts[otherHosts] != 1000-hostsKept {
		t.Errorf("got %d hosts, %d bytes of others", len(c.Hosts), c.Hosts[otherHosts])
	}
}

// TestReadersAndWriters finds races; the sum must be right at the end.
func TestReadersAndWriters(t *testing.T) {
	p := newProgress()
	pull := p.begin("x")
	layers := pull.pulling([]descriptor{{Digest: "sha256:a", Size: 1 << 20}, {Digest: "sha256:b", Size: 1 << 20}})
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if s := p.list()[0]; s.Done > s.Total {
					t.Errorf("got %d of %d bytes", s.Done, s.Total)
				}
			}
		}
	})
	for _, l := range layers {
		writers.Go(func() {
			for i := range 1024 {
				l.Host(fmt.Sprint("h", i%2))
				if i%100 == 0 {
					l.Waiting("429", time.Now())
				}
				l.Bytes(1024, false)
			}
			l.end(nil)
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	if s := only(t, p); s.Done != 2<<20 {
		t.Errorf("got %d bytes", s.Done)
	}
}

// TestBytesAllocateNothing: they are told of for every read of every layer.
func TestBytesAllocateNothing(t *testing.T) {
	p := newProgress()
	l := p.begin("x").pulling([]descriptor{{Digest: "sha256:a", Size: 1 << 40}})[0]
	l.Host("h")
	if n := testing.AllocsPerRun(1000, func() { l.Bytes(65536, false); l.Host("h") }); n != 0 {
		t.Errorf("got %v allocations", n)
	}
}

// TestProgressOfARealPull looks at a pull whose layer stands still half-way, through
// Pulls and by reference, and at what is left of it.
func TestProgressOfARealPull(t *testing.T) {
	r := newReg(t)
	l := base(t)
	packed := pack(t, "gzip", l)
	_, id := r.push(t, "x", "1", testImage{pack: "gzip", layers: [][]byte{l}})
	half, goOn := make(chan struct{}), make(chan struct{})
	r.setHook(func(w http.ResponseWriter, q *http.Request) bool {
		if q.Method != http.MethodGet || !strings.Contains(q.URL.Path, sum(packed)) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(packed)))
		_, _ = w.Write(packed[:len(packed)/2])
		w.(http.Flusher).Flush()
		close(half)
		select {
		case <-goOn:
		case <-q.Context().Done():
		}
		_, _ = w.Write(packed[len(packed)/2:])
		return true
	})
	s := openTest(t, Options{})
	done := make(chan error, 1)
	ref := r.host() + "/x:1"
	go func() {
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		done <- err
	}()
	<-half
	var p PullStatus
	for deadline := time.Now().Add(10 * time.Second); p.Done != int64(len(packed)/2); {
		if time.Now().After(deadline) {
			t.Fatalf("got %+v, want %d bytes", p, len(packed)/2)
		}
		p, _ = s.Pulling(ref)
	}
	if p.Phase != PhasePulling || p.Total != int64(len(packed)) || p.Layers[0].State != LayerDownloading || p.Layers[0].Host != r.host() ||
		p.Layers[0].Digest != Digest(sum(packed)) || p.Rate == 0 {
		t.Errorf("half-way: got %+v", p)
	}
	if _, ok := s.Pulling(r.host() + "/x:2"); ok {
		t.Error("another reference is shown as being pulled")
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Pulling(ref); ok {
		t.Error("it is shown as being pulled after its end")
	}
	mustPull(t, s, ref) // it is here
	list := s.Pulls()
	if len(list) != 2 || string(list[0].Image) != id || list[0].Phase != PhaseDone || list[0].Unpacked < int64(len(l)) || len(list[1].Layers) != 0 {
		t.Errorf("afterwards: got %+v", list)
	}
	if c := s.PullCounts(); c.Results["ok"] != 2 || c.Hosts[r.host()] < uint64(len(packed)) {
		t.Errorf("counts: got %+v", c)
	}
	// What people read is JSON, and reads back the same.
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var back []PullStatus
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(back)
	if err != nil || !bytes.Equal(text, again) {
		t.Errorf("JSON: got %s, want %s, %v", again, text, err)
	}
}

// TestLayerOfAnotherPull: who waits for somebody else's transfer says so, and shares it.
func TestLayerOfAnotherPull(t *testing.T) {
	r := newReg(t)
	l := base(t)
	packed := pack(t, "gzip", l)
	for _, tag := range []string{"1", "2"} {
		r.push(t, "x", tag, testImage{pack: "gzip", layers: [][]byte{l}})
	}
	arrived, goOn := make(chan struct{}, 2), make(chan struct{})
	r.setHook(func(_ http.ResponseWriter, q *http.Request) bool {
		if q.Method == http.MethodGet && strings.Contains(q.URL.Path, sum(packed)) {
			arrived <- struct{}{}
			select {
			case <-goOn:
			case <-q.Context().Done():
			}
		}
		return false
	})
	s := openTest(t, Options{})
	done := make(chan error, 2)
	pull := func(tag string) {
		_, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/x:" + tag})
		done <- err
	}
	go pull("1")
	<-arrived
	go pull("2")
	var second PullStatus
	for deadline := time.Now().Add(10 * time.Second); len(second.Layers) == 0 || second.Layers[0].Waiting == nil; {
		if time.Now().After(deadline) {
			t.Fatalf("got %+v, want a reason to wait", second)
		}
		second, _ = s.Pulling(r.host() + "/x:2")
	}
	if l := second.Layers[0]; l.State != LayerWaiting || l.Waiting.Reason != "another pull transfers it" || l.Waiting.Until != nil {
		t.Errorf("got %+v", l)
	}
	close(goOn)
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if list := s.Pulls(); list[0].Layers[0].State != LayerDone || list[1].Layers[0].State != LayerShared || list[1].Shared != int64(len(packed)) {
		t.Errorf("afterwards: got %+v", list)
	}
}

func BenchmarkObserve(b *testing.B) {
	l := newProgress().begin("x").pulling([]descriptor{{Digest: "sha256:a", Size: 1 << 40}})[0]
	l.Host("h")
	for b.Loop() {
		l.Bytes(65536, false)
	}
}
