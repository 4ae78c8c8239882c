package snapshot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

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

func TestUserNamespace(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		testkit.Need(t, testkit.UserNamespaces)
		s := open(t, o)
		tars, want := threeLayers(t)
		ls := add(t, s, tars...)
		ns := userns(t, 300000)
		fs, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls, UID: 300000, GID: 300000})
		if err != nil {
			t.Fatal(err)
		}
		v, err := s.Prepare(t.Context(), Request{Key: "v", Image: "i", Layers: ls[:1], View: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, ov := range []mount.Overlay{
			{Lower: fs.Lower, Upper: fs.Upper, Work: fs.Work, IDMap: ns, Volatile: true}, {Lower: fs.Lower, IDMap: ns}, {Lower: v.Lower, IDMap: ns},
		} {
			root, err := ov.Mount()
			if err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Fstatat(int(root.Fd()), "d/a", &st, 0); err != nil || st.Uid != 300000 {
				t.Errorf("owner: got %d, %v, want the mapped root", st.Uid, err)
			}
			if got := read(t, root, "same"); got != want["same"] {
				t.Errorf("same: got %q", got)
			}
			fd, err := unix.Openat(int(root.Fd()), "d/a", unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0) // copies it up
			if (err == nil) != (ov.Upper != "") {
				t.Errorf("write with upper %q: %v", ov.Upper, err)
			}
			if err == nil {
				_ = unix.Close(fd)
			}
			root.Close()
		}
	})
}

// A container sees one filesystem, whatever its layers are.
func TestOneFilesystem(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := open(t, o)
		ls := add(t, s, makeTar(t, "body", "a"), makeTar(t, "body", "b"), makeTar(t, "body", "d/c"))
		fs, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls})
		if err != nil {
			t.Fatal(err)
		}
		root, err := mount.Overlay{Lower: fs.Lower, Upper: fs.Upper, Work: fs.Work, Volatile: true}.Mount()
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if err := unix.Mknodat(int(root.Fd()), "new", unix.S_IFREG|0o600, 0); err != nil {
			t.Fatal(err)
		}
		devices, inodes := map[uint64]bool{}, map[uint64]string{}
		for _, name := range []string{".", "a", "b", "d", "d/c", "new"} {
			var st unix.Stat_t
			if err := unix.Fstatat(int(root.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				t.Fatal(err)
			}
			devices[st.Dev] = true
			if other, ok := inodes[st.Ino]; ok {
				t.Errorf("%s and %s have one inode number", name, other)
			}
			inodes[st.Ino] = name
		}
		if len(devices) != 1 {
			t.Errorf("device numbers: got %v, want one", devices)
		}
	})
}

func TestManyLayers(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := open(t, o)
		var tars [][]byte
		want := map[string]string{"all": "body"}
		for i := range 200 {
			tars = append(tars, makeTar(t, "body", fmt.Sprint("own", i), "all"))
			want[fmt.Sprint("own", i)] = "body"
		}
		ls := add(t, s, tars...)
		fs, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls})
		if err != nil {
			t.Fatal(err)
		}
		if len(fs.Lower) != 200 {
			t.Errorf("lower directories: got %d", len(fs.Lower))
		}
		checkRoot(t, fs, want)
	})
}

func TestViewsAndRepeatedLayers(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := open(t, o)
		a, b := makeTar(t, "a", "d/", "d/x"), makeTar(t, "b", "d/", "d/.wh.x", "y")
		ls := add(t, s, a, b, a)
		if ls[0].Name != ls[2].Name {
			t.Fatal("equal layers are kept twice")
		}
		fs, err := s.Prepare(t.Context(), Request{Key: "v", Image: "i", Layers: ls, View: true})
		if err != nil || len(fs.Lower) != 2 || fs.Upper != "" {
			t.Fatalf("view: got %v, %v", fs, err)
		}
		checkRoot(t, fs, map[string]string{"d/x": "a", "y": "b"})
		top := add(t, s, a, makeTar(t, "top", ".wh..wh..opq", "z"))
		if fs, err = s.Prepare(t.Context(), Request{Key: "o", Image: "i", Layers: top}); err != nil || len(fs.Lower) != 1 {
			t.Fatalf("opaque root: got %v, %v", fs, err)
		}
		checkRoot(t, fs, map[string]string{"d/x": "", "z": "top"})
		if fs, err = s.Prepare(t.Context(), Request{Key: "e", Image: "i"}); err != nil {
			t.Fatal(err)
		}
		checkRoot(t, fs, map[string]string{"d/x": ""})
		if _, err := s.Prepare(t.Context(), Request{Key: "v", Image: "other", Layers: ls, View: true}); !errors.Is(err, errdef.ErrExists) {
			t.Errorf("key of another image: got %v", err)
		}
		if again, err := s.Prepare(t.Context(), Request{Key: "e", Image: "i"}); err != nil || !slices.Equal(again.Lower, fs.Lower) {
			t.Errorf("again: got %v, %v", again, err)
		}
	})
}

// A layer in use is mounted once, for all, and in no mount table; without users it stays
// mounted for a while, and never longer than the layer.
func TestOneMountPerLayer(t *testing.T) {
	need(t, EROFS)
	testkit.Leaks(t)
	o := Options{Root: t.TempDir(), State: t.TempDir(), Format: EROFS}
	s := open(t, o)
	tars, want := threeLayers(t)
	ls := add(t, s, tars...)
	var all []Rootfs
	for _, key := range []string{"a", "b", "c"} {
		fs, err := s.Prepare(t.Context(), Request{Key: key, Image: "i", Layers: ls})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fs)
	}
	if !slices.Equal(all[0].Lower, all[2].Lower) || mounted(t, s) != 3 {
		t.Errorf("lower directories: got %v, %d mounted", all, mounted(t, s))
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(table), o.Root) {
		t.Errorf("mount table: %s, %v", table, err)
	}
	root := rootOf(t, all[1])
	defer root.Close()
	for i, key := range []string{"a", "b", "c"} {
		if err := s.Release(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if got := mounted(t, s); got != 3 {
			t.Errorf("mounted after %d of 3 were released: %d", i+1, got)
		}
	}
	var many [][]byte
	for i := range 2 * idleMounts {
		many = append(many, makeTar(t, "x", fmt.Sprint(i)))
	}
	more := add(t, s, many...)
	for range 2 {
		if _, err := s.Prepare(t.Context(), Request{Key: "many", Image: "i", Layers: more}); err != nil {
			t.Fatal(err)
		}
		if got := mounted(t, s); got < len(many) {
			t.Errorf("mounted: %d, %d are in use", got, len(many))
		}
		if err := s.Release(t.Context(), "many"); err != nil {
			t.Fatal(err)
		}
		if got := mounted(t, s); got != idleMounts {
			t.Errorf("idle mounts: got %d, want %d", got, idleMounts)
		}
	}
	ls = append(ls, more...)
	// The layers go, and what is mounted on them stays.
	if err := errors.Join(s.Collect(), s.Drop(ls), s.Close()); err != nil {
		t.Fatal(err)
	}
	if got := left(t, o); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if got := read(t, root, "d/c"); got != want["d/c"] {
		t.Errorf("file of a mounted root: got %q", got)
	}
}

func mounted(t *testing.T, s *Store) (n int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		h.lower.mu.Lock()
		if h.lower.file != nil {
			n++
		}
		h.lower.mu.Unlock()
	}
	return n
}

// killEnv turns this test binary into the process that is killed.
const killEnv = "CRI_SNAPSHOT_KILL"

func TestKillChild(t *testing.T) {
	args := strings.Split(os.Getenv(killEnv), " ")
	if len(args) != 3 {
		t.Skip("part of TestKill")
	}
	s := open(t, Options{Root: args[0], State: args[1], Format: Format(args[2])})
	tars, _ := threeLayers(t)
	ls := add(t, s, tars...)
	fs, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls})
	if err != nil {
		t.Fatal(err)
	}
	root := rootOf(t, fs)
	f, err := mount.OpenInRoot(root, "new", os.O_CREATE|os.O_WRONLY)
	if err == nil {
		_, err = f.WriteString("written")
	}
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed
}

func TestKill(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKillChild$") // #nosec G204 G702 -- this test
		cmd.Env = append(os.Environ(), killEnv+"="+o.Root+" "+o.State+" "+string(o.Format))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		word, err := bufio.NewReader(out).ReadString('\n')
		if word != "ready\n" {
			t.Errorf("child: got %q, %v", word, err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s := open(t, o)
		if err := s.Collect(); err != nil {
			t.Fatal(err)
		}
		_, want := threeLayers(t)
		want["new"] = "written"
		fs, err := s.Get("c")
		if err != nil {
			t.Fatal(err)
		}
		checkRoot(t, fs, want)
		if err := s.Release(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		if got := left(t, o); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
	})
}

// Everything at once, for the race detector; and nothing is left.
func TestConcurrency(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := open(t, o)
		if err := s.Collect(); err != nil {
			t.Fatal(err)
		}
		tars, want := threeLayers(t)
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				for n := range 5 {
					if err := useOnce(t, s, fmt.Sprintf("c%d", i%3), tars, want); err != nil {
						t.Errorf("round %d of %d: %v", n, i, err)
					}
				}
			})
		}
		wg.Go(func() {
			for range 20 {
				s.Totals()
				if _, err := s.Garbage(t.Context(), true); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Wait()
		for _, key := range s.Keys() {
			if err := s.Release(t.Context(), key); err != nil {
				t.Error(err)
			}
		}
		if got := left(t, o); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
		if got := mounted(t, s); got != 0 {
			t.Errorf("still mounted: %d", got)
		}
	})
}

// useOnce is the way of an image from a pull to its removal, with a container whose key
// others use as well.
func useOnce(t *testing.T, s *Store, key string, tars [][]byte, want map[string]string) (err error) {
	t.Helper()
	var ls []*Layer
	defer func() { err = errors.Join(err, s.Drop(ls)) }()
	var chain digest.Digest
	for i, b := range tars {
		diff := digest.FromBytes(b)
		if chain = digest.FromString(string(chain) + " " + string(diff)); i == 0 {
			chain = diff
		}
		l, ok := s.Hold(diff, chain)
		if !ok {
			if l, err = s.Unpack(t.Context(), diff, chain, bytes.NewReader(b)); err != nil {
				return err
			}
		}
		ls = append(ls, l)
	}
	if err := s.Publish(t.Context(), ls); err != nil {
		return err
	}
	fs, err := s.Prepare(t.Context(), Request{Key: key, Image: "i", Layers: ls, View: true})
	if errors.Is(err, errdef.ErrRetry) || errors.Is(err, errdef.ErrNotFound) {
		return nil // another one makes or releases it
	} else if err != nil {
		return err
	}
	if _, err := s.Prepare(t.Context(), Request{Key: key + "-own" + ls[0].Name, Image: "i", Layers: ls}); err != nil && !errors.Is(err, errdef.ErrRetry) && !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	_ = fs // others may release it: its directories are not ours to mount
	if err := s.Sync(t.Context(), ls); err != nil {
		return err
	}
	if err := s.Release(t.Context(), key); err != nil && !errors.Is(err, errdef.ErrRetry) {
		return err
	}
	_ = want
	return nil
}

// A layer that is deleted while it is synced is gone, with all its records.
func TestDeletedWhileSynced(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := open(t, o)
		if err := s.Collect(); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			ls := add(t, s, makeTar(t, strings.Repeat("x", 1<<20), "a", fmt.Sprint(i)))
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := s.Sync(t.Context(), ls); err != nil {
					t.Errorf("sync: %v", err)
				}
			})
			time.Sleep(time.Duration(i) * 300 * time.Microsecond)
			if err := s.Drop(ls); err != nil {
				t.Error(err)
			}
			wg.Wait()
			if got := left(t, o); len(got) != 0 {
				t.Fatalf("round %d: left %v", i, got)
			}
		}
	})
}
