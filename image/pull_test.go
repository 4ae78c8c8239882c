package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	greg "github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/zstd"

	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// reg is a registry in memory behind a handler that tests can make misbehave.
type reg struct {
	*httptest.Server
	store http.Handler
	hook  atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]
	mu    sync.Mutex
	gets  map[string]int // by path
}

func newReg(t testing.TB) *reg {
	t.Helper()
	r := &reg{gets: map[string]int{}}
	r.store = greg.New(greg.Logger(log.New(io.Discard, "", 0)))
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		r.gets[q.Method+" "+q.URL.Path]++
		r.mu.Unlock()
		if h := r.hook.Load(); h != nil && (*h)(w, q) {
			return
		}
		r.store.ServeHTTP(w, q)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *reg) host() string { return strings.TrimPrefix(r.URL, "http://") }

func (r *reg) count(path string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.gets[path]
}

func (r *reg) setHook(f func(w http.ResponseWriter, q *http.Request) bool) { r.hook.Store(&f) }

func sum(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func (r *reg) put(t testing.TB, path, mt string, body []byte) {
	t.Helper()
	method := http.MethodPut
	if strings.Contains(path, "/blobs/uploads/") {
		method = http.MethodPost
	}
	q := httptest.NewRequest(method, path, bytes.NewReader(body))
	q.Header.Set("Content-Type", mt)
	w := httptest.NewRecorder()
	r.store.ServeHTTP(w, q)
	if w.Code >= 300 {
		t.Fatalf("put %s: %d %s", path, w.Code, w.Body)
	}
}

func (r *reg) blob(t testing.TB, repo string, b []byte) map[string]any {
	t.Helper()
	r.put(t, "/v2/"+repo+"/blobs/uploads/?digest="+sum(b), "application/octet-stream", b)
	return map[string]any{"digest": sum(b), "size": len(b)}
}

type file struct {
	name, link, body string
	kind             byte
	mode             int64
	uid, gid         int
	xattr            map[string]string
}

func makeTar(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Linkname: f.link, Typeflag: f.kind, Mode: f.mode, Uid: f.uid, Gid: f.gid,
			Size: int64(len(f.body)), ModTime: time.Unix(1700000000, 0), Format: tar.FormatPAX}
		if f.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if f.mode == 0 {
			h.Mode = 0o644
		}
		for k, v := range f.xattr {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func pack(t testing.TB, how string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	switch how {
	case "":
		return b
	case "gzip":
		w := gzip.NewWriter(&out)
		_, _ = w.Write(b)
		_ = w.Close()
	case "zstd":
		w, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(b)
		_ = w.Close()
	}
	return out.Bytes()
}

type testImage struct {
	docker, single bool
	pack           string
	layers         [][]byte
	label          string
	edit           func(manifest map[string]any)
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// push stores an image for this machine, and in an index one for another; it gives the
// digest of what the tag names and the image's ID.
func (r *reg) push(t testing.TB, repo, tag string, im testImage) (top, id string) {
	t.Helper()
	tm, ti, tc, tl := typeManifest, typeIndex, typeConfig, "application/vnd.oci.image.layer.v1.tar"
	if im.docker {
		tm, ti, tc, tl = typeManifestV2, typeList, typeConfigDocker, "application/vnd.docker.image.rootfs.diff.tar"
	}
	switch {
	case im.docker && im.pack != "":
		tl += "." + im.pack
	case im.pack != "":
		tl += "+" + im.pack
	}
	layers, diffs := []any{}, []string{}
	for _, l := range im.layers {
		d := r.blob(t, repo, pack(t, im.pack, l))
		d["mediaType"] = tl
		layers = append(layers, d)
		diffs = append(diffs, sum(l))
	}
	var ms []any
	for _, arch := range []string{"other", runtime.GOARCH} {
		cfg := marshal(map[string]any{"os": "linux", "architecture": arch, "created": "2024-05-06T07:08:09Z",
			"config": map[string]any{"User": "65534", "Env": []string{"A=b"}, "Cmd": []string{"run"}, "Labels": map[string]string{"l": im.label},
				"Volumes": map[string]any{"/data": map[string]any{}}}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
		d := r.blob(t, repo, cfg)
		d["mediaType"] = tc
		id = sum(cfg)
		m := map[string]any{"schemaVersion": 2, "mediaType": tm, "config": d, "layers": layers}
		if im.edit != nil {
			im.edit(m)
		}
		body := marshal(m)
		top = sum(body)
		r.put(t, "/v2/"+repo+"/manifests/"+top, tm, body)
		if im.single {
			r.put(t, "/v2/"+repo+"/manifests/"+tag, tm, body)
		}
		ms = append(ms, map[string]any{"mediaType": tm, "digest": top, "size": len(body), "platform": map[string]string{"os": "linux", "architecture": arch}})
	}
	if !im.single {
		body := marshal(map[string]any{"schemaVersion": 2, "mediaType": ti, "manifests": ms})
		top = sum(body)
		r.put(t, "/v2/"+repo+"/manifests/"+tag, ti, body)
		r.put(t, "/v2/"+repo+"/manifests/"+top, ti, body)
	}
	return top, id
}

func openTest(t testing.TB, o Options) *Store {
	t.Helper()
	testkit.Need(t, testkit.Root)
	if o.LayerStore == snapshot.EROFS {
		testkit.Need(t, testkit.EROFS, testkit.Kernel(6, 15))
	}
	testkit.Leaks(t)
	if o.Root == "" {
		o.Root, o.State = t.TempDir(), t.TempDir()
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func base(t testing.TB) []byte {
	return makeTar(t, file{name: "etc/", kind: tar.TypeDir, mode: 0o750, uid: 7, gid: 8},
		file{name: "etc/a", body: "one"}, file{name: "etc/b", body: "two"}, file{name: "bin/sh", body: "#!", mode: 0o4755})
}

func TestPullForms(t *testing.T) {
	for _, docker := range []bool{false, true} {
		for _, how := range []string{"", "gzip", "zstd"} {
			for _, single := range []bool{false, true} {
				t.Run(fmt.Sprintf("docker=%v/%s/single=%v", docker, how, single), func(t *testing.T) {
					r := newReg(t)
					top, id := r.push(t, "a/b", "v1", testImage{docker: docker, pack: how, single: single,
						layers: [][]byte{base(t), makeTar(t, file{name: "etc/.wh.a"}, file{name: "etc/c", body: "three"})}})
					s := openTest(t, Options{})
					got, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/a/b:v1"})
					if err != nil {
						t.Fatal(err)
					}
					if string(got) != id {
						t.Errorf("id: got %s, want %s", got, id)
					}
					img, err := s.Resolve(r.host() + "/a/b:v1")
					if err != nil {
						t.Fatal(err)
					}
					if want := []string{r.host() + "/a/b@" + top}; !slices.Equal(img.RepoDigests, want) {
						t.Errorf("digests: got %v, want %v", img.RepoDigests, want)
					}
					if img.Size <= 0 || img.Config.User != "65534" || img.Created.IsZero() || !slices.Equal(img.Config.Volumes, []string{"/data"}) {
						t.Errorf("image: got %+v", img)
					}
					fs, err := s.Prepare(t.Context(), "c1", got, PrepareOptions{})
					if err != nil {
						t.Fatal(err)
					}
					if len(fs.Lower) != 2 || fs.Upper == "" || fs.Work == "" {
						t.Fatalf("rootfs: got %+v", fs)
					}
					if b, err := os.ReadFile(filepath.Join(fs.Lower[1], "etc/b")); err != nil || string(b) != "two" {
						t.Errorf("etc/b: got %q, %v", b, err)
					}
				})
			}
		}
	}
}
