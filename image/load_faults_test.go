package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/cri-runtime/cri-runtime/image/archive"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// TestLoadCutOff: an archive may end anywhere, and so may the wish to have it.
func TestLoadCutOff(t *testing.T) {
	data, _ := dockerSave(t)
	for _, how := range []string{"", "gzip"} {
		packed := pack(t, how, data)
		overStores(t, func(t *testing.T, o Options) {
			s := openTest(t, o)
			for i := range 24 {
				n := (len(packed) - 8) * i / 24
				if how == "" { // the end marker says nothing more
					n = (len(packed) - 2048) * i / 24
				}
				if how == "" && i%2 == 1 {
					n = n &^ 511
				}
				if got, err := s.Load(t.Context(), bytes.NewReader(packed[:n]), nil); !errors.Is(err, errdef.ErrInvalid) {
					t.Errorf("%d of %d bytes: got %v, %v, want invalid", n, len(packed), got, err)
				}
				boom := errors.New("boom")
				if got, err := s.Load(t.Context(), io.MultiReader(bytes.NewReader(packed[:n]), errReader{boom}), nil); !errors.Is(err, boom) {
					t.Errorf("%d bytes, then an error: got %v, %v", n, got, err)
				}
			}
			for i := range 4 {
				ctx, cancel := context.WithCancel(t.Context())
				n := 0
				got, err := s.Load(ctx, bytes.NewReader(packed), func(LoadProgress) {
					if n++; n > i {
						cancel()
					}
				})
				if cancel(); !errors.Is(err, context.Canceled) {
					t.Errorf("cancelled at report %d: got %v, %v", i, got, err)
				}
			}
			checkNothing(t, s)
		})
	}
}

// TestLoadAltered: whatever a damaged archive says, it is loaded or refused, and nothing
// is left of it.
func TestLoadAltered(t *testing.T) {
	docker, _ := dockerSave(t)
	b := &box{t: t}
	b.index(named(b.image(runtime.GOARCH, "", "gzip", base(t)), "a:1"))
	seeds := [][]byte{docker, b.tar()}
	rng := rand.New(rand.NewPCG(1, 2))
	overStores(t, func(t *testing.T, o Options) {
		s := openTest(t, o)
		for i := range 150 {
			data := bytes.Clone(seeds[i%2])
			for range 1 + rng.IntN(3) {
				data[rng.IntN(len(data))] ^= byte(1 + rng.IntN(255))
			}
			got, err := s.Load(t.Context(), bytes.NewReader(data), nil)
			if (err == nil) != (len(got) > 0) {
				t.Errorf("loaded: %v, %v", got, err)
			}
			for _, l := range got {
				mustRemove(t, s, string(l.ID))
			}
		}
		checkNothing(t, s)
	})
}

// FuzzArchive: documents of an archive are understood or refused, and what is understood
// is whole.
func FuzzArchive(f *testing.F) {
	docker, _ := dockerSave(f)
	f.Add(docker)
	b := &box{t: f}
	b.index(named(b.image(runtime.GOARCH, "", "gzip", base(f)), "a:1"))
	f.Add(b.tar())
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := archive.Read(t.Context(), bytes.NewReader(data), func(_ context.Context, _ *archive.Contents, _ *archive.File, r io.Reader) (Digest, error) {
			h := sha256.New()
			_, err := io.Copy(h, r)
			return Digest(fmt.Sprintf("sha256:%x", h.Sum(nil))), err
		})
		var plans []plan
		if err == nil {
			plans, err = plansOf(c)
		}
		if err != nil {
			if !errors.Is(err, errdef.ErrInvalid) && !errors.Is(err, errdef.ErrNotFound) && !errors.Is(err, errdef.ErrExhausted) {
				t.Fatalf("%v is of no kind", err)
			}
			return
		}
		for _, p := range plans {
			if p.config == nil || len(p.layers) != len(p.config.RootFS.DiffIDs) || p.id == "" || string(p.id) != sum(p.raw) && !strings.HasPrefix(string(p.id), "sha512:") {
				t.Fatalf("plan: %+v", p)
			}
		}
	})
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// TestLoadDies: what a load had on disk when its process ended is swept away by the next.
func TestLoadDies(t *testing.T) {
	data, _ := dockerSave(t)
	overStores(t, func(t *testing.T, o Options) {
		s := openTest(t, o)
		copies := map[int]string{} // of the store, by the layers that were unpacked
		if _, err := s.Load(t.Context(), bytes.NewReader(data), func(p LoadProgress) {
			if copies[p.Layers] == "" {
				copies[p.Layers] = t.TempDir()
				if out, err := exec.Command("cp", "-a", o.Root+"/.", copies[p.Layers]).CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		if len(copies) != 3 || len(entries(t, filepath.Join(copies[2], "l"))) < 3 {
			t.Errorf("copies: got %v, want with 0, 1 and 2 layers", copies)
		}
		for _, root := range copies {
			checkNothing(t, openTest(t, Options{Root: root, State: t.TempDir(), LayerStore: o.LayerStore}))
		}
	})
}

// TestLoadsTogether: loads of one archive, pulls and removals at once lose and leak
// nothing.
func TestLoadsTogether(t *testing.T) {
	r := newReg(t)
	docker, ids := dockerSave(t)
	_, id := r.push(t, "x", "1", testImage{pack: "gzip", layers: [][]byte{base(t), makeTar(t, file{name: "etc/c", body: "three"})}})
	overStores(t, func(t *testing.T, o Options) {
		s := openTest(t, o)
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				for range 5 {
					var err error
					switch {
					case i < 3:
						_, err = s.Load(t.Context(), bytes.NewReader(docker), nil)
					case i < 5:
						_, err = s.Pull(t.Context(), PullRequest{Ref: r.host() + "/x:1"})
					default:
						err = s.Remove(t.Context(), ids[0])
					}
					if err != nil && !errors.Is(err, errdef.ErrRetry) { // removed between two of its names
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		load(t, s, docker)
		for _, id := range append(ids, id) {
			if got := fileIn(t, s, ID(id), 0, "etc/c") + fileIn(t, s, ID(id), 1, "etc/a"); got != "threeone" {
				t.Errorf("%s: got %q", id, got)
			}
		}
		for _, id := range append(ids, id) {
			mustRemove(t, s, id)
		}
		checkNothing(t, s)
	})
}
