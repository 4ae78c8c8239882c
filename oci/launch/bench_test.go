package launch_test

import (
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/launch"
	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
	"github.com/cri-runtime/cri-runtime/oci/launch/prepare"
)

// kubeletLike is what a kubelet usually asks for, with joined namespaces.
func kubeletLike(b *testing.B) *specs.Spec {
	s := baseSpec("echo x")
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	for _, n := range [][2]string{{"network", "net"}, {"ipc", "ipc"}, {"uts", "uts"}} {
		join(s, specs.LinuxNamespaceType(n[0]), filepath.Join("/proc/self/ns", n[1]))
	}
	for _, d := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"} {
		f := filepath.Join(b.TempDir(), "file")
		must(b, os.WriteFile(f, nil, 0o644))
		s.Mounts = append(s.Mounts, specs.Mount{Destination: d, Type: "bind", Source: f, Options: []string{"rbind", "rprivate"}})
	}
	return s
}

// BenchmarkLaunch is compile, prepare, clone, to the first byte of output of a
// shell, and its reaping.
func BenchmarkLaunch(b *testing.B) {
	needRoot(b)
	s := kubeletLike(b)
	root := newRoot(b, 0)
	filter := killer(unix.SYS_REBOOT)
	for b.Loop() {
		l, err := launch.Compile(s, launch.Options{Seccomp: filter})
		must(b, err)
		tree := treeOf(b, root)
		j, err := begin(b, l, prepare.Inputs{Rootfs: tree})
		must(b, err)
		if out, code := j.finish(); code != 0 || out != "x\n" {
			b.Fatalf("got exit %d, %q", code, out)
		}
		must(b, tree.Close())
	}
}

// BenchmarkExec is the same for a further process.
func BenchmarkExec(b *testing.B) {
	needRoot(b)
	s := baseSpec("sleep 1000")
	l, err := launch.Compile(s, launch.Options{})
	must(b, err)
	tree := treeOf(b, newRoot(b, 0))
	defer func() { _ = tree.Close() }()
	j, err := begin(b, l, prepare.Inputs{Rootfs: tree})
	must(b, err)
	defer j.kill()
	fd, err := unix.PidfdOpen(j.pid, 0)
	must(b, err)
	f := os.NewFile(uintptr(fd), "pidfd")
	defer func() { _ = f.Close() }()
	p := *s.Process
	p.Args = []string{"true"}
	for b.Loop() {
		l, err := launch.CompileExec(s, &p, launch.ExecOptions{})
		must(b, err)
		e, err := begin(b, l, prepare.Inputs{Process: f})
		must(b, err)
		if _, code := e.finish(); code != 0 {
			b.Fatalf("got exit %d", code)
		}
	}
}

// BenchmarkCompile is the pure part: spec to bytes.
func BenchmarkCompile(b *testing.B) {
	s := kubeletLike(b)
	filter := killer(unix.SYS_REBOOT)
	n := 0
	for b.Loop() {
		l, err := launch.Compile(s, launch.Options{Seccomp: filter})
		must(b, err)
		n = len(l.Plan.Marshal())
	}
	b.ReportMetric(float64(n), "bytes")
}

// BenchmarkLoad is the check that the monitor makes.
func BenchmarkLoad(b *testing.B) {
	l, err := launch.Compile(kubeletLike(b), launch.Options{Seccomp: killer(0)})
	must(b, err)
	blob := l.Plan.Marshal()
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		l, e := plan.Load(blob)
		if e != 0 {
			b.Fatal(e)
		}
		l.Unmap()
	}
}
