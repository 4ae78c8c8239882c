package launch_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/launch"
	"github.com/cri-runtime/cri-runtime/oci/launch/podinit"
	"github.com/cri-runtime/cri-runtime/oci/launch/prepare"
)

// start launches a container that goes on, and says where its root is.
func start(t *testing.T, s *specs.Spec, o launch.Options, root string) *job {
	t.Helper()
	l, err := launch.Compile(s, o)
	must(t, err)
	tree := treeOf(t, root)
	defer func() { _ = tree.Close() }()
	j, err := begin(t, l, prepare.Inputs{Rootfs: tree})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func pidfd(t *testing.T, pid int) *os.File {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// execIn runs a further process in the container of pid.
func execIn(t *testing.T, s *specs.Spec, pid int, change func(*specs.Process)) (string, int, error) {
	t.Helper()
	p := *s.Process
	change(&p)
	l, err := launch.CompileExec(s, &p, launch.ExecOptions{})
	if err != nil {
		return "", 0, err
	}
	j, err := begin(t, l, prepare.Inputs{Process: pidfd(t, pid)})
	if err != nil {
		return "", 0, err
	}
	out, code := j.finish()
	return out, code, nil
}

func script(text string) func(*specs.Process) {
	return func(p *specs.Process) { p.Args = []string{"sh", "-c", text} }
}

func TestExecJoinsEverything(t *testing.T) {
	needRoot(t)
	s := baseSpec("sleep 1000")
	s.Hostname = "box"
	s.Process.Cwd = "/data"
	j := start(t, s, launch.Options{}, newRoot(t, 0))
	defer j.kill()
	out, code, err := execIn(t, s, j.pid, script(`for n in net ipc uts pid mnt cgroup user; do
		[ $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) ] || echo $n differs; done
		pwd; hostname; grep -E 'CapEff|NoNew' /proc/self/status; cd /proc/self/fd; for f in [0-9]*; do [ -e /proc/self/fd/$f ] && echo $f; done; exit 3`))
	want := "/data\nbox\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\n0\n1\n2\n"
	if err != nil || code != 3 || out != want {
		t.Errorf("got %v, exit %d and\n%s\nwant\n%s", err, code, out, want)
	}
	out, _, err = execIn(t, s, j.pid, func(p *specs.Process) {
		p.Args, p.User, p.Cwd = []string{"id"}, specs.User{UID: 12, GID: 34, AdditionalGids: []uint32{56}}, "/"
	})
	if err != nil || !strings.HasPrefix(out, "uid=12 gid=34 groups=56") {
		t.Errorf("got %v, %q", err, out)
	}
}

func TestExecRefusesLeakedDescriptors(t *testing.T) {
	needRoot(t)
	s := baseSpec("sleep 1000")
	j := start(t, s, launch.Options{}, newRoot(t, 0))
	defer j.kill()
	for fd := range 24 {
		_, code, err := execIn(t, s, j.pid, func(p *specs.Process) {
			p.Cwd, p.Args = fmt.Sprintf("/proc/self/fd/%d", fd), []string{"pwd"}
		})
		if err == nil {
			t.Errorf("descriptor %d as working directory: got exit %d, want a refusal", fd, code)
		}
	}
}

func TestTerminal(t *testing.T) {
	needRoot(t)
	s := baseSpec(`tty; stat -c '%t:%T %u' /dev/console; stty size; echo x >/dev/tty; readlink /proc/self/fd/1; ls /dev/pts; sleep 1000`)
	s.Process.Terminal = true
	s.Process.ConsoleSize = &specs.Box{Height: 33, Width: 77}
	s.Process.User = specs.User{UID: 1000, GID: 1000}
	j := start(t, s, launch.Options{}, newRoot(t, 0))
	want := "/dev/pts/0\r\n88:0 1000\r\n33 77\r\nx\r\n/dev/pts/0\r\n0     ptmx\r\n"
	got := make([]byte, 0, 4096)
	for len(got) < len(want) {
		n, err := j.pty.Read(got[len(got):cap(got)])
		if err != nil {
			break
		}
		got = got[:len(got)+n]
	}
	if string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	p := *s.Process
	p.Args = []string{"sh", "-c", "tty; stty size"}
	l, err := launch.CompileExec(s, &p, launch.ExecOptions{})
	must(t, err)
	e, err := begin(t, l, prepare.Inputs{Process: pidfd(t, j.pid)})
	must(t, err)
	if out, code := e.finish(); code != 0 || out != "/dev/pts/1\r\n33 77\r\n" {
		t.Errorf("exec: got exit %d, %q", code, out)
	}
	j.kill()
}

// space is a process that holds namespaces.
type space struct{ cmd *exec.Cmd }

func newSpace(t *testing.T, maps []syscall.SysProcIDMap) space {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: maps, GidMappings: maps, Pdeathsig: unix.SIGKILL, GidMappingsEnableSetgroups: true,
	}
	if maps == nil {
		cmd.SysProcAttr.Cloneflags &^= unix.CLONE_NEWUSER
	}
	// Pdeathsig looks at the thread.
	runtime.LockOSThread()
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); runtime.UnlockOSThread() })
	return space{cmd}
}

func (s space) path(kind string) string {
	return filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "ns", kind)
}

func join(s *specs.Spec, kind specs.LinuxNamespaceType, path string) {
	for i := range s.Linux.Namespaces {
		if s.Linux.Namespaces[i].Type == kind {
			s.Linux.Namespaces[i].Path = path
			return
		}
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
}

func TestJoinedNamespaces(t *testing.T) {
	needRoot(t)
	sp := newSpace(t, nil)
	s := baseSpec(`for n in net ipc uts; do readlink /proc/self/ns/$n; done; echo $$`)
	var want string
	for _, n := range [][2]string{{"network", "net"}, {"ipc", "ipc"}, {"uts", "uts"}} {
		join(s, specs.LinuxNamespaceType(n[0]), sp.path(n[1]))
		link, err := os.Readlink(sp.path(n[1]))
		must(t, err)
		want += link + "\n"
	}
	if out, code := run(t, s, launch.Options{}); code != 0 || out != want+"1\n" {
		t.Errorf("got exit %d, %q, want %q", code, out, want)
	}
}

func TestUserNamespace(t *testing.T) {
	needRoot(t)
	const base = 100000
	sp := newSpace(t, []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: 65536}})
	volume := t.TempDir()
	must(t, os.Chmod(volume, 0o777))
	must(t, os.WriteFile(filepath.Join(volume, "file"), nil, 0o644))
	s := baseSpec(`cat /proc/self/uid_map | tr -s ' '; id -u; stat -c '%n %u:%g %t:%T' /dev /dev/null /dev/fuse /bin/sh /idmapped/file
		echo hi >/dev/null && touch /new /idmapped/made && stat -c %u /new; mount -t tmpfs t /data && echo mounted
		for m in /proc /sys /dev/mqueue /dev/pts; do grep -c " $m " /proc/mounts; done; cat /proc/keys; echo $$
		while [ ! -e /idmapped/end ]; do sleep 0.05; done`)
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: base, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	s.Process.Capabilities = allCaps()
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
	for _, n := range [][2]string{{"network", "net"}, {"ipc", "ipc"}, {"uts", "uts"}, {"user", "user"}} {
		join(s, specs.LinuxNamespaceType(n[0]), sp.path(n[1]))
	}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/idmapped", Type: "bind", Source: volume,
		Options: []string{"rbind", "idmap"}, UIDMappings: maps, GIDMappings: maps})
	l, err := launch.Compile(s, launch.Options{})
	must(t, err)
	userNS, err := os.Open(sp.path("user"))
	must(t, err)
	defer func() { _ = userNS.Close() }()
	tree := treeOf(t, newRoot(t, base))
	defer func() { _ = tree.Close() }()
	j, err := begin(t, l, prepare.Inputs{Rootfs: tree, UserNS: userNS})
	must(t, err)
	out, code, err := execIn(t, s, j.pid, script(`id -u; readlink /proc/1/ns/user >/dev/null && echo seen; touch /by-exec && stat -c %u /by-exec; ps | grep -c [s]leep`))
	if want := "0\nseen\n0\n"; err != nil || code != 0 || !strings.HasPrefix(out, want) {
		t.Errorf("exec: got %v, exit %d, %q, want %q", err, code, out, want)
	}
	must(t, os.WriteFile(filepath.Join(volume, "end"), nil, 0o644))
	got, code := j.finish()
	want := ` 0 100000 65536
0
/dev 0:0 0:0
/dev/null 0:0 1:3
/dev/fuse 0:0 a:e5
/bin/sh 0:0 0:0
/idmapped/file 0:0 0:0
0
mounted
1
1
1
1
1
`
	if code != 0 || got != want {
		t.Errorf("got exit %d and\n%s\nwant\n%s", code, got, want)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(volume, "made"), &st))
	if st.Uid != 0 {
		t.Errorf("file in the id-mapped volume: got owner %d, want 0", st.Uid)
	}
}

func TestPodInit(t *testing.T) {
	for _, userns := range []bool{false, true} {
		t.Run(fmt.Sprint("userns=", userns), func(t *testing.T) {
			needRoot(t)
			podInit(t, userns)
		})
	}
}

func podInit(t *testing.T, userns bool) {
	t.Helper()
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	owner := 100000
	if !userns {
		maps, owner = nil, 0
	}
	sp := newSpace(t, maps)
	p := launch.PodInit{Seccomp: podinit.Filter(), Join: []specs.LinuxNamespace{{Type: specs.UTSNamespace, Path: sp.path("uts")}}}
	if userns {
		p.UserNamespace = sp.path("user")
	}
	l, err := launch.CompilePodInit(p)
	must(t, err)
	prog, err := podinit.Program()
	must(t, err)
	defer func() { _ = prog.Close() }()
	j, err := begin(t, l, prepare.Inputs{InitProgram: prog})
	must(t, err)
	defer j.kill()
	dir := fmt.Sprintf("/proc/%d/", j.pid)
	b, err := os.ReadFile(dir + "status")
	must(t, err)
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "NSpid:\t" + strconv.Itoa(j.pid) + "\t1"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("init's status lacks %q:\n%s", want, b)
		}
	}
	s := baseSpec(`cat /proc/1/comm; ls /proc/1/fd 2>/dev/null | wc -l; ls /proc/1/root 2>&1 | grep -c 'ermission denied'
		cat /proc/1/environ 2>&1 | grep -c 'ermission denied'; echo $$; kill -9 1; kill -15 1; [ -d /proc/1 ] && echo alive
		(sleep 0.1 & ) ; (sleep 0 & ); sleep 0.3; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l`)
	join(s, specs.PIDNamespace, dir+"ns/pid")
	if userns {
		id := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
		s.Linux.UIDMappings, s.Linux.GIDMappings = id, id
		for _, n := range [][2]string{{"network", "net"}, {"ipc", "ipc"}, {"uts", "uts"}, {"user", "user"}} {
			join(s, specs.LinuxNamespaceType(n[0]), sp.path(n[1]))
		}
	}
	out, code, err := tryRun(t, s, launch.Options{}, newRoot(t, owner))
	fields := strings.Fields(out)
	if err != nil || code != 0 || len(fields) != 7 {
		t.Fatalf("got %v, exit %d and %q", err, code, out)
	}
	fields[4] = "PID"
	if got := strings.Join(fields[1:], " "); got != "0 1 1 PID alive 0" {
		t.Errorf("got %q from\n%s", got, out)
	}
}
