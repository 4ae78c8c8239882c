package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/container/node"
)

// own is the namespace of the tests, which is the node's.
func own(t *testing.T, kind string) string {
	t.Helper()
	name, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

const whoAmI = "echo $$; for ns in pid ipc net uts; do readlink /proc/self/ns/$ns; done"

// seen is what whoAmI prints.
type seen struct{ pid, pidns, ipc, net, uts string }

func look(t *testing.T, p *node.Pod, options *rt.NamespaceOption) seen {
	t.Helper()
	out := p.Shell(t, whoAmI, security(func(s *rt.LinuxContainerSecurityContext) { s.NamespaceOptions = options }))
	f := strings.Fields(out)
	if len(f) != 5 {
		t.Fatalf("got %q", out)
	}
	return seen{f[0], f[1], f[2], f[3], f[4]}
}

func TestNamespaceModes(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	alone, pod := rt.NamespaceMode_CONTAINER, rt.NamespaceMode_POD
	first, second := look(t, p, &rt.NamespaceOption{Pid: alone}), look(t, p, &rt.NamespaceOption{Pid: alone})
	if first.pid != "1" || second.pid != "1" {
		t.Errorf("CONTAINER: got process %s and %s, want 1", first.pid, second.pid)
	}
	if first.ipc != second.ipc || first.net != second.net || first.uts != second.uts {
		t.Errorf("the pod's namespaces differ: %v and %v", first, second)
	}
	if first.ipc == own(t, "ipc") || first.net == own(t, "net") || first.uts == own(t, "uts") || first.pidns == own(t, "pid") {
		t.Errorf("got the node's namespaces: %v", first)
	}
	shared, again := look(t, p, &rt.NamespaceOption{Pid: pod}), look(t, p, &rt.NamespaceOption{Pid: pod})
	if shared.pidns != again.pidns || shared.pidns == own(t, "pid") || shared.pid == "1" {
		t.Errorf("POD: got %v and %v, want one namespace", shared, again)
	}
	if host := look(t, p, &rt.NamespaceOption{Pid: rt.NamespaceMode_NODE}); host.pidns != own(t, "pid") {
		t.Errorf("NODE: got %v, want %s", host, own(t, "pid"))
	}
	t.Run("TARGET", func(t *testing.T) {
		target := p.Start(t, p.ContainerConfig("target", node.Sleeper()...))
		mode := &rt.NamespaceOption{Pid: rt.NamespaceMode_TARGET, TargetId: target}
		if got := look(t, p, mode); got.pidns != p.Exec(t, target, "readlink", "/proc/self/ns/pid") {
			t.Errorf("got %v, want the target's namespace", got)
		}
		got := p.Shell(t, "grep -c trap /proc/1/cmdline; kill -TERM 1", security(func(s *rt.LinuxContainerSecurityContext) { s.NamespaceOptions = mode }))
		if got != "1" {
			t.Errorf("process 1: got %q, want the target's", got)
		}
		if s := p.Ended(t, target); s.ExitCode != 0 {
			t.Errorf("the target ended with %d, want its own answer to the signal", s.ExitCode)
		}
		c := p.ContainerConfig("late", "true")
		c.Linux.SecurityContext.NamespaceOptions = mode
		_, err := p.TryCreate(t.Context(), c)
		node.WantError(t, err, codes.FailedPrecondition, "target_id", target)
	})
	t.Run("TARGET of another pod", func(t *testing.T) {
		other := n.RunPod(t, n.PodConfig("b"))
		target := other.Start(t, n.ContainerConfig("c", node.Sleeper()...))
		c := p.ContainerConfig("foreign", "true")
		c.Linux.SecurityContext.NamespaceOptions = &rt.NamespaceOption{Pid: rt.NamespaceMode_TARGET, TargetId: target}
		_, err := p.TryCreate(t.Context(), c)
		node.WantError(t, err, codes.FailedPrecondition, "target_id")
	})
	t.Run("a pod on the node's network and IPC", func(t *testing.T) {
		config := n.PodConfig("host")
		options := &rt.NamespaceOption{Pid: alone, Network: rt.NamespaceMode_NODE, Ipc: rt.NamespaceMode_NODE}
		config.Linux.SecurityContext.NamespaceOptions = options
		if got := look(t, n.RunPod(t, config), options); got.net != own(t, "net") || got.ipc != own(t, "ipc") || got.uts != own(t, "uts") {
			t.Errorf("got %v, want the node's", got)
		}
	})
	t.Run("shared memory is the pod's", func(t *testing.T) {
		p.Shell(t, "echo word >/dev/shm/f", nil)
		if got := p.Shell(t, "cat /dev/shm/f; hostname", nil); got != "word\na" {
			t.Errorf("got %q, want what another container wrote, and the host name", got)
		}
	})
}

func TestSysctls(t *testing.T) {
	n := node.Start(t)
	config := n.PodConfig("a")
	set := map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1", "net.ipv4.ping_group_range": "0 100", // safe
		"net.core.somaxconn": "99", "kernel.msgmax": "4096", "fs.mqueue.msg_max": "5", "net.ipv4.ip_forward": "1", // the kubelet allows some on request
	}
	config.Linux.Sysctls = set
	p := n.RunPod(t, config)
	for name, want := range set {
		if got := node.Words(p.Shell(t, "cat /proc/sys/"+strings.ReplaceAll(name, ".", "/"), nil)); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	host := func(c *rt.LinuxSandboxSecurityContext) {
		c.NamespaceOptions.Network, c.NamespaceOptions.Ipc = rt.NamespaceMode_NODE, rt.NamespaceMode_NODE
	}
	for name, tc := range map[string]struct {
		key, value string
		change     func(*rt.LinuxSandboxSecurityContext)
	}{
		"of the whole node":         {"vm.swappiness", "1", nil},
		"of the whole node, kernel": {"kernel.pid_max", "1000", nil},
		"a way out":                 {"net.ipv4/../../../kernel/core_pattern", "x", nil},
		"network of the node":       {"net.core.somaxconn", "99", host},
		"IPC of the node":           {"kernel.msgmax", "4096", host},
		"one that does not exist":   {"net.ipv4.nosuch", "1", nil},
		"a value that is refused":   {"net.ipv4.ip_forward", "many", nil},
	} {
		t.Run(name, func(t *testing.T) {
			config := n.PodConfig("bad")
			if tc.change != nil {
				tc.change(config.Linux.SecurityContext)
			}
			config.Linux.Sysctls = map[string]string{tc.key: tc.value}
			reply, err := n.Runtime.RunPodSandbox(t.Context(), &rt.RunPodSandboxRequest{Config: config})
			if err == nil {
				p := &node.Pod{Node: n, ID: reply.PodSandboxId, Config: config}
				p.Remove(t)
			}
			node.WantError(t, err, codes.InvalidArgument, tc.key)
		})
	}
}

// hostIDs is where the pod's root is mapped to.
const hostIDs = 200000

func userns(p *rt.NamespaceOption) {
	ids := []*rt.IDMapping{{HostId: hostIDs, ContainerId: 0, Length: 65536}}
	p.UsernsOptions = &rt.UserNamespace{Mode: rt.NamespaceMode_POD, Uids: ids, Gids: ids}
}

func TestUserNamespace(t *testing.T) {
	n := node.Start(t)
	config := n.PodConfig("u")
	userns(config.Linux.SecurityContext.NamespaceOptions)
	config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}
	p := n.RunPod(t, config)
	ids := config.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids
	inUser := func(c *rt.ContainerConfig) { userns(c.Linux.SecurityContext.NamespaceOptions) }
	mapped, plain := n.HostDir(t, "mapped"), n.HostDir(t, "plain")
	if err := os.Chmod(plain, 0o777); err != nil {
		t.Fatal(err)
	}
	c := p.ContainerConfig("c", node.Sleeper()...)
	inUser(c)
	c.Mounts = []*rt.Mount{
		{ContainerPath: "/mapped", HostPath: mapped, UidMappings: ids, GidMappings: ids}, {ContainerPath: "/plain", HostPath: plain},
		{ContainerPath: "/image", Image: &rt.ImageSpec{Image: node.Image}, ImageSubPath: "data", Readonly: true},
	}
	ctr := p.Start(t, c)
	script := func(s string) string { return node.Words(p.Exec(t, ctr, "sh", "-c", s)) }
	for s, want := range map[string]string{
		"cat /proc/self/uid_map /proc/self/gid_map; id -u; cat /proc/sys/net/ipv4/ip_unprivileged_port_start": "0 200000 65536 0 200000 65536 0 80",
		"stat -c %u:%g / /bin/sh /etc/hosts /mapped /image/sub/file":                                          "0:0 0:0 0:0 0:0 0:0",
		"stat -c %u /plain /image/sub/owned":                                                                  "65534 33",
		"hostname other 2>/dev/null; hostname":                                                                "u",
		"mount -t tmpfs x /home 2>/dev/null || echo refused":                                                  "refused",
		"mknod /tmp/d c 1 3 2>/dev/null || echo refused":                                                      "refused",
		"cat /image/sub/file":                                                                                 "from the image",
	} {
		if got := script(s); got != want {
			t.Errorf("%s: got %q, want %q", s, got, want)
		}
	}
	script("touch /tmp/made /mapped/made /plain/made; chown 5:6 /tmp/made /mapped/made /plain/made")
	outside := fmt.Sprintf("/proc/%d/root/tmp/made", p.Pid(t, ctr))
	for path, want := range map[string]uint32{outside: hostIDs + 5, plain + "/made": hostIDs + 5, mapped + "/made": 5} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Uid != want || st.Gid != want+1 {
			t.Errorf("%s: got owner %d:%d, %v, want %d", filepath.Base(filepath.Dir(path)), st.Uid, st.Gid, err, want)
		}
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(p.Pid(t, ctr)) + "/status")
	if got := node.Field(string(status), "Uid"); err != nil || !strings.HasPrefix(got, strconv.Itoa(hostIDs)) {
		t.Errorf("the process is %s out here, %v", got, err)
	}
	t.Run("capabilities are good for the pod's own things", func(t *testing.T) {
		got := p.Shell(t, "ip link add dummy0 type dummy 2>/dev/null; ip addr add 10.77.0.1/32 dev lo && ip addr show dev lo | grep -c 10.77.0.1", func(c *rt.ContainerConfig) {
			inUser(c)
			c.Linux.SecurityContext.Capabilities = &rt.Capability{AddCapabilities: []string{"NET_ADMIN"}}
		})
		if got != "1" {
			t.Errorf("set an address: got %q", got)
		}
	})
	t.Run("a user, its output and the pod's pid namespace", func(t *testing.T) {
		got := p.Shell(t, "id -u; echo x >/dev/stdout; test $$ != 1 && echo shared", func(c *rt.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = id(1001)
			c.Linux.SecurityContext.NamespaceOptions.Pid = rt.NamespaceMode_POD
			inUser(c)
		})
		if got != "1001\nx\nshared" {
			t.Errorf("got %q", got)
		}
	})
}
