package container

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/container/node"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

func mounts(m ...*rt.Mount) func(*rt.ContainerConfig) {
	return func(c *rt.ContainerConfig) { c.Mounts = m }
}

// write tries to write to each path and says which could be.
func write(paths ...string) string {
	return "for f in " + strings.Join(paths, " ") + "; do (echo x >$f) 2>/dev/null && echo $f; done; true"
}

func TestPaths(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	t.Run("masked", func(t *testing.T) {
		got := p.Shell(t, "ls /proc/acpi /opt 2>/dev/null; wc -c </proc/timer_list; wc -c </etc/passwd; "+write("/opt/x", "/etc/passwd"),
			security(func(s *rt.LinuxContainerSecurityContext) {
				s.MaskedPaths = []string{"/proc/timer_list", "/opt", "/etc/passwd", "/no/such/path"}
			}))
		// A directory is an empty read-only one. A file is /dev/null, which swallows what is written.
		if want := "/opt: 0 0 /etc/passwd"; node.Words(strings.ReplaceAll(got, "/proc/acpi:", "")) != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("read-only", func(t *testing.T) {
		got := p.Shell(t, write("/etc/x", "/opt/plain", "/tmp/x", "/proc/sys/kernel/domainname"), security(func(s *rt.LinuxContainerSecurityContext) {
			s.ReadonlyPaths = []string{"/etc", "/opt/plain", "/proc/sys", "/no/such/path"}
		}))
		if got != "/tmp/x" {
			t.Errorf("could write %q, want /tmp/x", got)
		}
	})
	t.Run("read-only root", func(t *testing.T) {
		host := n.HostDir(t, "writable")
		got := p.Shell(t, write("/x", "/etc/passwd", "/v/x", "/dev/shm/x"), func(c *rt.ContainerConfig) {
			c.Linux.SecurityContext.ReadonlyRootfs = true
			c.Mounts = []*rt.Mount{{ContainerPath: "/v", HostPath: host}}
		})
		if node.Words(got) != "/v/x /dev/shm/x" {
			t.Errorf("could write %q, want only the volume and /dev/shm", got)
		}
	})
	t.Run("a missing working directory, nested destinations in any order", func(t *testing.T) {
		outer, inner, deep := n.HostDir(t, "outer"), n.HostDir(t, "inner"), n.HostDir(t, "deep")
		for _, order := range [][]*rt.Mount{
			{{ContainerPath: "/a/b/c", HostPath: deep}, {ContainerPath: "/a/b", HostPath: inner}, {ContainerPath: "/a", HostPath: outer}},
			{{ContainerPath: "/a", HostPath: outer}, {ContainerPath: "/a/b", HostPath: inner}, {ContainerPath: "/a/b/c", HostPath: deep}},
		} {
			got := p.Shell(t, "pwd; echo x >>/a/1; echo x >>/a/b/2; echo x >>/a/b/c/3", func(c *rt.ContainerConfig) {
				c.WorkingDir, c.Mounts = "/not/there/yet", order
			})
			if got != "/not/there/yet" {
				t.Errorf("working directory: got %q", got)
			}
		}
		for _, file := range []string{outer + "/1", inner + "/2", deep + "/3"} {
			if body, err := os.ReadFile(file); err != nil || string(body) != "x\nx\n" {
				t.Errorf("%s: got %q, %v, want two lines", file, body, err)
			}
		}
	})
	t.Run("a destination through a link stays inside", func(t *testing.T) {
		host := n.HostDir(t, "linked")
		got := p.Shell(t, "echo x >/v/l/f; ls /v/l/..", func(c *rt.ContainerConfig) {
			if err := os.Symlink("../../../../../../../../etc", host+"/l"); err != nil {
				t.Fatal(err)
			}
			c.Mounts = []*rt.Mount{{ContainerPath: "/v", HostPath: host}, {ContainerPath: "/v/l/sub", HostPath: host}}
		})
		if _, err := os.Stat("/etc/sub"); err == nil || !strings.Contains(got, "bin") {
			t.Errorf("the link led out of the container: %v, %q", err, got)
		}
	})
}

func TestMountOptions(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	// Inside it is told apart what the mount forbids from what the user may not do.
	const try = "cp /opt/probe /v/p; chmod 4755 /v/p; mknod /v/d c 1 3; " +
		"(: >/v/d) 2>/dev/null && echo dev; /v/p nofile >/dev/null 2>&1 && echo exec; su -s /bin/sh -c '/v/p euid' app 2>/dev/null; rm -f /v/*"
	for name, tc := range map[string]struct {
		options []string
		want    string
	}{
		"none": {nil, "dev exec 0"}, "noexec": {[]string{"noexec"}, "dev"},
		"nosuid": {[]string{"nosuid"}, "dev exec 1001"}, "nodev": {[]string{"nodev"}, "exec 0"},
		"all": {[]string{"nodev", "noexec", "nosuid"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := p.Shell(t, try, mounts(&rt.Mount{ContainerPath: "/v", HostPath: n.HostDir(t, "options"), MountOptions: tc.options}))
			if node.Words(got) != tc.want {
				t.Errorf("got %q, want %q", node.Words(got), tc.want)
			}
		})
	}
	t.Run("one that does not exist", func(t *testing.T) {
		c := p.ContainerConfig("bad", "true")
		c.Mounts = []*rt.Mount{{ContainerPath: "/v", HostPath: n.Dir, MountOptions: []string{"nosuch"}}}
		_, err := p.TryCreate(t.Context(), c)
		node.WantError(t, err, codes.InvalidArgument, "mounts[0]", "nosuch")
	})
}

func TestReadOnlyMounts(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	host := n.HostDir(t, "volume")
	node.MountTmpfs(t, host+"/sub", "")
	for name, tc := range map[string]struct {
		readonly, recursive bool
		want                string
	}{
		"writable":            {false, false, "/v/x /v/sub/x"},
		"read-only":           {true, false, "/v/sub/x"}, // the mount below is another one
		"recursive read-only": {true, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := p.Shell(t, write("/v/x", "/v/sub/x"), mounts(&rt.Mount{
				ContainerPath: "/v", HostPath: host, Readonly: tc.readonly, RecursiveReadOnly: tc.recursive,
			}))
			if node.Words(got) != tc.want {
				t.Errorf("could write %q, want %q", node.Words(got), tc.want)
			}
			if tc.recursive {
				if err := os.WriteFile(host+"/sub/host", nil, 0o600); err != nil {
					t.Errorf("the host's own mount became read-only: %v", err)
				}
			}
		})
	}
	for name, m := range map[string]*rt.Mount{
		"recursive but not read-only": {RecursiveReadOnly: true},
		"recursive and propagated":    {Readonly: true, RecursiveReadOnly: true, Propagation: rt.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	} {
		t.Run(name, func(t *testing.T) {
			m.ContainerPath, m.HostPath = "/v", host
			c := p.ContainerConfig("bad", "true")
			c.Mounts = []*rt.Mount{m}
			_, err := p.TryCreate(t.Context(), c)
			node.WantError(t, err, codes.InvalidArgument, "recursive_read_only")
		})
	}
}

// TestPropagation mounts something after the start, on both sides.
func TestPropagation(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	for name, tc := range map[string]struct {
		mode         rt.MountPropagation
		inside, back bool
	}{
		"PRIVATE":           {rt.MountPropagation_PROPAGATION_PRIVATE, false, false},
		"HOST_TO_CONTAINER": {rt.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		"BIDIRECTIONAL":     {rt.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			host := n.HostDir(t, "shared-"+name)
			n.HostDir(t, "shared-"+name+"/back")
			c := p.ContainerConfig(name, node.Sleeper()...)
			c.Linux.SecurityContext.Privileged = true
			c.Mounts = []*rt.Mount{{ContainerPath: "/v", HostPath: host, Propagation: tc.mode}}
			ctr := p.Start(t, c)
			node.MountTmpfs(t, host+"/late", "")
			if err := os.WriteFile(host+"/late/file", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			reply, err := p.Runtime.ExecSync(t.Context(), &rt.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"ls", "/v/late/file"}, Timeout: 10})
			if err != nil || (reply.ExitCode == 0) != tc.inside {
				t.Errorf("seen inside: got %v, %v, want %v", reply, err, tc.inside)
			}
			p.Exec(t, ctr, "mount", "-t", "tmpfs", "back", "/v/back")
			table, err := lab.ReadMounts()
			if err != nil {
				t.Fatal(err)
			}
			back := false
			for _, m := range table {
				back = back || m.Point == host+"/back"
			}
			if back != tc.back {
				t.Errorf("seen on the host: got %t, want %t", back, tc.back)
			}
			if back {
				p.Exec(t, ctr, "umount", "/v/back")
			}
		})
	}
	t.Run("a source that is not shared", func(t *testing.T) {
		host := n.HostDir(t, "private")
		node.MountTmpfs(t, host, "")
		if err := unix.Mount("", host, "", unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		c := p.ContainerConfig("private", "true")
		c.Mounts = []*rt.Mount{{ContainerPath: "/v", HostPath: host, Propagation: rt.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		ctr, err := p.TryCreate(t.Context(), c)
		if err == nil {
			err = p.TryStart(t.Context(), ctr)
		}
		if err == nil || !strings.Contains(err.Error(), host) || !strings.Contains(err.Error(), "shared") {
			t.Errorf("got %v, want that %s is not shared", err, host)
		}
	})
}

func TestImageVolumes(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	volume := func(sub string) func(*rt.ContainerConfig) {
		return mounts(&rt.Mount{ContainerPath: "/i", Image: &rt.ImageSpec{Image: node.Image}, ImageSubPath: sub, Readonly: true})
	}
	if got := p.Shell(t, "cat /i/data/sub/file; "+write("/i/x"), volume("")); got != "from the image" {
		t.Errorf("whole image: got %q", got)
	}
	if got := p.Shell(t, "cat /i/file; ls /i/..; "+write("/i/file"), volume("data/sub")); !strings.HasPrefix(got, "from the image\n") || strings.Contains(got, "/i/file") {
		t.Errorf("sub path: got %q", got)
	}
	for _, sub := range []string{"no/such", "../../etc", "etc/passwd/x"} {
		t.Run("sub path "+strings.ReplaceAll(sub, "/", "-"), func(t *testing.T) {
			c := p.ContainerConfig("bad", "true")
			volume(sub)(c)
			_, err := p.TryCreate(t.Context(), c)
			if sub == "../../etc" {
				node.WantError(t, err, codes.InvalidArgument, "image_sub_path")
				return
			}
			node.WantError(t, err, codes.Unknown, sub)
			if message := strings.TrimPrefix(err.Error(), "rpc error: code = Unknown desc = "); !strings.HasPrefix(message, "ImageVolumeMountFailed: ") {
				t.Errorf("got %q, want ImageVolumeMountFailed first", message)
			}
		})
	}
}

// TestDevices gives a device, which no container has by itself, another name.
func TestDevices(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	// Not one of those that every container has: for these the cgroup allows everything.
	host := filepath.Join(n.Dir, "node")
	if err := unix.Mknod(host, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 237))); err != nil { // loop-control
		t.Fatal(err)
	}
	const try = "(: </dev/other/name) 2>/dev/null && echo r; (: >/dev/other/name) 2>/dev/null && echo w; mknod /tmp/n c 10 237 2>/dev/null && (: </tmp/n) 2>/dev/null && echo own; true"
	for permissions, want := range map[string]string{"r": "r own", "w": "w", "rw": "r w own", "rwm": "r w own"} {
		t.Run(permissions, func(t *testing.T) {
			got := p.Shell(t, try, func(c *rt.ContainerConfig) {
				c.Devices = []*rt.Device{{HostPath: host, ContainerPath: "/dev/other/name", Permissions: permissions}}
			})
			if node.Words(got) != want {
				t.Errorf("got %q, want %q", node.Words(got), want)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		got := p.Shell(t, "mknod /tmp/n c 10 237; (: </tmp/n) 2>&1 || true; for d in null zero full random urandom tty; do test -c /dev/$d || echo missing $d; done; echo x >/dev/null; head -c 2 /dev/zero | wc -c", nil)
		if !strings.Contains(got, "Operation not permitted") || !strings.HasSuffix(got, "2") || strings.Contains(got, "missing") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a file that is no device", func(t *testing.T) {
		c := p.ContainerConfig("bad", "true")
		c.Devices = []*rt.Device{{HostPath: "/etc/passwd", ContainerPath: "/dev/x", Permissions: "r"}}
		_, err := p.TryCreate(t.Context(), c)
		node.WantError(t, err, codes.InvalidArgument, "devices[0]", "/etc/passwd")
	})
}
