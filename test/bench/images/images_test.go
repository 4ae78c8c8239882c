package images

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// small makes a layer of a few files, and an image of it in both compressions.
func small(t *testing.T) *Set {
	t.Helper()
	dir := t.TempDir()
	tree := filepath.Join(t.TempDir(), "in")
	if err := os.MkdirAll(filepath.Join(tree, "d"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "d/f"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("d/f", filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	b := &builder{dir: dir, say: t.Logf, layers: map[string]packed{}}
	if err := b.layer(t.Context(), "one", func(w *layerWriter) error {
		return errors.Join(w.smallFiles(1, "app", 10), w.addTree(t.Context(), tree))
	}); err != nil {
		t.Fatal(err)
	}
	for name, zstd := range map[string]bool{"bench/x:gz": false, "bench/x:zst": true} {
		if err := b.image(name, zstd, []string{"one"}); err != nil {
			t.Fatal(err)
		}
	}
	return &Set{Dir: dir, Images: b.images}
}

func TestSameInputsSameDigests(t *testing.T) {
	a := &builder{dir: t.TempDir(), say: t.Logf, layers: map[string]packed{}}
	b := &builder{dir: t.TempDir(), say: t.Logf, layers: map[string]packed{}}
	for _, x := range []*builder{a, b} {
		if err := x.layer(t.Context(), "l", func(w *layerWriter) error { return w.smallFiles(3, "p", 50) }); err != nil {
			t.Fatal(err)
		}
	}
	if a.layers["l"] != b.layers["l"] {
		t.Errorf("digests: got %+v and %+v", a.layers["l"], b.layers["l"])
	}
}

func TestLayersAreWhole(t *testing.T) {
	s := small(t)
	for _, name := range []string{"bench/x:gz", "bench/x:zst"} {
		image, ok := s.Image(name)
		if !ok {
			t.Fatalf("%s is not there", name)
		}
		f, err := os.Open(blobPath(s.Dir, image.Layers[0].Digest))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var plain io.Reader
		if name == "bench/x:gz" {
			plain, err = gzip.NewReader(f)
		} else {
			plain, err = zstd.NewReader(f)
		}
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for in := tar.NewReader(plain); ; {
			h, err := in.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, h.Name)
		}
		if len(names) != image.Entries() {
			t.Errorf("%s: got %d entries, want %d", name, len(names), image.Entries())
		}
		for _, want := range []string{"app/", "app/node_modules/pkg-0/lib/3/file-3.js"} {
			if !slices.Contains(names, want) {
				t.Errorf("%s: %q is not among %q", name, want, names)
			}
		}
	}
}

func TestFailingLayerLeavesNoGoroutine(t *testing.T) {
	b := &builder{dir: t.TempDir(), say: t.Logf, layers: map[string]packed{}}
	want := errors.New("no more")
	if err := b.layer(t.Context(), "l", func(*layerWriter) error { return want }); !errors.Is(err, want) { // g.Wait hangs when one is left
		t.Errorf("layer: got %v, want %v", err, want)
	}
}

func TestServe(t *testing.T) {
	s := small(t)
	server := httptest.NewServer(s)
	defer server.Close()
	image, _ := s.Image("bench/x:gz")
	blob := image.Layers[0]
	for name, tc := range map[string]struct {
		method, path, ranges string
		status               int
		length               int64
	}{
		"root":          {http.MethodGet, "/v2/", "", 200, 2},
		"tag":           {http.MethodGet, "/v2/bench/x/manifests/gz", "", 200, -1},
		"digest":        {http.MethodGet, "/v2/bench/x/manifests/" + image.Digest, "", 200, -1},
		"head":          {http.MethodHead, "/v2/bench/x/manifests/gz", "", 200, -1},
		"blob":          {http.MethodGet, "/v2/bench/x/blobs/" + blob.Digest, "", 200, blob.Size},
		"range":         {http.MethodGet, "/v2/bench/x/blobs/" + blob.Digest, "bytes=10-", 206, blob.Size - 10},
		"unknown tag":   {http.MethodGet, "/v2/bench/x/manifests/none", "", 404, -1},
		"unknown blob":  {http.MethodGet, "/v2/bench/x/blobs/sha256:" + fmt.Sprintf("%064d", 0), "", 404, -1},
		"escape":        {http.MethodGet, "/v2/bench/x/blobs/..", "", 404, -1},
		"upload":        {http.MethodPost, "/v2/bench/x/blobs/uploads/", "", 405, -1},
		"another place": {http.MethodGet, "/etc/passwd", "", 404, -1},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(context.Background(), tc.method, server.URL+tc.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tc.ranges != "" {
				r.Header.Set("Range", tc.ranges)
			}
			reply, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer reply.Body.Close()
			n, err := io.Copy(io.Discard, reply.Body)
			if err != nil {
				t.Fatal(err)
			}
			if reply.StatusCode != tc.status {
				t.Errorf("status: got %d, want %d", reply.StatusCode, tc.status)
			}
			if tc.length >= 0 && n != tc.length {
				t.Errorf("length: got %d, want %d", n, tc.length)
			}
		})
	}
}

// TestSmall: the workload does what the measurements take for granted, and little else.
func TestSmall(t *testing.T) {
	testkit.Need(t, testkit.Tool("gcc"))
	cache := t.TempDir()
	s, err := Small(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Small(t.Context(), cache)
	if err != nil || again.Dir != s.Dir {
		t.Errorf("the second time: got %v, %v, want the same", again, err)
	}
	for _, name := range []string{SmallName, PauseName} {
		if i, ok := s.Image(name); !ok || i.Unpacked() > 20<<10 {
			t.Errorf("%s: got %v, %d bytes", name, ok, i.Unpacked())
		}
	}
	source, err := workload.ReadFile("workload/bench.c")
	if err != nil {
		t.Fatal(err)
	}
	body, err := compile(t.Context(), t.TempDir(), source)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "bench")
	if err := os.WriteFile(program, body, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), program, "spam", "1", "20").Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	last := len(lines) - 1
	if lines[0] != "0000000000xxxxxxxxx" || lines[last-1] != fmt.Sprintf("%010dxxxxxxxxx", last-1) || !strings.HasPrefix(lines[last], fmt.Sprintf("total %d cpu_us ", last)) {
		t.Errorf("spam: got %q to %q, %q", lines[0], lines[last-1], lines[last])
	}
	for _, args := range [][]string{{"wait"}, {"tick", "5"}} {
		cmd := exec.CommandContext(t.Context(), program, args...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 5)
		if _, err := io.ReadFull(out, line); err != nil || string(line) != args[0]+"\n" && string(line) != "ready" {
			t.Errorf("%s: got %q, %v", args, line, err)
		}
		if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
			t.Errorf("%s: SIGTERM: %v", args, err)
		}
	}
}
