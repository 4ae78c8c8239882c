package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func mustPull(t *testing.T, s *Store, ref string) ID {
	t.Helper()
	id, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// mustRemove removes an image and its layers. One that is being synced keeps them a
// little longer, and a pull would find them.
func mustRemove(t testing.TB, s *Store, ref string) {
	t.Helper()
	if err := errors.Join(s.Flush(t.Context()), s.Remove(t.Context(), ref)); err != nil {
		t.Fatal(err)
	}
}

func (r *reg) simple(t *testing.T, repo, tag, label string) (top, id string) {
	t.Helper()
	return r.push(t, repo, tag, testImage{label: label, pack: "gzip", layers: [][]byte{base(t), makeTar(t, file{name: "etc/c", body: label})}})
}

func TestNames(t *testing.T) {
	r := newReg(t)
	top, id := r.simple(t, "x", "1", "x")
	r.simple(t, "x", "2", "x")
	r.simple(t, "y", "1", "x")
	s := openTest(t, Options{Pinned: []string{"*/y:*"}})
	name := r.host() + "/x"

	mustPull(t, s, name+":2@"+top)
	img, err := s.Resolve(id)
	if err != nil {
		t.Fatal(err)
	}
	if len(img.RepoTags) != 0 || !slices.Equal(img.RepoDigests, []string{name + "@" + top}) || img.Pinned {
		t.Errorf("by digest: got tags %v, digests %v, pinned %v", img.RepoTags, img.RepoDigests, img.Pinned)
	}
	for _, ref := range []string{name + ":1", name + ":2", r.host() + "/y:1"} {
		if got := mustPull(t, s, ref); string(got) != id {
			t.Errorf("pull %s: got %s, want %s", ref, got, id)
		}
	}
	if got := len(s.List()); got != 1 {
		t.Errorf("images: got %d, want 1", got)
	}
	for _, ref := range []string{name + ":1", name + ":2", r.host() + "/y:1", name + "@" + top, name + ":9@" + top, id, id[7:], id[7:20], id[:20]} {
		img, err := s.Resolve(ref)
		if err != nil || string(img.ID) != id {
			t.Errorf("resolve %s: got %v, %v", ref, img, err)
			continue
		}
		if len(img.RepoTags) != 3 || len(img.RepoDigests) != 2 || !img.Pinned {
			t.Errorf("names: got %v %v, pinned %v", img.RepoTags, img.RepoDigests, img.Pinned)
		}
	}
	for _, ref := range []string{name, name + ":3", "busybox", "sha256:" + strings.Repeat("0", 64), "abcdef0123"} {
		if img, err := s.Resolve(ref); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("resolve %s: got %v, %v, want not found", ref, img, err)
		}
	}
	// A tag that moves leaves the old image without it.
	_, id2 := r.simple(t, "x", "1", "other")
	mustPull(t, s, name+":1")
	if img, err := s.Resolve(name + ":1"); err != nil || string(img.ID) != id2 {
		t.Errorf("moved tag: got %v, %v, want %s", img, err, id2)
	}
	if img, err := s.Resolve(id); err != nil || slices.Contains(img.RepoTags, name+":1") {
		t.Errorf("old image: got %v, %v", img, err)
	}
}

func TestRemoveIsCompleteAndIdempotent(t *testing.T) {
	r := newReg(t)
	_, id := r.simple(t, "x", "1", "x")
	s := openTest(t, Options{})
	mustPull(t, s, r.host()+"/x:1")
	fs, err := s.Prepare(t.Context(), "c", ID(id), PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), id); !errors.Is(err, errdef.ErrPhase) || !strings.Contains(err.Error(), "in use by c") || len(s.List()) != 1 {
		t.Errorf("remove image in use: got %v, images %v", err, s.List())
	}
	if _, err := os.Stat(filepath.Join(fs.Lower[1], "etc/a")); err != nil {
		t.Errorf("layer in use: %v", err)
	}
	if err := s.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, ref := range []string{r.host() + "/x:1", id, id[7:], r.host() + "/x:1", id} {
		wg.Go(func() {
			if err := s.Remove(t.Context(), ref); err != nil {
				t.Errorf("remove %s: %v", ref, err)
			}
			if got := s.List(); len(got) != 0 {
				t.Errorf("images after remove: got %d", len(got))
			}
		})
	}
	wg.Wait()
	if err := s.Release(t.Context(), "c"); err != nil {
		t.Errorf("release again: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, s.opt)
	_ = s.Close()
	checkEmpty(t, s.opt.Root)
}

// checkEmpty fails when a store holds more than its fixed directories.
func checkEmpty(t *testing.T, root string) {
	t.Helper()
	for dir, want := range map[string]int{"l": 1, "s": 0, "layers": 0, "images": 0} {
		es, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil || len(es) != want {
			t.Errorf("%s: got %v, %v, want %d entries", dir, es, err, want)
		}
	}
}

func TestSnapshots(t *testing.T) {
	r := newReg(t)
	etc := makeTar(t, file{name: "etc/", kind: tar.TypeDir, mode: 0o755}, file{name: "etc/b", body: "two"})
	_, id := r.push(t, "x", "1", testImage{layers: [][]byte{
		makeTar(t, file{name: "./", kind: tar.TypeDir, mode: 0o711, uid: 3, gid: 4}, file{name: "a", body: "1"}), etc,
		makeTar(t, file{name: "etc/.wh.b"}), etc}})
	s := openTest(t, Options{})
	mustPull(t, s, r.host()+"/x:1")
	fs, err := s.Prepare(t.Context(), "c", ID(id), PrepareOptions{UpperUID: 100000, UpperGID: 200000})
	if err != nil {
		t.Fatal(err)
	}
	if len(fs.Lower) != 3 {
		t.Errorf("lower: got %v, want the repeated layer once", fs.Lower)
	}
	var st unix.Stat_t
	if err := unix.Lstat(fs.Upper, &st); err != nil || st.Mode&0o7777 != 0o711 || st.Uid != 100003 || st.Gid != 200004 {
		t.Errorf("upper: got %+v, %v", st, err)
	}
	at := t.TempDir()
	if err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+strings.Join(fs.Lower, ":")+",upperdir="+fs.Upper+",workdir="+fs.Work); err != nil {
		t.Fatalf("mount: %v", err)
	}
	err = os.WriteFile(filepath.Join(at, "new"), make([]byte, 10000), 0o600)
	if _, e := os.Stat(filepath.Join(at, "etc/b")); err == nil {
		err = e
	}
	if e := unix.Unmount(at, 0); e != nil || err != nil {
		t.Fatal(err, e)
	}
	bytes, inodes, err := s.Usage("c")
	if err != nil || bytes < 10000 || inodes != 2 {
		t.Errorf("usage: got %d bytes, %d inodes, %v", bytes, inodes, err)
	}
	v, err := s.View(t.Context(), "v", ID(id))
	if err != nil || v.Upper != "" || !slices.Equal(v.Lower, fs.Lower) {
		t.Errorf("view: got %+v, %v", v, err)
	}
	if _, err := s.View(t.Context(), "c", ID(id)); !errors.Is(err, errdef.ErrExists) {
		t.Errorf("view of a container's key: got %v", err)
	}
	for _, key := range []string{"", "../x", "a/b", ".x", strings.Repeat("k", 300)} {
		if _, err := s.Prepare(t.Context(), key, ID(id), PrepareOptions{}); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("key %.10q: got %v", key, err)
		}
	}
	l, w, err := s.FsUsage()
	if err != nil || l.Bytes == 0 || l.Inodes == 0 || w.Bytes != bytes || w.Inodes != inodes {
		t.Errorf("totals: got %+v, %+v, %v", l, w, err)
	}
}

func TestReopen(t *testing.T) {
	r := newReg(t)
	_, id := r.simple(t, "x", "1", "x")
	_, id2 := r.simple(t, "y", "1", "y")
	s := openTest(t, Options{})
	mustPull(t, s, r.host()+"/x:1")
	mustPull(t, s, r.host()+"/y:1")
	fs, err := s.Prepare(t.Context(), "c", ID(id), PrepareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := s.List()
	own, shared := s.images[ID(id)].layers[1].Name, s.images[ID(id)].layers[0].Name
	reopen := func(state string) {
		t.Helper()
		_ = s.Close()
		o := s.opt
		o.State = state
		s = openTest(t, o)
	}
	orphan := filepath.Join(s.opt.Root, "l", "zz")
	if err := os.MkdirAll(filepath.Join(orphan, "half"), 0o700); err != nil {
		t.Fatal(err)
	}
	reopen(s.opt.State)
	if got := s.List(); len(got) != 2 || fmt.Sprint(*got[0], *got[1]) != fmt.Sprint(*before[0], *before[1]) {
		t.Errorf("images: got %v", got)
	}
	if got, err := s.Snapshot("c"); err != nil || len(got.Lower) != len(fs.Lower) || got.Upper != fs.Upper || !slices.Equal(s.Keys(), []string{"c"}) {
		t.Errorf("snapshot: got %v, %v; keys %v", got, err, s.Keys())
	}
	if _, err := os.Stat(orphan); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("orphan: got %v", err)
	}
	// A reboot: the state directory is new.
	reopen(t.TempDir())
	if _, err := os.Stat(fs.Upper); !errors.Is(err, os.ErrNotExist) || len(s.Keys()) != 0 {
		t.Errorf("writable layer after a reboot: got %v, keys %v", err, s.Keys())
	}
	// A damaged record costs that image only.
	rec := filepath.Join(s.opt.Root, "images", recordName(ID(id))+".json")
	data, err := os.ReadFile(rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(rec, data[:len(data)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	reopen(t.TempDir())
	if got := s.List(); len(got) != 1 || string(got[0].ID) != id2 {
		t.Errorf("images beside a damaged record: got %v", got)
	}
	if got := layerFiles(t, s, own); len(got) != 0 {
		t.Errorf("its own layer: got %v", got)
	}
	files := layerFiles(t, s, shared)
	if len(files) == 0 {
		t.Error("the shared layer is gone")
	}
	// A missing layer costs its images; a pull heals them.
	for _, f := range files {
		if err := os.RemoveAll(f); err != nil {
			t.Fatal(err)
		}
	}
	reopen(t.TempDir())
	if got := s.List(); len(got) != 0 {
		t.Errorf("images without their layer: got %v", got)
	}
	if got := mustPull(t, s, r.host()+"/y:1"); string(got) != id2 {
		t.Errorf("pull again: got %s, want %s", got, id2)
	}
}

// layerFiles are what a layer has on disk, whatever its format.
func layerFiles(t *testing.T, s *Store, name string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.opt.Root, "l", name+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(f string) bool {
		base, _, _ := strings.Cut(filepath.Base(f), ".")
		return base != name
	})
}

func TestConcurrentPullsAreOneTransfer(t *testing.T) {
	r := newReg(t)
	l := base(t)
	_, id := r.push(t, "x", "1", testImage{layers: [][]byte{l}})
	_, id2 := r.push(t, "x", "2", testImage{layers: [][]byte{l}, label: "2"})
	path := "/v2/x/blobs/" + sum(l)
	started, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.setHook(func(_ http.ResponseWriter, q *http.Request) bool {
		if q.URL.Path == path {
			once.Do(func() { close(started) })
			<-gate
		}
		return false
	})
	s := openTest(t, Options{})
	first, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Pull(first, PullRequest{Ref: r.host() + "/x:1"}); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled caller: got %v", err)
		}
	})
	<-started
	pull := func(tag, want string) {
		wg.Go(func() {
			if got, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/x:" + tag}); err != nil || string(got) != want {
				t.Errorf("pull: got %s, %v, want %s", got, err, want)
			}
		})
	}
	for range 5 {
		pull("1", id)
		pull("2", id2)
	}
	for s.pulls.waiting() < 11 {
		time.Sleep(time.Millisecond)
	}
	leave()
	for s.pulls.waiting() > 10 {
		time.Sleep(time.Millisecond)
	}
	close(gate)
	wg.Wait()
	if got := r.count("GET " + path); got != 1 {
		t.Errorf("transfers of the shared layer: got %d, want 1", got)
	}
	if got := r.count("GET /v2/x/manifests/1"); got != 1 {
		t.Errorf("transfers of the index: got %d, want 1", got)
	}
}

// waiting counts the callers of all pulls.
func (p *pulls) waiting() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.byKey {
		n += f.waiters
	}
	return n
}

func TestPullEndsWithItsLastCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pulls
		p.init(t.Context())
		defer p.close()
		ended := make(chan struct{})
		run := func(ctx context.Context) (ID, error) {
			<-ctx.Done()
			close(ended)
			return "", ctx.Err()
		}
		a, leaveA := context.WithTimeout(t.Context(), time.Second)
		b, leaveB := context.WithTimeout(t.Context(), time.Minute)
		defer leaveA()
		defer leaveB()
		fa, err := p.join(a, "k", run)
		if err != nil {
			t.Fatal(err)
		}
		fb, err := p.join(b, "k", run)
		if err != nil || fa != fb {
			t.Fatalf("join: got %p and %p, %v", fa, fb, err)
		}
		if _, err := p.wait(a, "k", fa); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("first caller: got %v", err)
		}
		synctest.Wait()
		select {
		case <-ended:
			t.Fatal("the pull ended while a caller waited")
		default:
		}
		if _, err := p.wait(b, "k", fb); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("second caller: got %v", err)
		}
		<-ended
	})
}

func TestCloseEndsPulls(t *testing.T) {
	r := newReg(t)
	l := base(t)
	r.push(t, "x", "1", testImage{layers: [][]byte{l}})
	started, gate := make(chan struct{}), make(chan struct{})
	defer close(gate)
	r.setHook(func(_ http.ResponseWriter, q *http.Request) bool {
		if strings.HasSuffix(q.URL.Path, sum(l)) {
			close(started)
			<-gate
		}
		return false
	})
	s := openTest(t, Options{})
	errs := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/x:1"})
		errs <- err
	}()
	<-started
	_ = s.Close()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("pull at close: got %v", err)
	}
	checkEmpty(t, s.opt.Root)
}
