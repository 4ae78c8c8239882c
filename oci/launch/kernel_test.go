package launch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/launch"
	"github.com/cri-runtime/cri-runtime/oci/launch/prepare"
)

// expect runs a script in a changed base container and compares its output.
func expect(t *testing.T, script, want string, change func(*specs.Spec)) {
	t.Helper()
	needRoot(t)
	s := baseSpec(script)
	if change != nil {
		change(s)
	}
	out, code := run(t, s, launch.Options{})
	if code != 0 || strings.TrimSpace(out) != strings.TrimSpace(want) {
		t.Errorf("got exit %d and\n%s\nwant\n%s", code, out, want)
	}
}

func TestMountTableHoldsOnlyTheContainer(t *testing.T) {
	expect(t, `while read -r d p f o x; do case $f:$p in tmpfs:/proc/*|devtmpfs:/proc/*|*:/proc/sysrq-trigger|*:/) ;; *) echo $p $f ${o%%,relatime*};; esac; done </proc/mounts | sort; cd /..; ls -d bin`, `
/dev tmpfs rw,nosuid,size=65536k,mode=755
/dev/mqueue mqueue rw,nosuid,nodev,noexec
/dev/pts devpts rw,nosuid,noexec
/proc proc rw,nosuid,nodev,noexec
/proc/bus proc ro,nosuid,nodev,noexec
/proc/fs proc ro,nosuid,nodev,noexec
/proc/irq proc ro,nosuid,nodev,noexec
/proc/sys proc ro,nosuid,nodev,noexec
/sys sysfs ro,nosuid,nodev,noexec
/sys/firmware tmpfs ro,nosuid,nodev,noexec
bin`, nil)
}

func TestDescriptorsAreClosed(t *testing.T) {
	// 3 is the shell's handle of the directory it lists.
	expect(t, `cd /proc/self/fd; for f in [0-9]*; do [ -e /proc/self/fd/$f ] && echo $f; done; true`, "0\n1\n2", nil)
}

func TestDefaultDevices(t *testing.T) {
	expect(t, `cd /dev; stat -c '%n %t:%T %a %F' null zero full random urandom tty; for l in fd stdin ptmx core; do readlink $l; done`, `
null 1:3 666 character special file
zero 1:5 666 character special file
full 1:7 666 character special file
random 1:8 666 character special file
urandom 1:9 666 character special file
tty 5:0 666 character special file
/proc/self/fd
/proc/self/fd/0
pts/ptmx
/proc/kcore`, nil)
}

func TestFurtherDevices(t *testing.T) {
	mode := os.FileMode(0o640)
	uid, gid := uint32(7), uint32(8)
	expect(t, `stat -c '%n %t:%T %a %u:%g %F' /dev/fuse /dev/net/tun /srv/loop /dev/pipe`, `
/dev/fuse a:e5 640 7:8 character special file
/dev/net/tun a:c8 666 0:0 character special file
/srv/loop 7:0 666 0:0 block special file
/dev/pipe 0:0 666 0:0 fifo`, func(s *specs.Spec) {
		s.Linux.Devices = []specs.LinuxDevice{
			{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode, UID: &uid, GID: &gid},
			{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200},
			{Path: "/srv/loop", Type: "b", Major: 7, Minor: 0},
			{Path: "/dev/pipe", Type: "p"},
		}
	})
}

const status = `grep -E 'Uid|Groups|Cap|NoNew' /proc/self/status`

func TestRightsOfRoot(t *testing.T) {
	expect(t, status, `
Uid:	0	0	0	0
Groups:	3 4 
CapInh:	0000000000000000
CapPrm:	00000000a80425fb
CapEff:	00000000a80425fb
CapBnd:	00000000a80425fb
CapAmb:	0000000000000000
NoNewPrivs:	1`, func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{3, 4} })
}

func TestRightsOfUser(t *testing.T) {
	for _, nnp := range []bool{true, false} {
		t.Run(fmt.Sprint("nnp=", nnp), func(t *testing.T) {
			expect(t, "id -u; id -g;"+status, fmt.Sprintf(`
1000
2000
Uid:	1000	1000	1000	1000
Groups:	5 2000 
CapInh:	0000000000000000
CapPrm:	0000000000000000
CapEff:	0000000000000000
CapBnd:	00000000a80425fb
CapAmb:	0000000000000000
NoNewPrivs:	%d`, map[bool]int{true: 1}[nnp]), func(s *specs.Spec) {
				s.Process.User = specs.User{UID: 1000, GID: 2000, AdditionalGids: []uint32{2000, 5}}
				s.Process.Capabilities.Effective, s.Process.Capabilities.Permitted = nil, nil
				s.Process.NoNewPrivileges = nnp
			})
		})
	}
}

func TestAmbientCapabilities(t *testing.T) {
	expect(t, status, `
Uid:	1000	1000	1000	1000
Groups:	 
CapInh:	0000000000000400
CapPrm:	0000000000000400
CapEff:	0000000000000400
CapBnd:	0000000000000401
CapAmb:	0000000000000400
NoNewPrivs:	1`, func(s *specs.Spec) {
		s.Process.User = specs.User{UID: 1000, GID: 1000}
		one := []string{"CAP_NET_BIND_SERVICE"}
		s.Process.Capabilities = &specs.LinuxCapabilities{
			Bounding: append([]string{"CHOWN"}, one...), Effective: one, Permitted: one, Inheritable: one, Ambient: one,
		}
	})
}

func TestProcessSettings(t *testing.T) {
	umask := uint32(0o077)
	oom := 500
	expect(t, `pwd; umask; ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj; stat -c %a /a/b; hostname; echo "$X"`, `
/a/b/c
0077
1000
2000
0
500
755
box
1 2`, func(s *specs.Spec) {
		s.Hostname = "box"
		s.Process.Cwd = "/a/b/c"
		s.Process.User.Umask = &umask
		s.Process.OOMScoreAdj = &oom
		s.Process.Env = append(s.Process.Env, "X=1 2")
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1000, Hard: 2000}, {Type: "RLIMIT_CORE"}}
	})
}

func TestDefaultFileLimit(t *testing.T) { expect(t, `ulimit -n`, "1024", nil) }

func TestOOMScoreIsLoweredOrKept(t *testing.T) {
	low := -900
	s := baseSpec("true")
	s.Process.OOMScoreAdj = &low
	needRoot(t)
	if _, code := run(t, s, launch.Options{}); code != 0 {
		t.Errorf("exit: got %d, want 0: a node may not be allowed to lower it", code)
	}
}

func TestReadonlyRoot(t *testing.T) {
	expect(t, `touch /x 2>/dev/null || echo ro; touch /dev/x && echo dev; cd /made && pwd`, "ro\ndev\n/made", func(s *specs.Spec) {
		s.Root.Readonly = true
		s.Process.Cwd = "/made"
	})
}

func TestMaskedAndReadonlyPaths(t *testing.T) {
	expect(t, `cat /etc/noexec; ls /data; touch /data/x 2>/dev/null || echo dir ro
		touch /etc/garbage 2>/dev/null || echo file ro; echo 1 2>/dev/null >/proc/sys/kernel/domainname || echo sys ro
		stat -c %t:%T /proc/keys`, "dir ro\nfile ro\nsys ro\n1:3", func(s *specs.Spec) {
		s.Linux.MaskedPaths = append([]string{"/etc/noexec", "/data", "/not/there", "/bin/sh/x"}, defaultMasked...)
		s.Linux.ReadonlyPaths = append([]string{"/etc/garbage", "/neither"}, defaultReadonly...)
	})
}

func TestSysctls(t *testing.T) {
	expect(t, `cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; cat /proc/sys/net/ipv4/conf/lo/forwarding`,
		"77\n1\n1", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{
				"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1", "net.ipv4.conf.lo.forwarding": "1",
			}
		})
}

func TestVolumes(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(src, "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "file"), []byte("content\n"), 0o644))
	must(t, unix.Mount("tmpfs", filepath.Join(src, "sub"), "tmpfs", 0, "size=64k"))
	defer func() { must(t, unix.Unmount(filepath.Join(src, "sub"), unix.MNT_DETACH)) }()
	bind := func(from, to string, options ...string) specs.Mount {
		return specs.Mount{Destination: to, Type: "bind", Source: filepath.Join(src, from), Options: options}
	}
	expect(t, `
		touch /rw/sub/x && echo rw
		touch /ro/x 2>/dev/null || echo ro; touch /ro/sub/y && echo ro sub rw
		touch /rro/sub/z 2>/dev/null || echo rro
		cat /f/g/file; cat /rw/nested/deep/file
		grep ' /nx ' /proc/mounts | grep -o nosuid,nodev,noexec
		touch /tmp/x && stat -c %a /tmp
		[ -e /plain/sub/x ] || echo plain has no submount`, `
rw
ro
ro sub rw
rro
content
content
nosuid,nodev,noexec
1777
plain has no submount`, func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, bind("", "/rw", "rbind", "rw", "rprivate"), bind("", "/ro", "rbind", "ro"),
			bind("", "/rro", "rbind", "rro"), bind("file", "/f/g/file", "rbind"), bind("file", "/rw/nested/deep/file", "bind"),
			bind("", "/nx", "rbind", "nosuid", "nodev", "noexec"), bind("", "/plain", "bind"),
			specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=1777", "size=1m"}})
	})
	if _, err := os.Stat(filepath.Join(src, "nested/deep/file")); err != nil {
		t.Errorf("nested destination was not made in the volume: %v", err)
	}
}

func TestPropagation(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	must(t, unix.Mount("tmpfs", src, "tmpfs", 0, "size=64k"))
	defer func() { must(t, unix.Unmount(src, unix.MNT_DETACH)) }()
	must(t, unix.Mount("", src, "", unix.MS_SHARED, ""))
	for _, d := range []string{"late", "inner"} {
		must(t, os.Mkdir(filepath.Join(src, d), 0o755))
	}
	s := baseSpec(`echo begun; read x </in/fifo; for v in private slave shared; do
		[ -e /$v/late/mark ] && echo $v sees; done; mount -t tmpfs tmpfs /shared/inner && touch /shared/inner/ours; echo done >/in/fifo2; sleep 1000`)
	s.Process.Capabilities = allCaps()
	s.Process.NoNewPrivileges = false
	for _, p := range []string{"private", "slave", "shared"} {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/" + p, Type: "bind", Source: src, Options: []string{"rbind", "r" + p}})
	}
	s.Linux.RootfsPropagation = "rshared"
	fifos := t.TempDir()
	must(t, unix.Mkfifo(filepath.Join(fifos, "fifo"), 0o600))
	must(t, unix.Mkfifo(filepath.Join(fifos, "fifo2"), 0o600))
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/in", Type: "bind", Source: fifos, Options: []string{"rbind"}})
	l, err := launch.Compile(s, launch.Options{})
	must(t, err)
	tree := treeOf(t, newRoot(t, 0))
	defer func() { _ = tree.Close() }()
	j, err := begin(t, l, prepare.Inputs{Rootfs: tree})
	must(t, err)
	must(t, unix.Mount("tmpfs", filepath.Join(src, "late"), "tmpfs", 0, "size=64k"))
	must(t, os.WriteFile(filepath.Join(src, "late/mark"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(fifos, "fifo"), []byte("go\n"), 0))
	_, err = os.ReadFile(filepath.Join(fifos, "fifo2"))
	must(t, err)
	if _, err := os.Stat(filepath.Join(src, "inner/ours")); err != nil {
		t.Errorf("a mount below the shared volume did not reach the host: %v", err)
	}
	must(t, unix.Kill(j.pid, unix.SIGKILL))
	if out, _ := j.finish(); out != "begun\nslave sees\nshared sees\n" {
		t.Errorf("got %q, want slave and shared to see the late mount", out)
	}
}

func allCaps() *specs.LinuxCapabilities {
	var all []string
	for i := range 41 {
		all = append(all, launch.CapName(i))
	}
	return &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
}

func TestPrivilegedGetsWhatTheNodeHas(t *testing.T) {
	needRoot(t)
	b, err := os.ReadFile("/proc/self/status")
	must(t, err)
	i := strings.Index(string(b), "CapBnd:")
	want := strings.Fields(string(b)[i:])[1]
	expect(t, `grep CapBnd /proc/self/status`, "CapBnd:\t"+want, func(s *specs.Spec) { s.Process.Capabilities = allCaps() })
}

func TestCgroupV1(t *testing.T) {
	needRoot(t)
	if _, err := os.Stat("/sys/fs/cgroup/pids/tasks"); err != nil {
		t.Skip("needs cgroup v1")
	}
	name := fmt.Sprintf("launch-test-%d", os.Getpid())
	var o launch.Options
	for _, h := range []string{"pids", "memory"} {
		dir := filepath.Join("/sys/fs/cgroup", h, name)
		must(t, os.Mkdir(dir, 0o755))
		defer func() { must(t, unix.Rmdir(dir)) }()
		o.CgroupTasks = append(o.CgroupTasks, filepath.Join(dir, "tasks"))
		o.Hierarchies = append(o.Hierarchies, launch.Hierarchy{Dir: h, Controllers: []string{h}})
	}
	// Beside the cgroups, their mounts: each shows its own as the root, read-only, and hears nothing.
	s := baseSpec(`grep -E ':(pids|memory):' /proc/self/cgroup | cut -d: -f2-; [ -e /sys/fs/cgroup/pids/pids.max ] && echo own
		touch /sys/fs/cgroup/x 2>/dev/null || echo ro; echo 1 2>/dev/null >/sys/fs/cgroup/pids/pids.max || echo ro
		grep -E ' /sys/fs/cgroup/(pids|memory) ' /proc/self/mountinfo | cut -d' ' -f4-7`)
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}})
	for name, source := range map[string]bool{"mounted": false, "cloned": true} {
		t.Run(name, func(t *testing.T) {
			o := o
			o.Hierarchies = slices.Clone(o.Hierarchies)
			for i := range o.Hierarchies {
				if source {
					o.Hierarchies[i].Source = filepath.Dir(o.CgroupTasks[i])
				}
			}
			out, code := run(t, s, o)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			slices.Sort(lines)
			want := []string{
				"/ /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime -", "/ /sys/fs/cgroup/pids ro,nosuid,nodev,noexec,relatime -",
				"memory:/", "own", "pids:/", "ro", "ro",
			}
			if code != 0 || !slices.Equal(lines, want) {
				t.Errorf("got exit %d and %q, want %q", code, lines, want)
			}
		})
	}
}

func TestCgroupV2(t *testing.T) {
	needRoot(t)
	root := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
		if root = "/sys/fs/cgroup"; !exists(root + "/cgroup.procs") {
			t.Skip("needs cgroup v2")
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("launch-test-%d", os.Getpid()))
	must(t, os.Mkdir(dir, 0o755))
	defer func() { must(t, unix.Rmdir(dir)) }()
	s := baseSpec(`grep '^0:' /proc/self/cgroup; [ -e /sys/fs/cgroup/cgroup.type ] && echo own`)
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Options: []string{"ro"}})
	out, code := run(t, s, launch.Options{CgroupDir: dir})
	if code != 0 || out != "0::/\nown\n" {
		t.Errorf("got exit %d and %q", code, out)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestApparmor uses the one profile that is always there, and the difference
// between a write that succeeded and one that went elsewhere is its absence.
func TestApparmor(t *testing.T) {
	if b, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); !strings.HasPrefix(string(b), "Y") {
		t.Skip("needs AppArmor")
	}
	expect(t, "cat /proc/self/attr/current", "unconfined", func(s *specs.Spec) { s.Process.ApparmorProfile = "unconfined" })
}
