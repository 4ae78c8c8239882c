package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/cri/admin"
	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// fakeStore is behind a real admin server.
type fakeStore struct {
	admin.Images // of which only Pulls is asked

	mu      sync.Mutex
	pulls   []image.PullStatus
	looks   int // of watchers
	archive bytes.Buffer
	fail    error
	orphans []image.Orphan
}

func (f *fakeStore) Pulls() []image.PullStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	return f.pulls
}

func (f *fakeStore) Load(_ context.Context, r io.Reader, progress func(image.LoadProgress)) ([]image.Loaded, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.archive.Reset()
	n, err := f.archive.ReadFrom(r)
	progress(image.LoadProgress{Read: n, Layers: 2})
	return []image.Loaded{{ID: "sha256:1", Names: []string{"x:1", "x:2"}}, {ID: "sha256:2"}}, errors.Join(err, f.fail)
}

func (f *fakeStore) Save(_ context.Context, w io.Writer, refs []string, format image.ArchiveFormat) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := fmt.Fprintf(w, "%v %s", refs, format)
	return errors.Join(err, f.fail)
}

func (f *fakeStore) Garbage(context.Context, bool) ([]image.Orphan, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.orphans, f.fail
}

func (f *fakeStore) Verify(_ context.Context, ref string) error {
	if ref == "bad" {
		return fmt.Errorf("layer sha256:x: damaged: %w", errdef.ErrInvalid)
	}
	return nil
}

func startAdmin(t *testing.T) (*fakeStore, string) {
	t.Helper()
	f := &fakeStore{}
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := admin.New(admin.Deps{Images: f, Archives: f, Keeper: f, Traces: fakeTraces(testTraces())}).Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); wait.Wait() })
	return f, socket
}

func TestPullsCommand(t *testing.T) {
	f, socket := startAdmin(t)
	var out output
	if err := execute(t.Context(), &out, "pulls", "--admin", socket); err != nil || out.String() != "no pull is in flight\n" {
		t.Errorf("none: got %q, %v", out.String(), err)
	}
	pulls := testPulls()
	failed := pulls["failed"]
	failed.Number, failed.Ended = 1, later(time.Second)
	flying := pulls["pulling"]
	flying.Number = 2
	f.pulls = []image.PullStatus{failed, flying}
	out = output{}
	if err := execute(t.Context(), &out, "pulls", "--admin", socket); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if !strings.HasSuffix(lines[0], "failed after 1.5 s: "+printable(failed.Error)) || lines[1] != pullLines(flying, 80, 30)[0] || len(lines) != 2+len(flying.Layers)+1 {
		t.Errorf("got %s", out.String())
	}
	out = output{}
	var list admin.PullList
	if err := errors.Join(execute(t.Context(), &out, "pulls", "--admin", socket, "--output", "json"), json.Unmarshal([]byte(out.String()), &list)); err != nil ||
		len(list.Pulls) != 2 || list.Pulls[1].Done != flying.Done {
		t.Errorf("JSON: got %s, %v", out.String(), err)
	}
	if err := execute(t.Context(), &out, "pulls", "--output", "yaml"); err == nil || !strings.Contains(err.Error(), "--output") {
		t.Errorf("unknown output: got %v", err)
	}
}

// TestWatch shows what is in flight, tells each end once, and takes Ctrl-C for success.
func TestWatch(t *testing.T) {
	f, socket := startAdmin(t)
	flying := testPulls()["pulling"]
	flying.Number = 2
	old := testPulls()["failed"]
	old.Number, old.Ended = 1, later(time.Second)
	f.pulls = []image.PullStatus{old, flying}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var out output
	done := make(chan error, 1)
	go func() { done <- execute(ctx, &out, "pulls", "--watch", "--admin", socket) }()
	looks := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			f.mu.Lock()
			got := f.looks
			f.mu.Unlock()
			if got >= n {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("nobody looks")
			}
		}
	}
	looks(2)
	ended := flying
	ended.Phase, ended.Ended = image.PhaseDone, later(4*time.Second)
	f.mu.Lock()
	f.pulls, f.looks = []image.PullStatus{old, ended}, 0
	f.mu.Unlock()
	looks(3)
	stop()
	if err := <-done; err != nil {
		t.Errorf("got %v", err)
	}
	text := out.String()
	if strings.Contains(text, "failed after") || strings.Count(text, flying.Ref+" done, ") != 1 || !strings.Contains(text, "layer     333333333333 downloading") {
		t.Errorf("got\n%s", text)
	}
}

func TestArchiveCommands(t *testing.T) {
	f, socket := startAdmin(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "a.tar")
	var out output
	if err := execute(t.Context(), &out, "image", "save", "--admin", socket, "-o", file, "--format", "docker", "x:1", "y"); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "[x:1 y] docker" {
		t.Errorf("save: got %q, %v", text, err)
	}
	out = output{}
	if err := execute(t.Context(), &out, "image", "load", "--admin", socket, file); err != nil || f.archive.String() != "[x:1 y] docker" ||
		!strings.HasPrefix(out.String(), "sha256:1 x:1, x:2\nsha256:2 (no name)\n2 images loaded in ") {
		t.Errorf("load: got %q, %q, %v", out.String(), f.archive.String(), err)
	}
	out = output{}
	if err := execute(t.Context(), &out, "image", "load", "--admin", socket, "-o", "json", file); err != nil || !strings.HasPrefix(out.String(), `{"progress":{"read":14,`) ||
		!strings.HasSuffix(out.String(), `{"images":[{"id":"sha256:1","names":["x:1","x:2"]},{"id":"sha256:2"}]}`+"\n") {
		t.Errorf("load in JSON: got %q, %v", out.String(), err)
	}
	// A save that breaks off leaves the old file, and no other.
	f.fail = errors.New("disk")
	if err := execute(t.Context(), &out, "image", "save", "--admin", socket, "-o", file, "z"); err == nil || !strings.Contains(err.Error(), "broke off") {
		t.Errorf("broken save: got %v", err)
	}
	entries, err := os.ReadDir(dir)
	if text, _ := os.ReadFile(file); err != nil || len(entries) != 1 || string(text) != "[x:1 y] docker" {
		t.Errorf("a broken save has left %v, %q", entries, text)
	}
	if err := execute(t.Context(), &out, "image", "load", "--admin", socket, file); err == nil || err.Error() != "load: disk" {
		t.Errorf("broken load: got %v", err)
	}
	if err := execute(t.Context(), &out, "image", "load", "--admin", socket, file+"x"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no file: got %v", err)
	}
	if err := execute(t.Context(), &out, "image", "save", "--admin", socket, "x"); err == nil || !strings.Contains(err.Error(), `"file"`) {
		t.Errorf("no --file: got %v", err)
	}
}

func TestVerifyAndGC(t *testing.T) {
	f, socket := startAdmin(t)
	var out output
	err := execute(t.Context(), &out, "image", "verify", "--admin", socket, "good", "bad", "fine")
	if err == nil || err.Error() != "bad: layer sha256:x: damaged: invalid" || strings.Count(out.String(), "is as it was pulled") != 2 {
		t.Errorf("verify: got %q, %v", out.String(), err)
	}
	out = output{}
	if err := execute(t.Context(), &out, "gc", "--admin", socket); err != nil || out.String() != "nothing is without an owner\n" {
		t.Errorf("gc: got %q, %v", out.String(), err)
	}
	f.orphans = []image.Orphan{{Path: "/store/l/1.tar", Bytes: 5000, Inodes: 1}, {Path: "/store/s/abc", Bytes: 2_000_000, Inodes: 77}}
	for flag, did := range map[string]string{"--dry-run": "2 to delete, 2.0 MB", "--dry-run=false": "2 deleted, 2.0 MB"} {
		out = output{}
		want := "PATH            SIZE    FILES\n/store/l/1.tar  5.0 kB  1\n/store/s/abc    2.0 MB  77\n" + did + "\n"
		if err := execute(t.Context(), &out, "gc", "--admin", socket, flag); err != nil || out.String() != want {
			t.Errorf("gc %s: got\n%s, %v", flag, out.String(), err)
		}
	}
	out = output{}
	if err := execute(t.Context(), &out, "gc", "--admin", socket, "--dry-run", "-o", "json"); err != nil || !strings.Contains(out.String(), `"dryRun":true,"orphans":[{"path":"/store/l/1.tar","bytes":5000`) {
		t.Errorf("gc in JSON: got %s, %v", out.String(), err)
	}
}

// TestPullShowsProgress: through CRI alone, from what ImageStatus tells of a pull.
func TestPullShowsProgress(t *testing.T) {
	f, socket := startFake(t)
	f.pullWait = make(chan struct{})
	looks := 0
	f.pulling = func() string {
		if looks++; looks == 3 {
			close(f.pullWait)
		}
		p := testPulls()["pulling"]
		p.Done += int64(looks)
		text, _ := json.Marshal(p)
		return string(text)
	}
	creds := filepath.Join(t.TempDir(), "creds")
	if err := os.WriteFile(creds, []byte("me:"+secret), 0o600); err != nil {
		t.Fatal(err)
	}
	var out output
	if err := execute(t.Context(), &out, "pull", "--connect", socket, "--output", "json", "--creds", creds, "x:1"); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var first image.PullStatus
	var last pulled
	if err := errors.Join(json.Unmarshal([]byte(lines[0]), &first), json.Unmarshal([]byte(lines[len(lines)-1]), &last)); err != nil ||
		len(lines) < 4 || len(first.Layers) != 10 || last.Image != "sha256:x:1" || last.Bytes != 1e6 || last.Error != "" {
		t.Errorf("got %v, %s", err, out.String())
	}
	if f.auth.GetUsername() != "me" || f.auth.GetPassword() != secret || strings.Contains(out.String(), secret) {
		t.Error("the credentials did not arrive, or were shown")
	}
	f.pullErr = errors.New("no")
	out = output{}
	if err := execute(t.Context(), &out, "pull", "--connect", socket, "--output", "json", "x:2"); err == nil || !strings.Contains(out.String(), `"ref":"x:2","seconds":`) ||
		!strings.Contains(out.String(), `"error":"pull x:2: no"`) {
		t.Errorf("failure: got %s, %v", out.String(), err)
	}
}
