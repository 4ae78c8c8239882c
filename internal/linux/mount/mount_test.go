package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// tree makes n layers; each has a file of its own and one that all have.
func tree(t testing.TB, n int) (o Overlay) {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		d := filepath.Join(dir, fmt.Sprintf("a-layer-with-a-rather-long-name-%d", i))
		mustWrite(t, filepath.Join(d, fmt.Sprint("own", i)), fmt.Sprint(i))
		mustWrite(t, filepath.Join(d, "all"), fmt.Sprint(i))
		o.Lower = append(o.Lower, d)
	}
	o.Upper, o.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{o.Upper, o.Work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func mustWrite(t testing.TB, name, s string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(s), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, root *os.File, name string) string {
	t.Helper()
	f, err := OpenInRoot(root, name, os.O_RDONLY)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	b := make([]byte, 100)
	n, _ := f.Read(b)
	return string(b[:n])
}

func userns(t testing.TB, uid uint32) *os.File {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ns")
	ids := []namespace.IDMap{{Container: 0, Host: uid, Size: 65536}}
	got, err := namespace.Pin(dir, namespace.Spec{User: &namespace.UserMap{UIDs: ids, GIDs: ids}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(got[namespace.User])
	if err == nil {
		err = namespace.Unpin(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestOverlay(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.Overlay)
	testkit.Leaks(t)
	for _, way := range []Way{0, Detached, Scratch} {
		for _, layers := range []int{1, 3, 130} {
			for _, mapped := range []bool{false, true} {
				for _, upper := range []bool{true, false} {
					t.Run(fmt.Sprintf("way %d, %d layers, mapped %v, upper %v", way, layers, mapped, upper), func(t *testing.T) {
						if way == Detached && mapped && (upper || layers > 1) {
							testkit.Need(t, testkit.Kernel(6, 15))
						}
						o := tree(t, layers)
						o.Way = way
						if mapped {
							o.IDMap = userns(t, 200000)
						}
						if !upper {
							o.Upper, o.Work = "", ""
						}
						checkOverlay(t, o)
					})
				}
			}
		}
	}
}

func checkOverlay(t *testing.T, o Overlay) {
	t.Helper()
	f, err := o.Mount()
	if err != nil {
		t.Fatalf("Mount: %v", err)
	}
	defer f.Close()
	if got := read(t, f, "/all"); got != "0" {
		t.Errorf("common file: got %q, want the top layer's", got)
	}
	last := len(o.Lower) - 1
	if got := read(t, f, fmt.Sprint("own", last)); got != fmt.Sprint(last) {
		t.Errorf("file of the lowest layer: got %q", got)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(f.Fd()), "all", &st, 0); err != nil {
		t.Fatal(err)
	}
	want := uint32(0)
	if o.IDMap != nil {
		want = 200000
	}
	if st.Uid != want {
		t.Errorf("owner: got %d, want %d", st.Uid, want)
	}
	fd, err := unix.Openat(int(f.Fd()), "new", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if (err == nil) != (o.Upper != "") {
		t.Errorf("create a file: %v", err)
	}
	if err == nil {
		_ = unix.Close(fd)
	}
}

func TestOverlayReadOnlyUpperIsAnError(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.Overlay)
	testkit.Leaks(t)
	o := tree(t, 1)
	dir := filepath.Dir(o.Upper)
	tr, err := Clone(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if err := SetAttr(tr, false, Attr{IDMap: userns(t, 300000)}); err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	if err := AttachPath(tr, at); err != nil {
		t.Fatal(err)
	}
	defer Detach(at)
	o.Upper, o.Work = filepath.Join(at, "upper"), filepath.Join(at, "work")
	f, err := o.Mount()
	if err == nil {
		f.Close()
	}
	if err == nil {
		t.Error("overlay with an idmapped upper: got no error")
	}
	t.Log(err)
}

func TestOverlayRefuses(t *testing.T) {
	for name, o := range map[string]Overlay{
		"no lower": {}, "upper without work": {Lower: []string{"/x"}, Upper: "/y"},
		"too many": {Lower: make([]string, 501)},
	} {
		if _, err := o.Mount(); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want invalid", name, err)
		}
	}
	testkit.Need(t, testkit.Root, testkit.Overlay)
	o := tree(t, 1)
	o.Lower = append(o.Lower, "/no/such/dir")
	if _, err := o.Mount(); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/no/such/dir") {
		t.Errorf("missing layer: got %v", err)
	}
	o = tree(t, 1)
	o.Options = []string{"nonsense=1"}
	if _, err := o.Mount(); err == nil {
		t.Error("unknown option: got no error")
	} else {
		t.Log(err)
	}
}

func TestOpenInRoot(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, filepath.Join(dir, "etc/passwd"), "ours")
	for link, to := range map[string]string{
		"abs": "/etc/passwd", "up": "../../../../../etc/passwd", "etc/magic": "/proc/self/root/etc/passwd",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, p := range []string{"abs", "up", "/../../etc/passwd", "etc/passwd"} {
		if got := read(t, root, p); got != "ours" {
			t.Errorf("%s: got %q, want %q", p, got, "ours")
		}
	}
	if _, err := OpenInRoot(root, "etc/magic", os.O_RDONLY); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("link to the host's proc: got %v", err)
	}
	proc, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if _, err := OpenInRoot(proc, "self/root/etc/passwd", os.O_RDONLY); !errors.Is(err, unix.ELOOP) {
		t.Errorf("magic link: got %v, want %v", err, unix.ELOOP)
	}
}

func TestAttach(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	dir := t.TempDir()
	if err := PrivateDir(dir); err != nil {
		t.Fatal(err)
	}
	defer Detach(dir)
	if err := PrivateDir(dir); err != nil {
		t.Fatal(err)
	}
	p, err := PropagationOf(dir)
	if err != nil || p != Private {
		t.Errorf("propagation: got %v, %v, want private", p, err)
	}
	f, err := New("tmpfs", "x", []string{"size=1m", "mode=750"}, Attr{NoSuid: true, NoAtime: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sub := filepath.Join(dir, "a b")
	mustWrite(t, filepath.Join(sub, "hidden"), "")
	target, err := os.OpenFile(sub, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := Attach(f, target); err != nil {
		t.Fatal(err)
	}
	if is, err := IsMountPoint(sub); err != nil || !is {
		t.Errorf("IsMountPoint: got %v, %v, want true", is, err)
	}
	copied, err := Clone(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if err := SetAttr(copied, true, Attr{ReadOnly: true, Propagation: Slave}); err != nil {
		t.Fatal(err)
	}
	_, err = OpenInRoot(copied, "a b/x", os.O_CREATE|os.O_WRONLY)
	if !errors.Is(err, unix.EROFS) {
		t.Errorf("write below a recursively read-only clone: got %v, want %v", err, unix.EROFS)
	}
	for range 2 {
		if err := Detach(sub); err != nil {
			t.Error(err)
		}
	}
	if is, err := IsMountPoint(sub); err != nil || is {
		t.Errorf("IsMountPoint after Detach: got %v, %v, want false", is, err)
	}
	_, err = New("tmpfs", "x", []string{"colour=red"}, Attr{})
	if err == nil || !strings.Contains(err.Error(), "colour") {
		t.Errorf("unknown option: got %v, want the kernel's word on it", err)
	}
}

// BenchmarkOverlay shows what the end of an overlay costs: without "volatile" the
// kernel writes back the whole filesystem that the upper is on.
func BenchmarkOverlay(b *testing.B) {
	testkit.Need(b, testkit.Root, testkit.Overlay)
	for name, way := range map[string]Way{"detached": Detached, "scratch": Scratch} {
		for _, options := range [][]string{nil, {"volatile"}} {
			b.Run(name+strings.Join(options, ""), func(b *testing.B) {
				o := tree(b, 5)
				o.Way, o.Options = way, options
				for b.Loop() {
					f, err := o.Mount()
					if err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					f.Close()
					_ = os.RemoveAll(filepath.Join(o.Work, "work"))
					b.StartTimer()
				}
			})
		}
	}
}

// An image may have a device node where a file is expected; opening it would operate the
// host's device. The node here has no driver: an open would say ENXIO.
func TestOnlyRegularFilesAreOpened(t *testing.T) {
	testkit.Need(t, testkit.Root)
	dir := t.TempDir()
	mustWrite(t, filepath.Join(dir, "file"), "x")
	for path, mode := range map[string]uint32{"device": unix.S_IFCHR, "fifo": unix.S_IFIFO} {
		if err := unix.Mknod(filepath.Join(dir, path), mode|0o600, int(unix.Mkdev(254, 200))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/file", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for path, want := range map[string]error{"file": nil, "link": nil, "device": errdef.ErrInvalid, "fifo": errdef.ErrInvalid, "none": os.ErrNotExist} {
		f, err := OpenRegularInRoot(root, path)
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", path, err, want)
		}
		if err == nil {
			f.Close()
		}
	}
}
