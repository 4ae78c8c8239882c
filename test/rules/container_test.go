package rules

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// field is a line of /proc/self/status, as the container's first process sees it.
func field(output, name string) string {
	for line := range strings.Lines(output) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	return ""
}

func TestIdentityOfTheProcess(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	uid := func(v int64) *rt.Int64Value { return &rt.Int64Value{Value: v} }
	for name, tc := range map[string]struct {
		change func(*rt.LinuxContainerSecurityContext)
		want   map[string]string
	}{
		"root": {func(*rt.LinuxContainerSecurityContext) {}, map[string]string{
			"Uid": "0 0 0 0", "CapEff": "00000000a80425fb", "CapInh": "0000000000000000", "NoNewPrivs": "0", "Seccomp": "0",
		}},
		"user, groups, nothing gained": {func(s *rt.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups, s.NoNewPrivs = uid(1000), uid(2000), []int64{3000}, true
		}, map[string]string{"Uid": "1000 1000 1000 1000", "Gid": "2000 2000 2000 2000", "Groups": "2000 3000", "CapEff": "0000000000000000", "NoNewPrivs": "1"}},
		"ambient capability": {func(s *rt.LinuxContainerSecurityContext) {
			s.RunAsUser, s.Capabilities = uid(1000), &rt.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		}, map[string]string{"CapAmb": "0000000000000400", "CapEff": "0000000000000400", "CapPrm": "0000000000000400"}},
		"default seccomp": {func(s *rt.LinuxContainerSecurityContext) {
			s.Seccomp = &rt.SecurityProfile{ProfileType: rt.SecurityProfile_RuntimeDefault}
		}, map[string]string{"Seccomp": "2"}},
		"all dropped": {func(s *rt.LinuxContainerSecurityContext) {
			s.Capabilities = &rt.Capability{DropCapabilities: []string{"ALL"}}
		}, map[string]string{"CapBnd": "0000000000000000", "CapEff": "0000000000000000"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := containerConfig(n, strings.ReplaceAll(name, " ", "-"), "cat", "/proc/self/status")
			tc.change(c.Linux.SecurityContext)
			s, out := p.run(t, c)
			if s.ExitCode != 0 {
				t.Fatalf("exit code %d: %s", s.ExitCode, out)
			}
			for f, want := range tc.want {
				if got := field(out, f); got != want {
					t.Errorf("%s: got %q, want %q", f, got, want)
				}
			}
		})
	}
	t.Run("user by name", func(t *testing.T) {
		c := containerConfig(n, "byname", "id", "-u")
		c.Linux.SecurityContext.RunAsUsername = "nobody"
		if s, out := p.run(t, c); out != "65534\n" || s.User.GetLinux().GetUid() != 65534 {
			t.Errorf("got %q, status %v", out, s.User)
		}
		c = containerConfig(n, "unknown", "id")
		c.Linux.SecurityContext.RunAsUsername = "nosuchuser"
		_, err := p.tryCreate(t.Context(), c)
		wantCode(t, err, codes.InvalidArgument, "nosuchuser")
	})
}

func TestFileSystem(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	host := filepath.Join(n.Dir, "host")
	if err := os.MkdirAll(host+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	shell := func(t *testing.T, name, script string, change func(*rt.ContainerConfig)) string {
		t.Helper()
		c := containerConfig(n, name, "sh", "-c", script)
		change(c)
		s, out := p.run(t, c)
		if s.ExitCode != 0 {
			t.Errorf("exit code %d: %s", s.ExitCode, out)
		}
		return strings.TrimSpace(out)
	}
	t.Run("mount options are enforced", func(t *testing.T) {
		out := shell(t, "options", "cp /bin/busybox /v/run; /v/run true 2>&1; mknod /v/dev c 1 3; cat /v/dev 2>&1; grep ' /v ' /proc/mounts; rm /v/*", func(c *rt.ContainerConfig) {
			c.Mounts = []*rt.Mount{{ContainerPath: "/v", HostPath: host + "/sub", MountOptions: []string{"noexec", "nosuid", "nodev"}}}
		})
		if strings.Count(strings.ToLower(out), "permission denied") != 2 || !strings.Contains(out, "nosuid,nodev,noexec") {
			t.Errorf("got %s", out)
		}
	})
	t.Run("nested destinations in any order, a missing working directory", func(t *testing.T) {
		out := shell(t, "nested", "pwd; ls /outer/inner; touch /outer/inner/x 2>&1; touch /outer/y && echo made", func(c *rt.ContainerConfig) {
			c.WorkingDir = "/not/there/yet"
			c.Mounts = []*rt.Mount{
				{ContainerPath: "/outer/inner", HostPath: "/etc/apt", Readonly: true}, {ContainerPath: "/outer", HostPath: host},
			}
		})
		if !strings.HasPrefix(out, "/not/there/yet\n") || !strings.Contains(out, "Read-only") || !strings.HasSuffix(out, "made") {
			t.Errorf("got %s", out)
		}
	})
	t.Run("read-only root, masked and read-only paths", func(t *testing.T) {
		out := shell(t, "readonly", "touch /x 2>&1; cat /proc/timer_list | wc -c; echo 1 > /proc/sys/vm/swappiness", func(c *rt.ContainerConfig) {
			s := c.Linux.SecurityContext
			s.ReadonlyRootfs, s.MaskedPaths, s.ReadonlyPaths = true, []string{"/proc/timer_list"}, []string{"/proc/sys"}
			c.Command[2] += " || true"
		})
		if strings.Count(out, "Read-only file system") != 2 || !strings.Contains(out, "\n0\n") {
			t.Errorf("got %s", out)
		}
	})
	t.Run("image volume and a path in it", func(t *testing.T) {
		out := shell(t, "image", "ls /i/bin/busybox; ls /s/busybox; touch /i/x 2>&1 || true", func(c *rt.ContainerConfig) {
			i := &rt.ImageSpec{Image: image}
			c.Mounts = []*rt.Mount{{ContainerPath: "/i", Image: i}, {ContainerPath: "/s", Image: i, ImageSubPath: "bin"}}
		})
		if !strings.HasPrefix(out, "/i/bin/busybox\n/s/busybox\n") || !strings.Contains(out, "Read-only") {
			t.Errorf("got %s", out)
		}
	})
	t.Run("a device under another name, for reading only", func(t *testing.T) {
		out := shell(t, "device", "head -c 1 /dev/z | wc -c; echo x > /dev/z", func(c *rt.ContainerConfig) {
			c.Devices = []*rt.Device{{HostPath: "/dev/loop-control", ContainerPath: "/dev/z", Permissions: "r"}}
			c.Command[2] = "ls -l /dev/z; (exec 3>/dev/z) || echo refused"
		})
		if !strings.Contains(out, "10, 237") || !strings.HasSuffix(out, "refused") && !strings.Contains(out, "not permitted") {
			t.Errorf("got %s", out)
		}
	})
	t.Run("nothing leaks in", func(t *testing.T) {
		if out := shell(t, "fds", "ls /proc/self/fd | tr '\\n' ' '", func(*rt.ContainerConfig) {}); out != "0 1 2 3" { // 3 is ls's own
			t.Errorf("descriptors: got %s", out)
		}
	})
}

func TestNamespaces(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	first := p.start(t, containerConfig(n, "first", sleeper()...))
	pidMode := func(name string, mode rt.NamespaceMode, target string) *rt.ContainerConfig {
		c := containerConfig(n, name, "sh", "-c", "echo $$; ls -d /proc/[0-9]* | wc -l; readlink /proc/self/ns/pid")
		c.Linux.SecurityContext.NamespaceOptions = &rt.NamespaceOption{Pid: mode, TargetId: target}
		return c
	}
	_, own := p.run(t, pidMode("own", rt.NamespaceMode_CONTAINER, ""))
	_, shared := p.run(t, pidMode("shared", rt.NamespaceMode_POD, ""))
	_, again := p.run(t, pidMode("again", rt.NamespaceMode_POD, ""))
	_, target := p.run(t, pidMode("target", rt.NamespaceMode_TARGET, first))
	_, hosts := p.run(t, pidMode("hosts", rt.NamespaceMode_NODE, ""))
	ns := func(out string) string { f := strings.Fields(out); return f[len(f)-1] }
	if !strings.HasPrefix(own, "1\n") {
		t.Errorf("CONTAINER: got %q, want to be process 1", own)
	}
	if ns(shared) != ns(again) || ns(shared) == n.exec(t, first, "readlink", "/proc/self/ns/pid") || strings.HasPrefix(shared, "1\n") {
		t.Errorf("POD: got %q and %q", shared, again)
	}
	if got := n.exec(t, first, "readlink", "/proc/self/ns/pid"); ns(target) != got {
		t.Errorf("TARGET: got %q, want %s", target, got)
	}
	if self, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns(hosts) != self {
		t.Errorf("NODE: got %q, want %s", hosts, self)
	}
	ipc := func(name string, mode rt.NamespaceMode) string {
		c := containerConfig(n, name, "readlink", "/proc/self/ns/ipc")
		c.Linux.SecurityContext.NamespaceOptions.Ipc = mode
		_, out := p.run(t, c)
		return out
	}
	if pod, node := ipc("ipcpod", rt.NamespaceMode_POD), ipc("ipcnode", rt.NamespaceMode_NODE); pod == node || pod != n.exec(t, first, "readlink", "/proc/self/ns/ipc")+"\n" {
		t.Errorf("ipc: got %q for the pod and %q for the node", pod, node)
	}
}

func TestUserNamespace(t *testing.T) {
	n := newNode(t)
	config := podConfig(n, "u")
	ids := []*rt.IDMapping{{HostId: 200000, ContainerId: 0, Length: 65536}}
	users := &rt.UserNamespace{Mode: rt.NamespaceMode_POD, Uids: ids, Gids: ids}
	config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
	config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}
	p := n.pod(t, config)
	host := filepath.Join(n.Dir, "volume")
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	c := containerConfig(n, "c", "sh", "-c", "cat /proc/self/uid_map /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; stat -c %u:%g / /v /etc/hosts; touch /v/made /inroot; stat -c %u /v/made /inroot; id -u; mount -t tmpfs x /mnt 2>&1 || true")
	c.Mounts = []*rt.Mount{{ContainerPath: "/v", HostPath: host, UidMappings: ids, GidMappings: ids}}
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
	s, out := p.run(t, c)
	got := strings.Join(strings.Fields(out), " ")
	if s.ExitCode != 0 || !strings.HasPrefix(got, "0 200000 65536 80 1 0:0 0:0 0:0 0 0 0") {
		t.Errorf("exit code %d, got %s", s.ExitCode, got)
	}
	var st unix.Stat_t
	if err := unix.Stat(host+"/made", &st); err != nil || st.Uid != 0 { // idmapped: the volume's own ids on disk
		t.Errorf("file in the volume: owner %d, %v, want 0 through the id map", st.Uid, err)
	}
	id := p.start(t, func() *rt.ContainerConfig {
		c := containerConfig(n, "exec", sleeper()...)
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
		return c
	}())
	if got := n.exec(t, id, "cat", "/proc/self/uid_map"); strings.Join(strings.Fields(got), " ") != "0 200000 65536" {
		t.Errorf("exec: got %q", got)
	}
}

func TestStartErrors(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	for name, tc := range map[string]struct {
		change func(*rt.ContainerConfig)
		code   int32
		word   string
	}{
		"missing program":   {func(c *rt.ContainerConfig) { c.Command = []string{"nosuch"} }, 127, "not found"},
		"program without x": {func(c *rt.ContainerConfig) { c.Command = []string{"/etc/passwd"} }, 126, "ermission denied"},
		"file for a directory": {func(c *rt.ContainerConfig) {
			c.Mounts = []*rt.Mount{{ContainerPath: "/bin/busybox/x", HostPath: "/etc"}}
		}, 128, "/bin/busybox/x"},
	} {
		t.Run(name, func(t *testing.T) {
			c := containerConfig(n, strings.ReplaceAll(name, " ", "-"), "true")
			tc.change(c)
			id := p.create(t, c)
			if _, err := n.Runtime.StartContainer(n.ctx(), &rt.StartContainerRequest{ContainerId: id}); err == nil {
				t.Fatal("started")
			}
			s := n.status(t, id)
			if s.State != rt.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" || s.ExitCode != tc.code || !strings.Contains(s.Message, tc.word) || s.FinishedAt == 0 {
				t.Errorf("got %v %s %d %q", s.State, s.Reason, s.ExitCode, s.Message)
			}
		})
	}
}

func TestManyPodsAtOnce(t *testing.T) {
	n := newNode(t)
	t.Run("group", func(t *testing.T) {
		for i := range 50 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				p := n.pod(t, podConfig(n, fmt.Sprint("p", i)))
				id := p.start(t, containerConfig(n, "c", "sh", "-c", fmt.Sprintf("exit %d", i)))
				if s := n.ended(t, id); s.ExitCode != int32(i) {
					t.Errorf("exit code: got %d, want %d", s.ExitCode, i)
				}
			})
		}
	})
	list, err := n.Runtime.ListPodSandbox(n.ctx(), &rt.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}
