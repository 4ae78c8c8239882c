package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

func erofsStore(t *testing.T) *Store {
	t.Helper()
	testkit.Need(t, testkit.Root, testkit.EROFS, testkit.Kernel(6, 15))
	return openTest(t, Options{LayerStore: snapshot.EROFS})
}

func save(t testing.TB, s *Store, f ArchiveFormat, refs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Save(t.Context(), &b, refs, f); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestSaveAndLoad takes images to a node without a registry and back, in each format, over
// each store: their IDs and files stay.
func TestSaveAndLoad(t *testing.T) {
	r := newReg(t)
	l := makeTar(t, file{name: "etc/.wh.a"}, file{name: "etc/c", body: "three"}) // takes etc/ from below
	_, id1 := r.push(t, "x", "1", testImage{pack: "gzip", layers: [][]byte{base(t), l}})
	_, id2 := r.push(t, "y", "2", testImage{pack: "zstd", docker: true, label: "y", layers: [][]byte{base(t)}})
	_, id3 := r.push(t, "z", "3", testImage{})
	src := erofsStore(t)
	for _, ref := range []string{"/x:1", "/y:2", "/z:3"} {
		mustPull(t, src, r.host()+ref)
	}
	for _, format := range []ArchiveFormat{FormatOCI, FormatOCIGzip, FormatDocker} {
		t.Run(string(format), func(t *testing.T) {
			refs := []string{r.host() + "/x:1", id2, r.host() + "/z:3", id1}
			data := save(t, src, format, refs...)
			if again := save(t, src, format, refs...); !bytes.Equal(data, again) {
				t.Error("the same images give another archive")
			}
			overStores(t, func(t *testing.T, o Options) {
				s := openTest(t, o)
				got := load(t, s, data)
				want := []Loaded{{ID(id1), []string{r.host() + "/x:1"}}, {ID(id2), nil}, {ID(id3), []string{r.host() + "/z:3"}}}
				if !slices.EqualFunc(got, want, func(a, b Loaded) bool { return a.ID == b.ID && slices.Equal(a.Names, b.Names) }) {
					t.Errorf("loaded: got %v, want %v", got, want)
				}
				if got := fileIn(t, s, ID(id1), 0, "etc/c") + fileIn(t, s, ID(id1), 1, "etc/b") + fileIn(t, s, ID(id2), 0, "etc/a"); got != "threetwoone" {
					t.Errorf("files: got %q", got)
				}
				if o.LayerStore == snapshot.EROFS { // and on to the next node
					if again := save(t, s, format, refs...); !bytes.Equal(data, again) {
						t.Error("loaded and saved, it is another archive")
					}
				}
				if img, err := s.Resolve(id1); err != nil || len(img.RepoDigests) != 1 || strings.Contains(img.RepoDigests[0], id1) {
					t.Errorf("image: got %+v, %v", img, err)
				}
				for _, id := range []string{id1, id2, id3} {
					mustRemove(t, s, id)
				}
				checkNothing(t, s)
			})
		})
	}
}

// TestSaveForOthers lets a library of others read what is written.
func TestSaveForOthers(t *testing.T) {
	r := newReg(t)
	_, id := r.push(t, "x", "1", testImage{pack: "gzip", layers: [][]byte{base(t), makeTar(t, file{name: "c", body: "x"})}})
	s := erofsStore(t)
	ref := r.host() + "/x:1"
	mustPull(t, s, ref)
	for _, format := range []ArchiveFormat{FormatOCI, FormatOCIGzip, FormatDocker} {
		dir := t.TempDir()
		data := save(t, s, format, ref)
		untar(t, dir, data)
		path, err := layout.FromPath(dir)
		if err != nil {
			t.Fatal(err)
		}
		index, err := path.ImageIndex()
		if err != nil {
			t.Fatal(err)
		}
		how := []validate.Option{validate.Fast} // the rest knows only gzip
		if format == FormatOCIGzip {
			how = nil
		}
		if err := validate.Index(index, how...); err != nil {
			t.Errorf("%s: %v", format, err)
		}
		m, err := index.IndexManifest()
		if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Annotations[annotationName] != ref || m.Manifests[0].Annotations[annotationRef] != "1" ||
			m.Manifests[0].Platform == nil || m.Manifests[0].Platform.Architecture != runtime.GOARCH {
			t.Fatalf("%s: index: got %+v, %v", format, m, err)
		}
		img, err := index.Image(m.Manifests[0].Digest)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := img.ConfigName(); err != nil || h.String() != id {
			t.Errorf("%s: id: got %s, %v, want %s", format, h, err, id)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 2 {
			t.Fatal(layers, err)
		}
		for i, l := range layers {
			rc, err := l.Uncompressed()
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(rc)
			if want := s.images[ID(id)].image.DiffIDs[i]; err != nil || sum(b) != string(want) {
				t.Errorf("%s: layer %d: got %s, %v, want %s", format, i, sum(b), err, want)
			}
			_ = rc.Close()
		}
		if _, err := os.Stat(filepath.Join(dir, fileManifest)); (err == nil) != (format == FormatDocker) {
			t.Errorf("%s: manifest.json: %v", format, err)
		}
		if format != FormatDocker {
			continue
		}
		tag, err := name.NewTag(ref)
		if err != nil {
			t.Fatal(err)
		}
		docker, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, &tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(docker); err != nil {
			t.Errorf("docker-archive: %v", err)
		}
	}
}

func untar(t *testing.T, dir string, data []byte) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(p, 0o700)
		} else {
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(p, b, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSaveRefuses(t *testing.T) {
	r := newReg(t)
	_, id := r.simple(t, "x", "1", "x")
	dirs := openTest(t, Options{LayerStore: snapshot.Directory})
	mustPull(t, dirs, r.host()+"/x:1")
	s := erofsStore(t)
	mustPull(t, s, r.host()+"/x:1")
	for name, tc := range map[string]struct {
		s      *Store
		refs   []string
		format ArchiveFormat
		want   string
		kind   error
	}{
		"no such image": {s, []string{id, "busybox"}, FormatOCI, `"busybox"`, errdef.ErrNotFound},
		"nothing":       {s, nil, FormatOCI, "no image", errdef.ErrInvalid},
		"format":        {s, []string{id}, "zip", "none of", errdef.ErrInvalid},
		"directories":   {dirs, []string{id}, FormatOCI, "kept as a directory", errors.ErrUnsupported},
	} {
		var b bytes.Buffer
		err := tc.s.Save(t.Context(), &b, tc.refs, tc.format)
		if !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) || b.Len() != 0 {
			t.Errorf("%s: got %v and %d bytes, want %q", name, err, b.Len(), tc.want)
		}
	}
	boom := errors.New("boom")
	if err := s.Save(t.Context(), failingWriter{boom}, []string{id}, FormatOCI); !errors.Is(err, boom) {
		t.Errorf("writer fails: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Save(ctx, io.Discard, []string{id}, FormatOCIGzip); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	// Nothing is held any more.
	mustRemove(t, s, id)
	checkNothing(t, s)
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// TestSaveFindsDamage: a layer is not written out with a wrong byte as if it were whole.
func TestSaveFindsDamage(t *testing.T) {
	r := newReg(t)
	_, id := r.simple(t, "x", "1", "x")
	for _, format := range []ArchiveFormat{FormatOCI, FormatOCIGzip} {
		s := erofsStore(t)
		mustPull(t, s, r.host()+"/x:1")
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		flip(t, filepath.Join(s.opt.Root, "l", s.images[ID(id)].layers[1].Name+".tar"), 600)
		var b bytes.Buffer
		if err := s.Save(t.Context(), &b, []string{id}, format); !errors.Is(err, snapshot.ErrDamaged) {
			t.Errorf("%s: got %v, want damaged", format, err)
		}
		if got, err := s.Load(t.Context(), &b, nil); err == nil {
			t.Errorf("%s: what was written could be loaded: %v", format, got)
		}
		if _, err := s.Resolve(id); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("%s: the damaged image is still there: %v", format, err)
		}
		if got := mustPull(t, s, r.host()+"/x:1"); string(got) != id {
			t.Errorf("%s: healed: got %s", format, got)
		}
		save(t, s, format, id)
	}
}
