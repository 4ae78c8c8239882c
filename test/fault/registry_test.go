package fault

import (
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/container/node"
)

// largeBlob is more than an image's configuration has.
const largeBlob = 64 << 10

// damage serves a registry's answers with a flaw in its layers.
type damage struct {
	from http.Handler
	kind atomic.Value // string
	hits atomic.Int32
}

type spoiler struct {
	http.ResponseWriter
	kind string
	hits *atomic.Int32
}

// ServeHTTP answers one request.
func (d *damage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, _ := d.kind.Load().(string)
	if strings.Contains(r.URL.Path, "/blobs/") && kind != "" {
		w = &spoiler{ResponseWriter: w, kind: kind, hits: &d.hits}
	}
	d.from.ServeHTTP(w, r)
}

// Write passes on what comes, spoilt.
func (s *spoiler) Write(b []byte) (int, error) {
	if size, err := strconv.Atoi(s.Header().Get("Content-Length")); err != nil || size < largeBlob {
		return s.ResponseWriter.Write(b)
	}
	s.hits.Add(1)
	switch s.kind {
	case "flipped":
		b = append([]byte(nil), b...)
		b[len(b)/2] ^= 1
	case "cut": // the rest never comes
		panic(http.ErrAbortHandler)
	}
	return s.ResponseWriter.Write(b)
}

func pull(t *testing.T, n *node.Node, ref string) error {
	t.Helper()
	_, err := n.Images.PullImage(t.Context(), &rt.PullImageRequest{Image: &rt.ImageSpec{Image: ref}})
	return err
}

// hosts sends the pulls from a registry's name somewhere.
func hosts(t *testing.T, n *node.Node, name, address string) {
	t.Helper()
	dir := filepath.Join(n.Hosts, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("server = \"http://"+address+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func wantFirst(t *testing.T, err error, prefix string) {
	t.Helper()
	node.WantError(t, err, codes.Unknown, prefix)
	if err != nil && !strings.HasPrefix(strings.TrimPrefix(err.Error(), "rpc error: code = Unknown desc = "), prefix+": ") {
		t.Errorf("got %v, want %s first", err, prefix)
	}
}

func TestRegistry(t *testing.T) {
	n := node.Start(t)
	images := func() int {
		t.Helper()
		list, err := n.Images.ListImages(t.Context(), &rt.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Images)
	}
	t.Run("nobody listens", func(t *testing.T) {
		hosts(t, n, "silent.example", "127.0.0.1:9")
		err := pull(t, n, "silent.example/x:1")
		wantFirst(t, err, "RegistryUnavailable")
		node.WantError(t, err, codes.Unknown, "127.0.0.1:9", "connection refused")
	})
	t.Run("no such name", func(t *testing.T) {
		hosts(t, n, "unnamed.example", "nowhere.invalid")
		wantFirst(t, pull(t, n, "unnamed.example/x:1"), "RegistryUnavailable")
	})
	t.Run("it is ill", func(t *testing.T) {
		hosts(t, n, "ill.example", node.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "not today", http.StatusServiceUnavailable)
		})))
		err := pull(t, n, "ill.example/x:1")
		wantFirst(t, err, "RegistryUnavailable")
		node.WantError(t, err, codes.Unknown, "503")
	})
	t.Run("no such image", func(t *testing.T) {
		node.WantError(t, pull(t, n, "docker.io/library/nothing:1"), codes.NotFound, "docker.io/library/nothing:1")
		node.WantError(t, pull(t, n, strings.TrimSuffix(node.Image, ":1")+":2"), codes.NotFound, ":2")
	})
	t.Run("it wants a password", func(t *testing.T) {
		hosts(t, n, "closed.example", node.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Www-Authenticate", `Basic realm="here"`)
			http.Error(w, "who are you", http.StatusUnauthorized)
		})))
		node.WantError(t, pull(t, n, "closed.example/x:1"), codes.PermissionDenied, "closed.example")
	})
	t.Run("damaged blobs", func(t *testing.T) {
		d := &damage{from: n.Registry}
		hosts(t, n, "damaged.example", node.Serve(t, d))
		if _, err := n.Images.RemoveImage(t.Context(), &rt.RemoveImageRequest{Image: &rt.ImageSpec{Image: node.Image}}); err != nil {
			t.Fatal(err)
		}
		for kind, word := range map[string]string{"flipped": "content does not match its descriptor", "cut": "EOF"} {
			d.kind.Store(kind)
			d.hits.Store(0)
			err := pull(t, n, "damaged.example/library/tests:1")
			if err == nil || d.hits.Load() == 0 || !strings.Contains(err.Error(), "damaged.example/library/tests:1") || !strings.Contains(err.Error(), word) {
				t.Errorf("%s: got %v after %d answers, want %q and the image", kind, err, d.hits.Load(), word)
			}
			if got := images(); got != 0 {
				t.Errorf("%s: %d images afterwards", kind, got)
			}
		}
		d.kind.Store("")
		n.ImageID = n.Pull(t, "damaged.example/library/tests:1")
		n.RunPod(t, n.PodConfig("a")).Shell(t, "cat /data/sub/file", nil)
	})
}
