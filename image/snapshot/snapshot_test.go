package snapshot

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/image/layer"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// each runs a test over both formats.
func each(t *testing.T, test func(t *testing.T, o Options)) {
	t.Helper()
	for _, f := range []Format{Directory, EROFS} {
		t.Run(string(f), func(t *testing.T) {
			need(t, f)
			testkit.Leaks(t)
			test(t, Options{Root: t.TempDir(), State: t.TempDir(), Format: f})
		})
	}
}

func need(t testing.TB, f Format) {
	t.Helper()
	testkit.Need(t, testkit.Root, testkit.Overlay)
	if f == EROFS {
		testkit.Need(t, testkit.EROFS, testkit.Kernel(6, 15))
	}
}

func open(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// reopen is a new start of the process, with the old one's end left to the test's.
func reopen(t testing.TB, s *Store, o Options) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, o)
}

// makeTar makes a layer of entries: "name/" is a directory, "name->target" a symbolic
// link, "name=>target" a hard link, any other a file that holds body.
func makeTar(t testing.TB, body string, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		h := &tar.Header{Name: n, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)), ModTime: time.Unix(1700000000, 0)}
		if name, to, ok := strings.Cut(n, "->"); ok {
			h.Name, h.Linkname, h.Typeflag, h.Size = name, to, tar.TypeSymlink, 0
		} else if name, to, ok := strings.Cut(n, "=>"); ok {
			h.Name, h.Linkname, h.Typeflag, h.Size = name, to, tar.TypeLink, 0
		} else if strings.HasSuffix(n, "/") {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o751, 0
		}
		err := w.WriteHeader(h)
		if err == nil && h.Size > 0 {
			_, err = w.Write([]byte(body))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// add unpacks and publishes an image of layers, bottom first.
func add(t testing.TB, s *Store, tars ...[]byte) (ls []*Layer) {
	t.Helper()
	var chain digest.Digest
	for i, b := range tars {
		diff := digest.FromBytes(b)
		if chain = digest.FromString(string(chain) + " " + string(diff)); i == 0 {
			chain = diff
		}
		l, ok := s.Hold(diff, chain)
		if !ok {
			var err error
			if l, err = s.Unpack(t.Context(), diff, chain, bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
		}
		ls = append(ls, l)
	}
	if err := s.Publish(t.Context(), ls); err != nil {
		t.Fatal(err)
	}
	return ls
}

// rootOf mounts a snapshot as a container's root.
func rootOf(t testing.TB, fs Rootfs) *os.File {
	t.Helper()
	f, err := mount.Overlay{Lower: fs.Lower, Upper: fs.Upper, Work: fs.Work, Volatile: fs.Upper != ""}.Mount()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func read(t testing.TB, root *os.File, name string) string {
	t.Helper()
	f, err := mount.OpenInRoot(root, name, os.O_RDONLY)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	b := make([]byte, 4096)
	n, _ := f.Read(b)
	return string(b[:n])
}

// checkRoot compares files of a snapshot; "" stands for one that is not there.
func checkRoot(t testing.TB, fs Rootfs, want map[string]string) {
	t.Helper()
	root := rootOf(t, fs)
	defer root.Close()
	for name, body := range want {
		got := read(t, root, name)
		if body == "" && strings.Contains(got, "no such file") {
			continue
		}
		if got != body {
			t.Errorf("%s: got %q, want %q", name, got, body)
		}
	}
}

// left lists all files of a store below l, s and the records.
func left(t testing.TB, o Options) (out []string) {
	t.Helper()
	for _, d := range []string{o.Root + "/l", o.Root + "/s", o.Root + "/layers", o.State + "/layers", o.State + "/snapshots"} {
		es, err := os.ReadDir(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			if e.Name() != emptyLayer {
				out = append(out, filepath.Base(d)+"/"+e.Name())
			}
		}
	}
	return out
}

// threeLayers is an image whose layers replace, delete, hide, and depend on each other.
func threeLayers(t testing.TB) (tars [][]byte, want map[string]string) {
	t.Helper()
	return [][]byte{
		makeTar(t, "one", "d/", "d/a", "d/b", "gone", "o/", "o/x", "same"),
		makeTar(t, "two", "d/b", ".wh.gone", "o/", "o/.wh..wh..opq", "o/y"),
		makeTar(t, "three", "d/c", "link=>d/a", "sym->d/b"),
	}, map[string]string{"d/a": "one", "d/b": "two", "d/c": "three", "gone": "", "o/x": "", "o/y": "two", "same": "one", "link": "one", "sym": "two"}
}

func TestLifeOfLayers(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := open(t, o)
		if got, _ := s.Chosen(); got != o.Format {
			t.Fatalf("chosen: got %s, want %s", got, o.Format)
		}
		tars, want := threeLayers(t)
		ls := add(t, s, tars...)
		for _, l := range ls {
			if l.Format() != o.Format || l.Bytes == 0 || l.Inodes == 0 {
				t.Errorf("layer %+v: want format %s and a size", l, o.Format)
			}
		}
		fs, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls})
		if err != nil {
			t.Fatal(err)
		}
		checkRoot(t, fs, want)
		if err := s.Drop(ls); err != nil {
			t.Fatal(err)
		}
		if err := s.Collect(); err != nil {
			t.Fatal(err)
		}
		if all, snaps := s.Refs(ls[0]); all != 1 || snaps != 1 {
			t.Errorf("refs: got %d, %d, want 1, 1", all, snaps)
		}
		again, err := s.Get("c")
		if err != nil || fmt.Sprint(again) != fmt.Sprint(fs) {
			t.Errorf("get: got %v, %v, want %v", again, err, fs)
		}
		checkRoot(t, again, want)
		for range 2 {
			if err := s.Release(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Get("c"); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("get what was released: %v", err)
		}
		if got := left(t, o); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
	})
}

func TestPublishSurvivesTheProcessAndSyncThePowerCut(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := open(t, o)
		tars, want := threeLayers(t)
		ls := add(t, s, tars...)
		names := []string{ls[0].Name, ls[1].Name, ls[2].Name}
		find := func(s *Store) (ls []*Layer) {
			for _, n := range names {
				if l, ok := s.Find(n); ok {
					ls = append(ls, l)
				}
			}
			return ls
		}
		s = reopen(t, s, o)
		ls = find(s)
		if len(ls) != 3 {
			t.Fatalf("after a restart: %d layers", len(ls))
		}
		fs, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls})
		if err != nil {
			t.Fatal(err)
		}
		checkRoot(t, fs, want)
		if err := s.Sync(t.Context(), ls[:2]); err != nil {
			t.Fatal(err)
		}
		if got := left(t, Options{Root: o.Root, State: o.State}); !slices.Contains(got, "layers/"+names[0]+".json") {
			t.Errorf("records: %v", got)
		}
		// Between the two steps of a sync the process can end: both records are there.
		data, err := os.ReadFile(filepath.Join(o.Root, "layers", names[0]+".json"))
		if err == nil {
			err = os.WriteFile(filepath.Join(o.State, "layers", names[0]+".json"), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		s = reopen(t, s, o)
		if got := find(s); len(got) != 3 {
			t.Errorf("after a restart: %d layers", len(got))
		}
		if _, err := os.Stat(filepath.Join(o.State, "layers", names[0]+".json")); err == nil {
			t.Error("a durable layer keeps its other record")
		}
		o.State = t.TempDir() // a reboot
		s = reopen(t, s, o)
		if got := find(s); len(got) != 2 {
			t.Errorf("after a power cut: %d layers, want those that were synced", len(got))
		}
		for _, f := range left(t, o) {
			if strings.Contains(f, names[2]) || strings.HasPrefix(f, "s/") {
				t.Errorf("left after a power cut: %s", f)
			}
		}
	})
}

// The process is told how a stream hashes only at its end, as with archives.
func TestUnpackUnknown(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := open(t, o)
		tars, want := threeLayers(t)
		var ls []*Layer
		for _, b := range tars {
			l, err := s.UnpackUnknown(t.Context(), bytes.NewReader(b))
			if err != nil || l.DiffID != digest.FromBytes(b) {
				t.Fatalf("unpack: got %+v, %v", l, err)
			}
			ls = append(ls, l)
		}
		if _, ok := s.Hold(ls[2].DiffID, ""); ok {
			t.Error("a layer that depends on others is found by its diff ID")
		}
		if err := s.Publish(t.Context(), ls); err != nil {
			t.Fatal(err)
		}
		again := add(t, s, tars...)
		for i := range again {
			if again[i].Name != ls[i].Name {
				t.Errorf("layer %d is not found again", i)
			}
		}
		fs, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls})
		if err != nil {
			t.Fatal(err)
		}
		checkRoot(t, fs, want)
	})
}

func TestFormatsMixInOneStore(t *testing.T) {
	need(t, EROFS)
	testkit.Leaks(t)
	tars, want := threeLayers(t)
	for _, order := range [][]Format{{Directory, EROFS, Directory}, {EROFS, Directory, EROFS}} {
		o := Options{Root: t.TempDir(), State: t.TempDir(), Format: order[0]}
		s := open(t, o)
		var ls []*Layer
		for i, f := range order {
			o.Format = f
			s = reopen(t, s, o)
			for j, l := range ls {
				ls[j], _ = s.Find(l.Name)
			}
			ls = append(ls[:i:i], add(t, s, tars[:i+1]...)[i])
			if err := s.Publish(t.Context(), ls); err != nil {
				t.Fatal(err)
			}
		}
		for i, l := range ls {
			if l.Format() != order[i] {
				t.Errorf("layer %d is kept as %s, want %s", i, l.Format(), order[i])
			}
		}
		fs, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls})
		if err != nil {
			t.Fatal(err)
		}
		checkRoot(t, fs, want)
	}
}

func TestFormatIsChosen(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	o := Options{Root: t.TempDir(), State: t.TempDir()}
	s := open(t, o)
	got, reason := s.Chosen()
	if (got == EROFS) == (reason != "") {
		t.Errorf("auto: got %s, reason %q", got, reason)
	}
	if k := testkit.Kernel(6, 15); k.Check() == nil && testkit.EROFS.Check() == nil && got != EROFS {
		t.Errorf("auto: got %s on a kernel that mounts EROFS: %s", got, reason)
	}
	t.Log(got, reason)
	o.Format = "zip"
	if s, err := Open(t.Context(), o); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("unknown format: got %v, %v", s, err)
	}
}

// The kernel's EROFS cannot read files of tmpfs, which have no page cache of their own.
func TestFormatWhereTheKernelCannotMount(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	at := t.TempDir()
	f, err := mount.New("tmpfs", "tmpfs", []string{"mode=700"}, mount.Attr{})
	if err == nil {
		err = mount.AttachPath(f, at)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer mount.Detach(at)
	o := Options{Root: filepath.Join(at, "root"), State: t.TempDir(), Format: EROFS}
	if _, err := Open(t.Context(), o); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(fmt.Sprint(err), "erofs") {
		t.Errorf("format that does not work here: got %v", err)
	}
	o.Format = Auto
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if got, reason := s.Chosen(); got != Directory || reason == "" {
		t.Errorf("auto: got %s, %q", got, reason)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestRefusedStreamsLeaveNothing(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		o.Layer = layer.Options{MaxBytes: 1 << 20, MaxEntries: 10}
		s := open(t, o)
		good := makeTar(t, "x", "a")
		for name, b := range map[string][]byte{
			"bomb": makeTar(t, strings.Repeat("x", 2<<20), "a"), "cut off": good[:512], "escape": makeTar(t, "x", "../a"),
			"many": makeTar(t, "", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"),
		} {
			if l, err := s.Unpack(t.Context(), digest.FromBytes(b), "", bytes.NewReader(b)); err == nil {
				t.Errorf("%s: got %+v", name, l)
			}
		}
		// One that depends on what is not there fails when it is published.
		ls := []*Layer{}
		for _, b := range [][]byte{good, makeTar(t, "x", "link=>nowhere")} {
			l, err := s.UnpackUnknown(t.Context(), bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			ls = append(ls, l)
		}
		for range 2 {
			if err := s.Publish(t.Context(), ls); !errors.Is(err, errdef.ErrInvalid) {
				t.Errorf("link to nothing: got %v", err)
			}
		}
		if err := errors.Join(s.Collect(), s.Drop(ls)); err != nil {
			t.Fatal(err)
		}
		if got := left(t, o); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
	})
}
