package namespace

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

func TestPin(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	userMap := &UserMap{UIDs: []IDMap{{0, 200000, 65536}}, GIDs: []IDMap{{0, 300000, 65536}}}
	for name, s := range map[string]Spec{
		"plain": {Net: true, IPC: true, UTS: true, Hostname: "web-0", Sysctls: map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "99", "kernel/shm_rmid_forced": "1", "kernel.domainname": "example.org"}},
		"user": {Net: true, IPC: true, UTS: true, Hostname: "web-1", User: userMap, Sysctls: map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "99", "fs.mqueue.msg_max": "20"}},
		"uts only": {UTS: true, Hostname: "x"},
		"nothing":  {},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ns")
			got, err := Pin(dir, s)
			if err != nil {
				t.Fatalf("Pin: %v", err)
			}
			defer func() {
				for range 2 {
					if err := Unpin(dir); err != nil {
						t.Errorf("Unpin: %v", err)
					}
				}
				if _, err := os.Lstat(dir); !os.IsNotExist(err) {
					t.Errorf("directory after Unpin: got %v, want it gone", err)
				}
			}()
			for _, k := range pinned {
				path, ok := got[k]
				if ok != s.wants(k) {
					t.Errorf("%s: pinned %v, want %v", k, ok, s.wants(k))
				}
				if !ok {
					continue
				}
				ino, err := Inode(path)
				if err != nil {
					t.Fatal(err)
				}
				own, err := Inode("/proc/self/ns/" + string(k))
				if err != nil || ino == own {
					t.Errorf("%s: inode %d, ours %d, err %v: want another one", k, ino, own, err)
				}
			}
			checkInside(t, got, s)
		})
	}
}

func checkInside(t *testing.T, got map[Kind]string, s Spec) {
	t.Helper()
	if s.Hostname != "" {
		err := Do(got[UTS], UTS, func() error {
			var u unix.Utsname
			if err := unix.Uname(&u); err != nil {
				return err
			}
			if n := unix.ByteSliceToString(u.Nodename[:]); n != s.Hostname {
				t.Errorf("host name: got %q, want %q", n, s.Hostname)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	for name, want := range s.Sysctls {
		k := Net
		if !strings.HasPrefix(name, "net") {
			k = IPC
		}
		if name == "kernel.domainname" {
			k = UTS
		}
		_ = Do(got[k], k, func() error {
			b, err := os.ReadFile("/proc/sys/" + sysctlPath(name))
			if v := strings.TrimSpace(string(b)); err != nil || v != want {
				t.Errorf("%s: got %q, %v, want %q", name, v, err, want)
			}
			return nil
		})
	}
	if s.User == nil {
		return
	}
	for _, k := range []Kind{Net, IPC, UTS} {
		f, err := os.Open(got[k])
		if err != nil {
			t.Fatal(err)
		}
		owner, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(owner, &st); err != nil {
			t.Fatal(err)
		}
		if want, _ := Inode(got[User]); st.Ino != want {
			t.Errorf("owner of %s: got %d, want %d", k, st.Ino, want)
		}
		_ = unix.Close(owner)
		_ = f.Close()
	}
}

func TestPinFailureLeavesNothing(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	um := func(r IDMap) *UserMap { return &UserMap{UIDs: []IDMap{r}, GIDs: []IDMap{r}} }
	for name, s := range map[string]Spec{
		"sysctl value":     {Net: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "many"}},
		"sysctl unknown":   {Net: true, Sysctls: map[string]string{"net.ipv4.no_such": "1"}},
		"sysctl with user": {Net: true, User: um(IDMap{0, 1000, 10}), Sysctls: map[string]string{"net.ipv4.ip_forward": "x"}},
		"host sysctl":      {Net: true, Sysctls: map[string]string{"kernel.pid_max": "1"}},
		"host net":         {IPC: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}},
		"host name":        {Hostname: "x"},
		"empty map":        {Net: true, User: &UserMap{}},
		"wrapping map":     {Net: true, User: um(IDMap{0, 4294967290, 100})},
		"overlapping map": {Net: true, User: &UserMap{
			UIDs: []IDMap{{0, 1000, 10}, {5, 2000, 10}}, GIDs: []IDMap{{0, 1000, 10}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ns")
			if _, err := Pin(dir, s); !errors.Is(err, errdef.ErrInvalid) {
				t.Fatalf("Pin: got %v, want invalid", err)
			}
			if _, err := os.Lstat(dir); !os.IsNotExist(err) {
				t.Errorf("directory: got %v, want it gone", err)
			}
		})
	}
}

func TestUnpinStacked(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	dir := filepath.Join(t.TempDir(), "ns")
	for range 2 {
		if _, err := Pin(dir, Spec{UTS: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := Unpin(dir); err != nil {
		t.Fatal(err)
	}
}

func TestSysctlPath(t *testing.T) {
	for in, want := range map[string]string{
		"net.ipv4.ip_forward":            "net/ipv4/ip_forward",
		"net/ipv4/ip_forward":            "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/1.rp_filter": "net/ipv4/conf/eth0.1/rp_filter",
		"net/ipv4/conf/eth0.1/rp_filter": "net/ipv4/conf/eth0.1/rp_filter",
	} {
		if got := sysctlPath(in); got != want {
			t.Errorf("sysctlPath(%q): got %q, want %q", in, got, want)
		}
	}
	for _, bad := range []string{"", "net", "net..x", "net/../kernel/pid_max", "net.ipv4.a\nb", "kernel.shm_rmid_forced=1", "fs.mqueue"} {
		if err := CheckSysctl(bad, true, true, true); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("CheckSysctl(%q): got %v, want invalid", bad, err)
		}
	}
}

func BenchmarkPin(b *testing.B) {
	testkit.Need(b, testkit.Root)
	dir := filepath.Join(b.TempDir(), "ns")
	for b.Loop() {
		if _, err := Pin(dir, Spec{Net: true, IPC: true, UTS: true}); err != nil {
			b.Fatal(err)
		}
		if err := Unpin(dir); err != nil {
			b.Fatal(err)
		}
	}
}
