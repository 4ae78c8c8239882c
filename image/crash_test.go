package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// crashEnv turns this test binary into the process that is killed.
const crashEnv = "CRI_IMAGE_CRASH"

// TestCrashChild pulls, prepares, releases and removes until it is killed.
func TestCrashChild(t *testing.T) {
	args := strings.Split(os.Getenv(crashEnv), " ")
	if len(args) != 4 {
		t.Skip("part of TestCrashes")
	}
	s, err := Open(t.Context(), Options{Root: args[0], State: args[1], LayerStore: snapshot.Format(args[3])})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	var wg sync.WaitGroup
	for i := range crashImages {
		wg.Go(func() {
			for n := 0; ; n++ {
				if err := useImage(t.Context(), s, fmt.Sprintf("%s/x:%d", args[2], i), fmt.Sprintf("c%d-%d", i, n%3)); err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
			}
		})
	}
	wg.Wait()
}

func useImage(ctx context.Context, s *Store, ref, key string) error {
	id, err := s.Pull(ctx, PullRequest{Ref: ref})
	if err != nil {
		return err
	}
	// What a former life left under that key is released first.
	if err := s.Release(ctx, key); err != nil {
		return err
	}
	root, err := s.Prepare(ctx, key, id, PrepareOptions{})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root.Upper, "new"), []byte("x"), 0o600); err != nil {
		return err
	}
	if rand.IntN(2) == 0 { // #nosec G404 -- no secret; else it stays, and holds its layers
		if err := s.Release(ctx, key); err != nil {
			return err
		}
	}
	if rand.IntN(2) == 0 { // #nosec G404 -- no secret
		return nil
	}
	if err := s.Remove(ctx, string(id)); !errors.Is(err, errdef.ErrPhase) { // in use
		return err
	}
	return nil
}

const crashImages = 3

// crashLayers makes the layers of image i: one shared by all, one of its own, and one
// that depends on those below. It gives the files that each layer's tree must have.
func crashLayers(t *testing.T, i int) (tars [][]byte, want []map[string]string) {
	t.Helper()
	add := func(fs ...file) {
		m := map[string]string{}
		for _, f := range fs {
			if f.kind != tar.TypeDir && f.kind != tar.TypeLink {
				m[f.name] = f.body
			}
		}
		tars, want = append(tars, makeTar(t, fs...)), append(want, m)
	}
	shared := []file{{name: "d/", kind: tar.TypeDir, mode: 0o755}}
	for n := range 100 {
		shared = append(shared, file{name: fmt.Sprintf("d/%d", n), body: strings.Repeat(fmt.Sprint(n), 100*n)})
	}
	add(shared...)
	own := fmt.Sprintf("own %d ", i)
	add(file{name: "own", body: strings.Repeat(own, 100000)}, file{name: fmt.Sprintf("d/%d", i), body: own})
	add(file{name: "link", link: fmt.Sprintf("d/%d", i), kind: tar.TypeLink}, file{name: "d/new", body: "new"})
	want[2]["link"], want[2][fmt.Sprintf("d/%d", i)] = own, own
	return tars, want
}

// TestCrashes kills a process at random points of its work with images, and checks that
// the next Open finds whole images and leaves nothing else.
func TestCrashes(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	for _, f := range []snapshot.Format{snapshot.EROFS, snapshot.Directory} {
		t.Run(string(f), func(t *testing.T) {
			if f == snapshot.EROFS {
				testkit.Need(t, testkit.EROFS, testkit.Kernel(6, 15))
			}
			testCrashes(t, f)
		})
	}
}

func testCrashes(t *testing.T, format snapshot.Format) {
	rounds := 20
	if !testing.Short() {
		rounds = 40
	}
	r := newReg(t)
	want := map[string][]map[string]string{}
	for i := range crashImages {
		tars, files := crashLayers(t, i)
		_, id := r.push(t, "x", fmt.Sprint(i), testImage{pack: "gzip", layers: tars, label: fmt.Sprint(i)})
		want[id] = files
	}
	root, state := t.TempDir(), t.TempDir()
	var seen struct{ images, halfTrees, snapshots int }
	within := 150 * time.Millisecond // long enough for a pull; longer where everything is slow
	for round := range rounds {
		killOne(t, []string{root, state, r.host(), string(format)}, within)
		if round%5 == 4 { // a reboot as well
			state = t.TempDir()
		}
		seen.halfTrees += unrecorded(t, root)
		s, err := Open(t.Context(), Options{Root: root, State: state, LayerStore: format})
		if err != nil {
			t.Fatalf("round %d: open: %v", round, err)
		}
		for _, img := range s.List() {
			seen.images++
			checkImage(t, s, img, want[string(img.ID)])
		}
		seen.snapshots += len(s.Keys())
		if seen.images == 0 || seen.snapshots == 0 {
			within = min(2*within, 5*time.Second)
		}
		if err := s.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		checkOrphans(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	t.Logf("%d rounds: %+v", rounds, seen)
	if seen.images == 0 || seen.halfTrees == 0 || seen.snapshots == 0 {
		t.Errorf("the crashes hit nothing: %+v", seen)
	}
}

// killOne runs a child for a random while.
func killOne(t *testing.T, args []string, within time.Duration) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashChild$") // #nosec G204 G702 -- this test
	cmd.Env = append(os.Environ(), crashEnv+"="+strings.Join(args, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	word, err := lines.ReadString('\n')
	if word != "ready\n" {
		t.Errorf("child: got %q, %v", word, err)
	}
	time.Sleep(rand.N(within)) // #nosec G404 -- no secret
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if rest, _ := io.ReadAll(lines); len(rest) > 0 {
		t.Errorf("child: %s", rest)
	}
	var ee *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL { //nolint:forcetypeassert // on Linux
		t.Errorf("child: %v", err)
	}
}

// unrecorded counts the layer trees that have no record.
func unrecorded(t *testing.T, root string) (n int) {
	t.Helper()
	for _, name := range entries(t, filepath.Join(root, "l")) {
		name, _, _ = strings.Cut(name, ".") // EROFS layers have two files
		if _, err := os.Stat(filepath.Join(root, "layers", name+".json")); errors.Is(err, fs.ErrNotExist) && name != "0" {
			n++
		}
	}
	return n
}

func entries(t testing.TB, dir string) (names []string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

// checkImage compares the layers' trees with what their streams held.
func checkImage(t *testing.T, s *Store, img *Image, want []map[string]string) {
	t.Helper()
	key := "check-" + img.ID.Short()
	v, err := s.View(t.Context(), key, img.ID)
	if err != nil || len(v.Lower) != len(want) {
		t.Fatalf("view of %s: got %v, %v", img.ID, v, err)
	}
	for i, files := range want {
		dir, left := v.Lower[len(want)-1-i], len(files)
		err := filepath.WalkDir(dir+"/", func(p string, e fs.DirEntry, err error) error { // the slash: it may be a link to a mount
			if err != nil || e.IsDir() {
				return err
			}
			name := strings.TrimPrefix(p, dir+"/")
			body, ok := files[name]
			got, err := os.ReadFile(p)
			if !ok || string(got) != body {
				t.Errorf("image %s, layer %d, %s: got %d bytes, want %d (known: %v)", img.ID, i, name, len(got), len(body), ok)
			}
			left--
			return err
		})
		if err != nil || left != 0 {
			t.Errorf("image %s, layer %d: %d files are missing, %v", img.ID, i, left, err)
		}
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Lstat(filepath.Join(v.Lower[0], "link"), &a), unix.Lstat(filepath.Join(v.Lower[0], "d"), &b)); err != nil || a.Nlink != 2 || b.Mode != unix.S_IFDIR|0o755 {
		t.Errorf("image %s: link has %d names, its directory mode %o, %v", img.ID, a.Nlink, b.Mode, err)
	}
	if err := s.Release(t.Context(), key); err != nil {
		t.Error(err)
	}
}

// checkOrphans fails when the store's directories hold what no record names.
func checkOrphans(t *testing.T, s *Store) {
	t.Helper()
	root, state := s.opt.Root, s.opt.State
	used, written := map[string]bool{"0": true}, map[string]bool{}
	readAll := func(dir string, add func(layers []string, write string)) {
		all := entries(t, dir)
		recs, err := content.OpenRecords(dir, false)
		if err != nil {
			t.Fatal(err)
		}
		names, err := recs.Names()
		if err != nil || len(names) != len(all) {
			t.Errorf("%s: got %v, %v, want records and nothing else", dir, all, err)
		}
		for _, n := range names {
			var r struct {
				Layers []string `json:"layers"`
				Write  string   `json:"write"`
			}
			if err := recs.Get(n, &r); err != nil {
				t.Error(err)
			}
			add(r.Layers, r.Write)
		}
	}
	for _, dir := range []string{filepath.Join(root, "images"), filepath.Join(state, "snapshots")} {
		readAll(dir, func(layers []string, write string) {
			for _, l := range layers {
				used[l] = true
			}
			written[write] = true
		})
	}
	var layers []string
	for _, f := range entries(t, filepath.Join(root, "l")) {
		l, _, _ := strings.Cut(f, ".") // EROFS layers have two files
		if !slices.Contains(layers, l) {
			layers = append(layers, l)
		}
	}
	for _, l := range layers {
		if !used[l] {
			t.Errorf("layer tree %s is nobody's", l)
		}
	}
	if n := len(entries(t, filepath.Join(root, "layers"))); n != len(layers)-1 || len(layers) != len(used) {
		t.Errorf("layers: got %d records and %d trees, %d are used", n, len(layers), len(used))
	}
	for _, w := range entries(t, filepath.Join(root, "s")) {
		if !written[w] {
			t.Errorf("writable layer %s is nobody's", w)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); len(entries(t, filepath.Join(root, "trash"))) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("trash: still %v", entries(t, filepath.Join(root, "trash")))
			return
		}
	}
}
