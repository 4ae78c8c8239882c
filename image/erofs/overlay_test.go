package erofs

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

func userns(t testing.TB) *os.File {
	t.Helper()
	testkit.Need(t, testkit.UserNamespaces)
	dir := t.TempDir()
	ids := []namespace.IDMap{{Container: 0, Host: 200000, Size: 65536}}
	got, err := namespace.Pin(dir, namespace.Spec{User: &namespace.UserMap{UIDs: ids, GIDs: ids}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(got[namespace.User])
	if err = errors.Join(err, namespace.Unpin(dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// within gives a mount a name in a directory of t's, until t ends.
func within(t testing.TB, f *os.File) string {
	t.Helper()
	dir := t.TempDir()
	if err := mount.AttachPath(f, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir + "/"
}

func TestKernelMapsOwners(t *testing.T) {
	needKernel(t)
	s := everything()
	// What these say is mapped as well.
	s.root.Children["x-file"].Xattr = slices.DeleteFunc(s.root.Children["x-file"].Xattr, func(x Xattr) bool {
		return x.Name == "system.posix_acl_access" || x.Name == "security.capability"
	})
	_, f := mounted(t, s, Options{})
	if err := mount.SetAttr(f, false, mount.Attr{IDMap: userns(t)}); err != nil {
		t.Fatal(err)
	}
	shift(s.root, map[*Node]bool{})
	verify(t, within(t, f), s)
}

// shift maps owners as userns does; those beyond it are nobody's.
func shift(n *Node, seen map[*Node]bool) {
	if seen[n] {
		return
	}
	seen[n] = true
	for _, id := range []*uint32{&n.UID, &n.GID} {
		if *id < 65536 {
			*id += 200000
		} else {
			*id = 65534
		}
	}
	for _, c := range n.Children {
		shift(c, seen)
	}
}

// layers are two layers; the upper one takes away, hides and replaces.
func layers() (top, bottom *sample) {
	bottom, top = newSample(), newSample()
	for _, name := range []string{"stays", "gone", "replaced"} {
		bottom.root.Children[name] = bottom.file(1000)
		bottom.root.Children[name].GID = 5 // one that userns maps
	}
	for _, name := range []string{"opaque", "merged"} {
		d := dir(0o755)
		d.Children["below"] = bottom.file(100)
		bottom.root.Children[name] = d
		d = dir(0o700)
		d.Children["above"] = top.file(200)
		top.root.Children[name] = d
	}
	top.root.Children["opaque"].Xattr = []Xattr{{"trusted.overlay.opaque", []byte("y")}}
	top.root.Children["gone"] = special(unix.S_IFCHR, 0)
	top.root.Children["replaced"] = top.file(2000)
	top.root.Children["caps"] = top.file(10)
	top.root.Children["caps"].GID = 5
	top.root.Children["caps"].Xattr = []Xattr{{"security.capability",
		[]byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}}
	top.root.Children["caps"].Mode = unix.S_IFREG | 0o6755
	return top, bottom
}

func TestOverlayOfIndexes(t *testing.T) {
	needKernel(t)
	testkit.Need(t, testkit.Overlay, testkit.Kernel(6, 15))
	for name, mapped := range map[string]bool{"plain": false, "mapped": true} {
		t.Run(name, func(t *testing.T) {
			top, bottom := layers()
			upper, _ := mounted(t, top, Options{})
			lower, _ := mounted(t, bottom, Options{})
			o := mount.Overlay{Lower: []string{upper, lower}, Upper: t.TempDir(), Work: t.TempDir()}
			if mapped {
				o.IDMap = userns(t)
			}
			f, err := o.Mount()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			checkMerged(t, within(t, f), mapped)
		})
	}
}

func checkMerged(t *testing.T, root string, mapped bool) {
	t.Helper()
	for name, want := range map[string]bool{
		"stays": true, "gone": false, "replaced": true, "opaque/above": true, "opaque/below": false,
		"merged/above": true, "merged/below": true, "caps": true,
	} {
		if _, err := os.Lstat(root + name); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", name, err, want)
		}
	}
	got, err := os.ReadFile(root + "replaced")
	if err != nil || !bytes.Equal(got, noise(2000)) {
		t.Errorf("replaced file: %v", err)
	}
	// A change copies the file up, with all that belongs to it.
	caps := make([]byte, 100)
	before, err := unix.Lgetxattr(root+"caps", "security.capability", caps)
	if err != nil || !mapped && before != 20 {
		t.Fatalf("capabilities: %d bytes, %v", before, err)
	}
	want := bytes.Clone(caps[:before])
	if err := os.Chtimes(root+"caps", time.Unix(1, 1), time.Unix(1, 1)); err != nil {
		t.Fatal(err)
	}
	after, err := unix.Lgetxattr(root+"caps", "security.capability", caps)
	if err != nil || !bytes.Equal(caps[:after], want) {
		t.Errorf("capabilities after a change: % x, want % x: %v", caps[:after], want, err)
	}
	if err := os.WriteFile(root+"stays", []byte("new"), 0o600); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(root+"gone", []byte("again"), 0o600); err != nil {
		t.Error(err)
	}
	var st unix.Stat_t
	uid := uint32(1000)
	if mapped {
		uid += 200000
	}
	if err := unix.Lstat(root+"stays", &st); err != nil || st.Size != 3 || st.Uid != uid {
		t.Errorf("changed file: %d bytes of %d, %v", st.Size, st.Uid, err)
	}
}

// TestOverlayWithinContainer: what runs in a container mounts overlays on its root, as
// a container engine in a container does. The kernel limits how deep filesystems stack.
func TestOverlayWithinContainer(t *testing.T) {
	needKernel(t)
	testkit.Need(t, testkit.Overlay, testkit.Kernel(6, 15))
	top, bottom := layers()
	a, _ := mounted(t, top, Options{})
	b, _ := mounted(t, bottom, Options{})
	f, err := mount.Overlay{Lower: []string{a, b}, Upper: t.TempDir(), Work: t.TempDir()}.Mount()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root := within(t, f)
	g, err := mount.Overlay{Lower: []string{root + "merged", root + "opaque"}, Upper: t.TempDir(), Work: t.TempDir()}.Mount()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := os.Lstat(within(t, g) + "below"); err != nil {
		t.Error(err)
	}
}
