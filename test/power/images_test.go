package power

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/test/faulty"
)

// tree is what an image must show: content by path.
type tree map[string]string

// registry serves images that share a layer and hide each other's files.
type registry struct {
	*faulty.Registry
	trees map[string]tree // by image ID
	refs  []string
	ids   []string // as refs
}

const imageCount = 3

// stamped is content no block of which occurs anywhere else.
func stamped(name string, size int) string {
	var b strings.Builder
	for i := 0; b.Len() < size; i++ {
		b.WriteString(strings.Repeat(fmt.Sprintf("%s %d;", name, i), 64))
	}
	return b.String()[:size]
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{Registry: faulty.New(t, faulty.Plain), trees: map[string]tree{}}
	rng := rand.New(rand.NewPCG(1, 2))
	shared := tree{}
	for n := range 150 {
		shared[fmt.Sprintf("d/%d/%d", n%7, n)] = stamped(fmt.Sprint("shared ", n), rng.IntN(20000))
	}
	base := pack(t, shared)
	for i := range imageCount {
		own, top := tree{}, tree{}
		for n := range 40 {
			own[fmt.Sprintf("own/%d", n)] = stamped(fmt.Sprintf("own %d %d", i, n), rng.IntN(60000))
		}
		own["own/big"] = stamped(fmt.Sprint("big ", i), 3<<20)
		top["d/0/0"] = stamped(fmt.Sprint("over ", i), 5000) // replaces
		top["d/1/.wh.1"] = ""                                // hides
		want := tree{}
		for _, m := range []tree{shared, own, top} {
			maps.Copy(want, m)
		}
		delete(want, "d/1/.wh.1")
		delete(want, "d/1/1")
		id := r.Push("x", fmt.Sprint(i), base, pack(t, own), pack(t, top))
		r.trees[id], r.ids = want, append(r.ids, id)
		r.refs = append(r.refs, fmt.Sprintf("%s/x:%d", r.Host(), i))
	}
	return r
}

func pack(t *testing.T, files tree) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, body := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(body))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// check compares an image's digests, and its files as a container would see them.
func (r *registry) check(t *testing.T, s *image.Store, id image.ID) {
	t.Helper()
	want, ok := r.trees[string(id)]
	if !ok {
		t.Errorf("image %s is listed and was never pushed", id)
		return
	}
	if err := s.Verify(t.Context(), string(id)); err != nil {
		t.Error(err)
		return
	}
	fsys, err := s.Prepare(t.Context(), "check", id, image.PrepareOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	top, err := mount.Overlay{Lower: fsys.Lower, Upper: fsys.Upper, Work: fsys.Work, Volatile: true}.Mount()
	if err != nil {
		t.Error(err)
	} else {
		compare(t, fmt.Sprintf("/proc/self/fd/%d/", top.Fd()), want)
		top.Close()
	}
	if err := s.Release(t.Context(), "check"); err != nil {
		t.Error(err)
	}
}

// compare reads every file below dir.
func compare(t *testing.T, dir string, want tree) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(p, dir)
		expect, ok := want[name]
		if !ok || string(body) != expect {
			t.Errorf("%s: %d bytes, want %d (known: %v)", name, len(body), len(expect), ok)
		}
		seen++
		return nil
	})
	if err != nil || seen != len(want) {
		t.Errorf("got %d files, %v; want %d", seen, err, len(want))
	}
}
