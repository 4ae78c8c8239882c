package registry

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cri-runtime/cri-runtime/test/faulty"
)

func newMemory() *memory { return &memory{hosts: map[string]*trouble{}, wrong: map[string]uint64{}} }

// TestPenalty: a silent host is looked at in the background once its penalty, which
// grows, ran out; a slow one is asked again then.
func TestPenalty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
			for range 3 { // one outage, several connections
				m.troubled("a", silent, 0)
			}
			time.Sleep(want*time.Second - time.Millisecond)
			if ill, probe := m.ill("a"); !ill || probe {
				t.Errorf("before %d s: ill %v, probe %v", want, ill, probe)
			}
			time.Sleep(2 * time.Millisecond)
			if ill, probe := m.ill("a"); !ill || !probe {
				t.Errorf("after %d s: ill %v, probe %v", want, ill, probe)
			}
			if ill, probe := m.ill("a"); !ill || probe {
				t.Errorf("while probing: ill %v, probe %v", ill, probe)
			}
		}
		m.well("a", slow)
		if ill, _ := m.ill("a"); !ill {
			t.Error("a silent host got well without an answer")
		}
		m.well("a", silent)
		if ill, probe := m.ill("a"); ill || probe {
			t.Errorf("after an answer: ill %v, probe %v", ill, probe)
		}
		m.troubled("b", slow, 30*time.Second)
		m.well("b", silent)
		if ill, _ := m.ill("b"); !ill {
			t.Error("a slow host got well by answering")
		}
		time.Sleep(31 * time.Second)
		if ill, probe := m.ill("b"); ill || probe {
			t.Errorf("slow, after its time: ill %v, probe %v", ill, probe)
		}
		time.Sleep(2 * time.Hour)
		if m.troubled("c", silent, 0); len(m.hosts) != 1 {
			t.Errorf("remembered: %d hosts, want only the last", len(m.hosts))
		}
	})
}

// silentServer takes connections and never says a word.
func silentServer(t *testing.T) (address string, connections func() int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := make(chan net.Conn, 1000)
	done := make(chan struct{})
	go func() { // ends with the listener
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			taken <- c
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
		close(taken)
		for c := range taken {
			_ = c.Close()
		}
	})
	return ln.Addr().String(), func() int { return len(taken) }
}

// TestDeadMirrorCostsItsTimeOnce: of many documents and blobs in several sessions, one
// waits for the mirror.
func TestDeadMirrorCostsItsTimeOnce(t *testing.T) {
	cfg := quick(t, "")
	cfg.Stall = 500 * time.Millisecond
	c := client(t, cfg)
	dead, connections := silentServer(t)
	data := randomBytes(100000)
	up := faulty.New(t, faulty.Plain)
	up.PushBlob("x", data)
	start := time.Now()
	for range 3 {
		s := sessionOf(t, c, Credentials{}, "", "http://"+dead, up.URL)
		for range 5 {
			if err := fetch(t.Context(), s, data, nil); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
	}
	if took := time.Since(start); connections() != 1 || took < 500*time.Millisecond {
		t.Errorf("%d connections to the dead mirror in %v, want 1", connections(), took)
	}
}

// TestMirrorComesBack: a probe in the background finds it, and the next pull asks it first.
func TestMirrorComesBack(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	_ = ln.Close()
	data := randomBytes(100000)
	up, mirror := faulty.New(t, faulty.Plain), faulty.New(t, faulty.Plain)
	up.PushBlob("x", data)
	mirror.PushBlob("x", data)
	c := client(t, quick(t, ""))
	pull := func() {
		t.Helper()
		s := sessionOf(t, c, Credentials{Username: "u", Password: "hunter2"}, "", "http://"+address, up.URL)
		defer s.Close()
		if err := fetch(t.Context(), s, data, nil); err != nil {
			t.Fatal(err)
		}
	}
	pull()
	if ln, err = net.Listen("tcp", address); err != nil {
		t.Skip("the port was taken meanwhile")
	}
	srv := &http.Server{Handler: mirror.Config.Handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(ln) }() // ends by Close
	defer srv.Close()
	up.Set()
	for deadline := time.Now().Add(20 * time.Second); len(mirror.Requests("/blobs/")) == 0; time.Sleep(50 * time.Millisecond) {
		if pull(); time.Now().After(deadline) {
			t.Fatal("the mirror is not asked though it is back")
		}
	}
	first := mirror.Requests("")[0]
	if first.Path != "/v2/" || len(mirror.Shown()) != 0 {
		t.Errorf("first request: %s, with %q; want a probe without credentials", first.Path, mirror.Shown())
	}
	n := len(up.Requests("/blobs/"))
	if pull(); len(up.Requests("/blobs/")) != n {
		t.Error("the registry was asked though the mirror is back")
	}
}

// TestStallingMirrorIsRemembered: one that answers and then stands still costs each
// session nothing once it is known.
func TestStallingMirrorIsRemembered(t *testing.T) {
	data := randomBytes(1 << 20)
	bad, up := faulty.New(t, faulty.Plain), faulty.New(t, faulty.Plain)
	for _, r := range []*faulty.Registry{bad, up} {
		r.PushBlob("x", data)
	}
	bad.Set(faulty.Rule{Path: "/blobs/", Do: faulty.Stall(1000)})
	cfg := quick(t, "")
	cfg.Stall = time.Second
	c := client(t, cfg)
	for range 3 {
		s := session(t, c, Credentials{}, bad, up)
		if err := fetch(t.Context(), s, data, nil); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	if n := len(bad.Requests("/blobs/")); n != 1 {
		t.Errorf("the stalling mirror was asked %d times, want once", n)
	}
}

// TestErrorsNameEachHost in the order in which they were asked, with how each failed.
func TestErrorsNameEachHost(t *testing.T) {
	a, b := faulty.New(t, faulty.Plain), faulty.New(t, faulty.Plain)
	a.Set(faulty.Rule{Do: faulty.Status(500)})
	b.Set(faulty.Rule{Do: faulty.Page()})
	c := client(t, quick(t, ""))
	_, err := sessionOf(t, c, Credentials{}, "", a.URL, "http://127.0.0.1:1", b.URL).Manifest(t.Context(), "1")
	if err == nil {
		t.Fatal("no error")
	}
	at := 0
	for _, part := range []string{"get manifest r.example/x:1", a.Host(), "500", "127.0.0.1:1", "refused", b.Host(), "web page"} {
		i := strings.Index(err.Error()[at:], part)
		if i < 0 {
			t.Fatalf("got %v, want %q after %q", err, part, err.Error()[:at])
		}
		at += i
	}
	if unavailable(err) {
		t.Errorf("unavailable though a host answered: %v", err)
	}
}

// TestHopeless: what a minute will not change is told at once, where nobody can be
// reached with the kubelet's word for it.
func TestHopeless(t *testing.T) {
	for name, tc := range map[string]struct{ server, word string }{
		"no such name":     {"http://nowhere.invalid", "nowhere.invalid"},
		"nobody listens":   {"http://127.0.0.1:1", "refused"},
		"nobody, with TLS": {"https://127.0.0.1:1", "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := quick(t, "")
			cfg.Backoff = time.Minute
			c := client(t, cfg)
			s := sessionOf(t, c, Credentials{}, "", tc.server)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if _, err := s.Manifest(ctx, "1"); !unavailable(err) || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{"": 0, "7": 7 * time.Second, "-7": 0, "x": 0, " 7 ": 7 * time.Second, "99999999999999999999": 0,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:00:00 GMT": 0, "1.5": 0} {
		resp := &http.Response{Header: http.Header{"Retry-After": {in}}}
		if got := retryAfter(resp, now); got != want {
			t.Errorf("%q: got %v, want %v", in, got, want)
		}
	}
}

func TestContentRange(t *testing.T) {
	for in, want := range map[string]int64{"bytes 10-99/100": 90, "bytes 10-49/100": 40, "bytes 10-99/*": 90, "bytes 0-99/100": -1, "bytes 11-99/100": -1,
		"bytes 10-100/101": -1, "bytes 10-99/101": -1, "bytes 10-9/100": -1, "": -1, "bytes */100": -1, "bytes 10-99": -1, "items 10-99/100": -1} {
		_, n, err := contentRange(in, [2]int64{10, 100}, 100)
		if want < 0 && err == nil || want >= 0 && (err != nil || n != want) {
			t.Errorf("%q: got %d, %v, want %d", in, n, err, want)
		}
	}
}

func TestPace(t *testing.T) {
	cfg := Config{Stall: 30 * time.Second, MinRate: 1024}
	for name, tc := range map[string]struct {
		n      int64
		waited time.Duration
		slow   bool
	}{
		"a byte a second":              {1, time.Second, true},
		"just enough":                  {1024, time.Second, false},
		"little, without being waited": {1, time.Nanosecond, false},
	} {
		var p pace
		slow := false
		for range 40 {
			slow = slow || p.slow(tc.n, tc.waited, cfg)
		}
		if slow != tc.slow {
			t.Errorf("%s: slow %v", name, slow)
		}
	}
}
