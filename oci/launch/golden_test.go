package launch_test

import (
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/oci/launch"
	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares a plan with its file. Numbers of ioctl and the like differ
// between processors, so the files are those of amd64.
func golden(t *testing.T, name string, l *launch.Launch, err error) {
	t.Helper()
	must(t, err)
	if p, e := plan.Load(l.Plan.Marshal()); e != 0 {
		t.Errorf("load %s: %v", name, e)
	} else {
		p.Unmap()
	}
	file := filepath.Join("testdata", name+".plan")
	got := l.String()
	if runtime.GOARCH != "amd64" {
		return
	}
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(file, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if got != string(want) {
		g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
		for i := range min(len(g), len(w)) {
			if g[i] != w[i] {
				t.Fatalf("%s, line %d: got\n%s\nwant\n%s", file, i+1, g[i], w[i])
			}
		}
		t.Fatalf("%s: got %d lines, want %d", file, len(g), len(w))
	}
}

func TestGoldenPlans(t *testing.T) {
	kubelet := baseSpec("exec server")
	kubelet.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{2000}}
	kubelet.Process.ApparmorProfile = "cri-default"
	oom := 998
	kubelet.Process.OOMScoreAdj = &oom
	kubelet.Root.Readonly = true
	kubelet.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	kubelet.Mounts = append(kubelet.Mounts,
		specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "ro"}},
		specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: "/state/hosts", Options: []string{"rbind", "rprivate", "rw"}},
		specs.Mount{Destination: "/data", Type: "bind", Source: "/host", Options: []string{"rbind", "rslave", "rro"}})
	for _, n := range []string{"network", "ipc", "uts"} {
		join(kubelet, specs.LinuxNamespaceType(n), "/state/ns/"+n)
	}
	v1 := launch.Options{
		CgroupTasks: []string{"/sys/fs/cgroup/memory/pod/c/tasks", "/sys/fs/cgroup/pids/pod/c/tasks"},
		Hierarchies: []launch.Hierarchy{{Dir: "cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}, Source: "/sys/fs/cgroup/cpu,cpuacct/pod/c"}, {Dir: "systemd", Name: "systemd"}},
		Seccomp:     killer(0),
		BaseMounts:  true,
	}
	l, err := launch.Compile(kubelet, v1)
	golden(t, "kubelet-v1", l, err)

	l, err = launch.Compile(kubelet, launch.Options{CgroupDir: "/sys/fs/cgroup/pod/c", Gate: true, Seccomp: killer(0)})
	golden(t, "kubelet-v2-gate", l, err)

	tty := baseSpec("sh")
	tty.Process.Terminal = true
	l, err = launch.Compile(tty, launch.Options{})
	golden(t, "terminal", l, err)
	l, err = launch.CompileExec(tty, tty.Process, launch.ExecOptions{})
	golden(t, "exec-terminal", l, err)

	userns := baseSpec("sh")
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	userns.Linux.UIDMappings, userns.Linux.GIDMappings = maps, maps
	join(userns, specs.UserNamespace, "/state/ns/user")
	join(userns, specs.NetworkNamespace, "/state/ns/net")
	userns.Process.NoNewPrivileges = false
	l, err = launch.Compile(userns, launch.Options{BaseMounts: true})
	golden(t, "userns", l, err)
	l, err = launch.CompileExec(userns, userns.Process, launch.ExecOptions{CgroupDir: "/sys/fs/cgroup/pod/c"})
	golden(t, "exec-userns", l, err)

	l, err = launch.CompilePodInit(launch.PodInit{UserNamespace: "/state/ns/user", Seccomp: killer(0), OOMScoreAdj: &oom})
	golden(t, "pod-init", l, err)
}

// TestCompileIsPure: the same spec gives the same plan, and stays as it is.
func TestCompileIsPure(t *testing.T) {
	s := baseSpec("true")
	s.Linux.Sysctl = map[string]string{"net.a": "1", "net.b": "2", "net.c": "3", "net.d": "4"}
	first, err := launch.Compile(s, launch.Options{})
	must(t, err)
	for range 20 {
		l, err := launch.Compile(s, launch.Options{})
		must(t, err)
		if l.String() != first.String() || string(l.Plan.Marshal()) != string(first.Plan.Marshal()) {
			t.Fatal("two plans of one spec differ")
		}
	}
}

func TestExplainOutOfRange(t *testing.T) {
	l, err := launch.Compile(baseSpec("true"), launch.Options{})
	must(t, err)
	for _, step := range []int{-1, len(l.Plan.Ins)} {
		if got := l.Explain(step, 2).Error(); !strings.HasPrefix(got, "launch step") {
			t.Errorf("step %d: got %q", step, got)
		}
	}
}
