package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cri-runtime/cri-runtime/image/policy"
	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// overStores runs a test over both ways of keeping layers.
func overStores(t *testing.T, test func(t *testing.T, o Options)) {
	t.Helper()
	for _, f := range []snapshot.Format{snapshot.Directory, snapshot.EROFS} {
		t.Run(string(f), func(t *testing.T) {
			testkit.Need(t, testkit.Root)
			if f == snapshot.EROFS {
				testkit.Need(t, testkit.EROFS, testkit.Kernel(6, 15))
			}
			test(t, Options{Root: t.TempDir(), State: t.TempDir(), LayerStore: f})
		})
	}
}

// checkNothing fails when a store has any layer, on disk or in mind.
func checkNothing(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if b, n := s.snaps.Totals(); b != 0 || n != 0 || len(s.List()) != 0 {
		t.Errorf("left: %d bytes, %d inodes, images %v", b, n, s.List())
	}
	for dir, want := range map[string]int{"l": 1, "layers": 0, "images": 0} {
		if es := entries(t, filepath.Join(s.opt.Root, dir)); len(es) != want {
			t.Errorf("%s: got %v, want %d entries", dir, es, want)
		}
	}
}

// fileIn reads a file of an image, through one layer.
func fileIn(t *testing.T, s *Store, id ID, fromTop int, path string) string {
	t.Helper()
	fs, err := s.View(t.Context(), "look", id)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(fs.Lower[fromTop], path))
	if e := s.Release(t.Context(), "look"); err != nil || e != nil {
		t.Errorf("%s in layer %d from the top: %v, %v", path, fromTop, err, e)
	}
	return string(b)
}

func load(t testing.TB, s *Store, data []byte) []Loaded {
	t.Helper()
	got, err := s.Load(t.Context(), streamOnly{bytes.NewReader(data)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// streamOnly hides that a reader could seek.
type streamOnly struct{ io.Reader }

// testConfig is a configuration for this machine.
func testConfig(arch, label string, layers ...[]byte) []byte {
	diffs := []string{}
	for _, l := range layers {
		diffs = append(diffs, sum(l))
	}
	return marshal(map[string]any{"architecture": arch, "os": "linux", "config": map[string]any{"Labels": map[string]string{"l": label}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
}

// box is an archive being made by hand.
type box struct {
	t     testing.TB
	files []file
}

func (b *box) add(name string, body []byte) {
	b.files = append(b.files, file{name: name, body: string(body)})
}

func (b *box) blob(body []byte) map[string]any {
	b.add("blobs/sha256/"+sum(body)[7:], body)
	return map[string]any{"digest": sum(body), "size": len(body)}
}

// image adds an image's blobs and gives its descriptor.
func (b *box) image(arch, label, how string, layers ...[]byte) map[string]any {
	var ls []any
	for _, l := range layers {
		d := b.blob(pack(b.t, how, l))
		d["mediaType"] = "application/vnd.oci.image.layer.v1.tar"
		if how != "" {
			d["mediaType"] = "application/vnd.oci.image.layer.v1.tar+" + how
		}
		ls = append(ls, d)
	}
	cfg := b.blob(testConfig(arch, label, layers...))
	cfg["mediaType"] = typeConfig
	d := b.blob(marshal(map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": cfg, "layers": ls}))
	d["mediaType"] = typeManifest
	return d
}

func (b *box) index(ds ...any) {
	b.add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	b.add("index.json", marshal(map[string]any{"schemaVersion": 2, "manifests": ds}))
}

func (b *box) tar() []byte { return makeTar(b.t, b.files...) }

func named(d map[string]any, name string) map[string]any {
	c := map[string]any{"annotations": map[string]string{annotationRef: name}}
	maps.Copy(c, d)
	return c
}

// dockerSave is what Docker wrote before it knew OCI: layers in directories, those that
// images share as links.
func dockerSave(t testing.TB) (data []byte, ids []string) {
	b := &box{t: t}
	one, two := base(t), makeTar(t, file{name: "etc/c", body: "three"})
	add := func(dir string, body []byte) {
		b.files = append(b.files, file{name: dir + "/", kind: tar.TypeDir, mode: 0o755})
		b.add(dir+"/VERSION", []byte("1.0"))
		b.add(dir+"/json", []byte(`{"id":"x"}`))
		b.add(dir+"/layer.tar", body)
	}
	add("aaa", one)
	b.files = append(b.files, file{name: "ccc/layer.tar", kind: tar.TypeSymlink, link: "../aaa/layer.tar"})
	add("bbb", two)
	var manifest []any
	for i, tags := range []any{[]string{"busybox:1", "r.example/b:2"}, nil} {
		cfg := testConfig(runtime.GOARCH, fmt.Sprint(i), one, two)
		ids = append(ids, sum(cfg))
		b.add(sum(cfg)[7:]+".json", cfg)
		manifest = append(manifest, map[string]any{"Config": sum(cfg)[7:] + ".json", "RepoTags": tags, "Layers": []string{[]string{"aaa", "ccc"}[i] + "/layer.tar", "bbb/layer.tar"}})
	}
	b.add("manifest.json", marshal(manifest))
	b.add("repositories", []byte(`{"busybox":{"1":"bbb"}}`))
	return b.tar(), ids
}

func TestLoadDockerSave(t *testing.T) {
	overStores(t, func(t *testing.T, o Options) {
		for _, how := range []string{"", "gzip", "zstd"} {
			t.Run(how, func(t *testing.T) {
				o := o
				o.Root, o.State = t.TempDir(), t.TempDir()
				data, ids := dockerSave(t)
				s := openTest(t, o)
				var seen []LoadProgress
				packed := pack(t, how, data)
				got, err := s.Load(t.Context(), streamOnly{bytes.NewReader(packed)}, func(p LoadProgress) { seen = append(seen, p) })
				if err != nil {
					t.Fatal(err)
				}
				want := []string{ids[0] + " [docker.io/library/busybox:1 r.example/b:2]", ids[1] + " []"}
				for i, l := range got {
					if s := fmt.Sprint(l.ID, " ", l.Names); s != want[i] {
						t.Errorf("loaded: got %s, want %s", s, want[i])
					}
				}
				if n := len(seen); n == 0 || seen[n-1].Layers != 2 || seen[n-1].Read > int64(len(packed)) || seen[n-1].Read == 0 {
					t.Errorf("progress: got %+v", seen)
				}
				img, err := s.Resolve("busybox:1")
				if err != nil || string(img.ID) != ids[0] || len(img.RepoDigests) != 0 || len(img.RepoTags) != 2 {
					t.Fatalf("resolve: got %+v, %v", img, err)
				}
				if got := fileIn(t, s, img.ID, 0, "etc/c") + fileIn(t, s, img.ID, 1, "etc/a"); got != "threeone" {
					t.Errorf("files: got %q", got)
				}
				// It all survives, and goes.
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = openTest(t, s.opt)
				for _, id := range ids {
					if img, err := s.Resolve(id); err != nil || fileIn(t, s, img.ID, 0, "etc/c") != "three" {
						t.Errorf("after a restart: %v", err)
					}
					mustRemove(t, s, id)
				}
				checkNothing(t, s)
			})
		}
	})
}

// TestLoadOfOthers reads what a library of others writes.
func TestLoadOfOthers(t *testing.T) {
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(base(t), types.DockerUncompressedLayer), static.NewLayer(makeTar(t, file{name: "etc/c", body: "x"}), types.DockerUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	top, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	var docker bytes.Buffer
	tag, err := name.NewTag("r.example/x:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.Write(tag, img, &docker); err != nil {
		t.Fatal(err)
	}
	other, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), static.NewLayer([]byte("not for us"), types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "other"}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{annotationName: "r.example/multi:1", annotationRef: "1"})); err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{annotationRef: "latest"})); err != nil {
		t.Fatal(err)
	}
	var oci bytes.Buffer
	w := tar.NewWriter(&oci)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	multi, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	overStores(t, func(t *testing.T, o Options) {
		s := openTest(t, o)
		if got := load(t, s, docker.Bytes()); len(got) != 1 || string(got[0].ID) != id.String() || !slices.Equal(got[0].Names, []string{"r.example/x:1"}) {
			t.Errorf("docker-archive: got %v", got)
		}
		if got := load(t, s, oci.Bytes()); len(got) != 1 || string(got[0].ID) != id.String() || !slices.Equal(got[0].Names, []string{"r.example/multi:1"}) {
			t.Errorf("layout: got %v", got)
		}
		got, err := s.Resolve(id.String())
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"r.example/multi@" + multi.String()}; !slices.Equal(got.RepoDigests, want) || len(got.RepoTags) != 2 {
			t.Errorf("names: got %v %v, want %v (manifest %s)", got.RepoDigests, got.RepoTags, want, top)
		}
		mustRemove(t, s, id.String())
		checkNothing(t, s)
	})
}

// TestLoadLayersThatDepend: a layer without its directories takes their attributes from
// below, so over another base it is another layer.
func TestLoadLayersThatDepend(t *testing.T) {
	other := makeTar(t, file{name: "etc/", kind: tar.TypeDir, mode: 0o711})
	top := makeTar(t, file{name: "etc/c", body: "x"})
	overStores(t, func(t *testing.T, o Options) {
		s := openTest(t, o)
		b := &box{t: t}
		b.index(named(b.image(runtime.GOARCH, "", "gzip", base(t), top), "a:1"), named(b.image(runtime.GOARCH, "", "gzip", other, top), "a:2"))
		got, err := s.Load(t.Context(), bytes.NewReader(b.tar()), nil)
		if o.LayerStore == snapshot.Directory {
			if err == nil || !strings.Contains(err.Error(), "one by one") {
				t.Errorf("got %v, %v, want a refusal", got, err)
			}
			checkNothing(t, s)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []os.FileMode{0o750, 0o711} {
			fs, err := s.View(t.Context(), "v", got[i].ID)
			if err != nil {
				t.Fatal(err)
			}
			if st, err := os.Stat(filepath.Join(fs.Lower[0], "etc")); err != nil || st.Mode().Perm() != want {
				t.Errorf("image %d: etc: got %v, %v, want mode %o", i, st, err, want)
			}
			if err := errors.Join(s.Release(t.Context(), "v"), s.Remove(t.Context(), string(got[i].ID))); err != nil {
				t.Error(err)
			}
		}
		checkNothing(t, s)
	})
}

// TestLoadAgain: what is here is not unpacked again when the documents come first, and
// a pulled image and a loaded one are one.
func TestLoadAgain(t *testing.T) {
	r := newReg(t)
	_, id := r.push(t, "x", "1", testImage{pack: "gzip", layers: [][]byte{base(t)}})
	s := openTest(t, Options{})
	mustPull(t, s, r.host()+"/x:1")
	img, err := s.Resolve(id)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t}
	l := b.blob(pack(t, "zstd", base(t)))
	l["mediaType"] = layerTypes[0] + "+zstd"
	cfg := b.blob(img.RawConfig)
	cfg["mediaType"] = typeConfig
	b.index(named(b.blob(marshal(map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": cfg, "layers": []any{l}})), "r.io/x:2"))
	for range 2 {
		slices.Reverse(b.files)
		layers := 0
		got, err := s.Load(t.Context(), bytes.NewReader(b.tar()), func(p LoadProgress) { layers = p.Layers })
		if err != nil || len(got) != 1 || string(got[0].ID) != id {
			t.Fatalf("load: got %v, %v", got, err)
		}
		if first := b.files[0].name == "index.json"; first == (layers > 0) {
			t.Errorf("documents first: %v, but %d layers were unpacked", first, layers)
		}
	}
	if img, err = s.Resolve("r.io/x:2"); err != nil || len(img.RepoTags) != 2 || len(img.RepoDigests) != 2 {
		t.Errorf("resolve: got %+v, %v", img, err)
	}
	if n := len(entries(t, filepath.Join(s.opt.Root, "layers"))); n > 1 {
		t.Errorf("%d layers are recorded, want 1", n)
	}
	mustRemove(t, s, id)
	checkNothing(t, s)
}

func TestLoadObeysThePolicy(t *testing.T) {
	data, _ := dockerSave(t)
	b := &box{t: t}
	b.index(b.image(runtime.GOARCH, "", "", base(t)))
	for text, want := range map[string][2]bool{
		`{"default":[{"type":"reject"}]}`: {},
		`{"default":[{"type":"reject"}],"transports":{"oci-archive":{"":[{"type":"insecureAcceptAnything"}]}}}`: {false, true},
	} {
		file := filepath.Join(t.TempDir(), "policy.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := policy.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		s := openTest(t, Options{Policy: p})
		for i, data := range [][]byte{data, b.tar()} {
			got, err := s.Load(t.Context(), bytes.NewReader(data), nil)
			if (err == nil) != want[i] {
				t.Errorf("%s: archive %d: got %v, %v", text, i, got, err)
			}
			if pre, ok := errors.AsType[*errdef.Prefixed](err); err != nil && (!ok || pre.Prefix != errdef.SignatureValidationFailed) {
				t.Errorf("%v has no prefix", err)
			}
			if err != nil {
				checkNothing(t, s)
			}
		}
	}
}

// zeros is a tar of one file of zeros, made as it is read.
func zeros(t testing.TB, size int64) io.Reader {
	t.Helper()
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	if err := w.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	return io.MultiReader(&head, io.LimitReader(zero{}, size+1024))
}

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestLoadNeedsLittleMemory: a large archive goes through, and is never in memory. The
// long form, CRI_TEST_LONG=1, has 1 GiB.
func TestLoadNeedsLittleMemory(t *testing.T) {
	size := int64(64 << 20)
	if os.Getenv("CRI_TEST_LONG") == "1" {
		size = 1 << 30
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, zeros(t, size)); err != nil {
		t.Fatal(err)
	}
	h := fmt.Sprintf("sha256:%x", sum.Sum(nil))
	cfg := marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux", "rootfs": map[string]any{"diff_ids": []string{h}}})
	var head, tail bytes.Buffer
	w := tar.NewWriter(&head)
	if err := w.WriteHeader(&tar.Header{Name: "l.tar", Mode: 0o644, Size: size + 1536, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	w = tar.NewWriter(&tail)
	for name, body := range map[string][]byte{"c.json": cfg, "manifest.json": []byte(`[{"Config":"c.json","Layers":["l.tar"]}]`)} {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(body)
	}
	_ = w.Close()
	overStores(t, func(t *testing.T, o Options) {
		s := openTest(t, o)
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		before, peak := m.HeapAlloc, uint64(0)
		got, err := s.Load(t.Context(), streamOnly{io.MultiReader(bytes.NewReader(head.Bytes()), zeros(t, size), bytes.NewReader(tail.Bytes()))}, func(LoadProgress) {
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
		})
		if err != nil {
			t.Fatal(err)
		}
		if used := int64(peak) - int64(before); used > 24<<20 {
			t.Errorf("%d MiB of heap for an archive of %d MiB", used>>20, size>>20)
		} else {
			t.Logf("%d KiB of heap for an archive of %d MiB", used>>10, size>>20)
		}
		mustRemove(t, s, string(got[0].ID))
		checkNothing(t, s)
	})
}
