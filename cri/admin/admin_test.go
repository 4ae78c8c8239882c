package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// fakeStore keeps what it was given.
type fakeStore struct {
	mu     sync.Mutex
	pulls  []image.PullStatus
	loaded bytes.Buffer
	saved  []string
	fail   error
	late   bool // fail after the first bytes
}

func (f *fakeStore) Pulls() []image.PullStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pulls
}

func (f *fakeStore) PullCounts() image.PullCounts {
	return image.PullCounts{Results: map[string]uint64{"ok": 3, "denied": 1}, Hosts: map[string]uint64{"r.example:5000": 12345, "a\"b\\c\nd\xff": 1}, Resumed: 77}
}

func (f *fakeStore) Mismatches() map[string]uint64 { return map[string]uint64{"bad.example": 2} }

func (f *fakeStore) List() []*image.Image {
	return []*image.Image{{DiffIDs: []image.Digest{"a", "b"}}, {DiffIDs: []image.Digest{"a", "c"}}}
}

func (f *fakeStore) FsUsage() (layers, writable image.FsStat, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return image.FsStat{Bytes: 1000}, image.FsStat{Bytes: 20}, f.fail
}

func (f *fakeStore) Load(_ context.Context, r io.Reader, progress func(image.LoadProgress)) ([]image.Loaded, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil && !f.late {
		return nil, f.fail
	}
	progress(image.LoadProgress{Read: 1, Layers: 1})
	if _, err := f.loaded.ReadFrom(r); err != nil {
		return nil, err
	}
	if f.fail != nil {
		return nil, f.fail
	}
	return []image.Loaded{{ID: "sha256:1", Names: []string{"x:1"}}}, nil
}

func (f *fakeStore) Save(_ context.Context, w io.Writer, refs []string, format image.ArchiveFormat) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil && !f.late {
		return f.fail
	}
	f.saved = append(refs, string(format))
	_, err := io.WriteString(w, strings.Repeat("tar", 10000))
	return errors.Join(err, f.fail)
}

func (f *fakeStore) Verify(_ context.Context, ref string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.saved = append(f.saved, "verify "+ref)
	return f.fail
}

func (f *fakeStore) Garbage(_ context.Context, dryRun bool) ([]image.Orphan, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if dryRun {
		f.saved = append(f.saved, "look")
		return nil, f.fail
	}
	f.saved = append(f.saved, "delete")
	return []image.Orphan{{Path: "/a", Bytes: 5}, {Path: "/b", Bytes: 6}}, f.fail
}

func start(t *testing.T) (*fakeStore, *Client, string) {
	t.Helper()
	f := &fakeStore{}
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	s := New(Deps{Images: f, Archives: f, Keeper: f, Version: "v1.2.3"})
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	c := NewClient("unix://" + socket)
	t.Cleanup(func() {
		c.Close()
		stop()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return f, c, socket
}

func (f *fakeStore) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func TestPulls(t *testing.T) {
	f, c, _ := start(t)
	f.pulls = []image.PullStatus{{Number: 7, Ref: "r.example/x:1", Phase: image.PhasePulling, Layers: []image.LayerStatus{{Digest: "sha256:a", Done: 5}}}}
	got, err := c.Pulls(t.Context())
	if err != nil || len(got) != 1 || got[0].Number != 7 || got[0].Layers[0].Done != 5 {
		t.Errorf("got %+v, %v", got, err)
	}
	// A watch shows what changes, and ends with its reader or with the server.
	n := 0
	enough := errors.New("enough")
	err = c.Watch(t.Context(), func(p []image.PullStatus) error {
		if n++; n == 1 {
			f.set(func() { f.pulls = nil })
			return nil
		}
		if len(p) != 0 {
			t.Errorf("got %v after it ended", p)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Errorf("watch: got %v", err)
	}
}

// TestServerEndsDuringAWatch: a watcher does not hold up the end of the daemon.
func TestServerEndsDuringAWatch(t *testing.T) {
	f := &fakeStore{}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(Deps{Images: f}).Serve(ctx, l) }()
	c := NewClient(socket)
	defer c.Close()
	start := time.Now()
	err = c.Watch(t.Context(), func([]image.PullStatus) error { stop(); return nil })
	if err == nil {
		t.Error("watch: got no error when the server ended")
	}
	if err := <-done; err != nil || time.Since(start) > stopGrace/2 {
		t.Errorf("serve: got %v after %v", err, time.Since(start))
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
	if _, err := c.Pulls(t.Context()); err == nil || !strings.Contains(err.Error(), "is the daemon running") {
		t.Errorf("without a daemon: got %v", err)
	}
}

func TestLoad(t *testing.T) {
	f, c, _ := start(t)
	body := strings.Repeat("archive ", 1<<17) // more than any buffer between the two
	var seen []image.LoadProgress
	got, err := c.Load(t.Context(), strings.NewReader(body), func(p image.LoadProgress) { seen = append(seen, p) })
	if err != nil || len(got) != 1 || got[0].ID != "sha256:1" || f.loaded.String() != body || len(seen) == 0 || seen[0].Layers != 1 {
		t.Errorf("got %+v, %v, %d bytes, progress %v", got, err, f.loaded.Len(), seen)
	}
	for name, late := range map[string]bool{"at once": false, "in the middle": true} {
		f.set(func() { f.fail, f.late = fmt.Errorf("layer sha256:x: damaged: %w", errdef.ErrInvalid), late })
		_, err := c.Load(t.Context(), strings.NewReader(body), nil)
		if err == nil || err.Error() != "layer sha256:x: damaged: invalid" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestRefusedLoad: who is told so in the middle of sending hears why, each time, and soon:
// net/http lets the connection stay until the answer was read.
func TestRefusedLoad(t *testing.T) {
	f, c, _ := start(t)
	f.fail = fmt.Errorf("archive: %w", errdef.ErrInvalid)
	start := time.Now()
	for i := range 20 {
		_, err := c.Load(t.Context(), io.LimitReader(zeros{}, 1<<40), nil)
		if err == nil || err.Error() != "archive: invalid" {
			t.Fatalf("%d: got %v", i, err)
		}
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("20 refusals took %v", took)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestSave(t *testing.T) {
	f, c, _ := start(t)
	var out bytes.Buffer
	n, err := c.Save(t.Context(), &out, []string{"a:1", "b@sha256:x"}, image.FormatDocker)
	if err != nil || n != 30000 || out.Len() != 30000 || fmt.Sprint(f.saved) != "[a:1 b@sha256:x docker]" {
		t.Errorf("got %v, %d bytes of %v", err, n, f.saved)
	}
	if _, err := c.Save(t.Context(), &out, nil, ""); err == nil || !strings.Contains(err.Error(), "ref: ") {
		t.Errorf("no reference: got %v", err)
	}
	f.set(func() { f.fail = fmt.Errorf("image a:1: %w", errdef.ErrNotFound) })
	_, err = c.Save(t.Context(), &out, []string{"a:1"}, "")
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != http.StatusNotFound || e.Message != "image a:1: not found" {
		t.Errorf("no such image: got %v", err)
	}
	// What breaks off in the middle must not look whole.
	f.set(func() { f.fail, f.late = errors.New("disk"), true })
	if _, err = c.Save(t.Context(), io.Discard, []string{"a:1"}, ""); err == nil || !strings.Contains(err.Error(), "broke off") {
		t.Errorf("broken off: got %v", err)
	}
}

func TestVerify(t *testing.T) {
	f, c, socket := start(t)
	if err := c.Verify(t.Context(), "r.example/x:1"); err != nil || f.saved[0] != "verify r.example/x:1" {
		t.Errorf("got %v, %v", err, f.saved)
	}
	f.set(func() { f.fail = errors.New("layer sha256:x: damaged") })
	if err := c.Verify(t.Context(), "x"); err == nil || err.Error() != "layer sha256:x: damaged" {
		t.Errorf("got %v", err)
	}
	// It changes the store, so that reading must not do it.
	for path, want := range map[string]int{"/v1/images/verify?ref=x": http.StatusNotFound, "/v1/nothing": http.StatusNotFound} {
		resp := get(t, socket, path)
		if resp.StatusCode != want {
			t.Errorf("GET %s: got %d, want %d", path, resp.StatusCode, want)
		}
	}
}

func TestGarbage(t *testing.T) {
	f, c, _ := start(t)
	got, err := c.Garbage(t.Context(), true)
	if err != nil || !got.DryRun || got.Orphans == nil || len(got.Orphans) != 0 || fmt.Sprint(f.saved) != "[look]" {
		t.Errorf("dry run: got %+v, %v, %v", got, err, f.saved)
	}
	got, err = c.Garbage(t.Context(), false)
	if err != nil || got.DryRun || got.Bytes != 11 || len(got.Orphans) != 2 || got.Orphans[1].Path != "/b" || fmt.Sprint(f.saved) != "[look delete]" {
		t.Errorf("got %+v, %v, %v", got, err, f.saved)
	}
	f.set(func() { f.fail = errors.New("disk") })
	if _, err := c.Garbage(t.Context(), false); err == nil || err.Error() != "disk" {
		t.Errorf("got %v", err)
	}
}

func get(t *testing.T, socket, path string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := NewClient(socket).http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// TestMetrics reads them with Prometheus' own parser, host names made by an enemy included.
func TestMetrics(t *testing.T) {
	f, _, socket := start(t)
	ended := time.Now()
	f.pulls = []image.PullStatus{{Number: 1}, {Number: 2, Ended: &ended}}
	resp := get(t, socket, "/metrics")
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain; version=0.0.4") {
		t.Errorf("content type: got %s", ct)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	value := func(name, label string) float64 {
		for _, m := range families[name].GetMetric() {
			if label == "" && len(m.Label) == 0 || label != "" && m.Label[0].GetValue() == label {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		return -1
	}
	for _, want := range []struct {
		name, label string
		value       float64
	}{
		{"cri_runtime_build_info", "v1.2.3", 1},
		{"cri_runtime_image_pulls_in_flight", "", 1},
		{"cri_runtime_image_pulls_total", "ok", 3},
		{"cri_runtime_image_pulls_total", "denied", 1},
		{"cri_runtime_image_pull_bytes_total", "r.example:5000", 12345},
		{"cri_runtime_image_pull_bytes_total", "a\"b\\c\nd?", 1},
		{"cri_runtime_image_pull_resumed_bytes_total", "", 77},
		{"cri_runtime_image_digest_mismatches_total", "bad.example", 2},
		{"cri_runtime_images", "", 2},
		{"cri_runtime_image_layers", "", 3},
		{"cri_runtime_image_bytes", "", 1000},
		{"cri_runtime_writable_layer_bytes", "", 20},
	} {
		if got := value(want.name, want.label); got != want.value {
			t.Errorf("%s %q: got %v, want %v", want.name, want.label, got, want.value)
		}
	}
	for _, name := range []string{"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds", "go_goroutines"} {
		if value(name, "") <= 0 {
			t.Errorf("%s: got %v", name, value(name, ""))
		}
	}
	for name, f := range families {
		if f.GetHelp() == "" || strings.HasSuffix(name, "_total") != (f.GetType().String() == "COUNTER") {
			t.Errorf("%s: type %v, help %q", name, f.GetType(), f.GetHelp())
		}
	}
	f.set(func() { f.fail = errors.New("disk") })
	if resp := get(t, socket, "/metrics"); resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("failure: got %d", resp.StatusCode)
	}
}

// TestMetricsOnTCP serves nothing else.
func TestMetricsOnTCP(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	f := &fakeStore{}
	go func() { done <- New(Deps{Images: f, Archives: f, Keeper: f}).ServeMetrics(ctx, l) }()
	for path, want := range map[string]int{"/metrics": 200, "/v1/pulls": 404, "/v1/images/save?ref=x": 404, "/debug/pprof/": 404} {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: got %d, want %d", path, resp.StatusCode, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestFailures: kinds become statuses, and the message stays.
func TestFailures(t *testing.T) {
	f, _, socket := start(t)
	for err, want := range map[error]int{
		errdef.ErrNotFound: 404, errdef.ErrInvalid: 400, errdef.ErrDenied: 403, errdef.ErrRetry: 503, errdef.ErrUnimplemented: 501,
		errdef.ErrExhausted: 507, errors.New("defect"): 500,
	} {
		f.set(func() { f.fail = fmt.Errorf("save: %w", err) })
		resp := get(t, socket, "/v1/images/save?ref=x")
		var doc Failure
		if e := json.NewDecoder(resp.Body).Decode(&doc); e != nil || resp.StatusCode != want || doc.Error != "save: "+err.Error() {
			t.Errorf("%v: got %d %q, %v", err, resp.StatusCode, doc.Error, e)
		}
	}
}
