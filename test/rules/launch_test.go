package rules

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

func TestSeccompProfileOfTheNode(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	profile := filepath.Join(n.Dir, "no-mkdir.json")
	write := func(body string) {
		t.Helper()
		if err := os.WriteFile(profile, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := func(name, script string) *rt.ContainerConfig {
		c := containerConfig(n, name, "sh", "-c", script)
		c.Linux.SecurityContext.Seccomp = &rt.SecurityProfile{ProfileType: rt.SecurityProfile_Localhost, LocalhostRef: profile}
		return c
	}
	write(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_AARCH64"],
		"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}`)
	for name, noNewPrivs := range map[string]bool{"before": true, "after": false} { // where the filter is installed
		c := config(name, "mkdir /x 2>&1; touch /y && echo made")
		c.Linux.SecurityContext.NoNewPrivs = noNewPrivs
		if s, out := p.run(t, c); !strings.Contains(out, "ermission denied") || !strings.HasSuffix(out, "made\n") {
			t.Errorf("no_new_privs %v: got %d %s", noNewPrivs, s.ExitCode, out)
		}
	}
	id := p.start(t, config("exec", "while :; do sleep 0.05; done"))
	reply, err := n.Runtime.ExecSync(n.ctx(), &rt.ExecSyncRequest{ContainerId: id, Cmd: []string{"mkdir", "/z"}, Timeout: 10})
	if err != nil || reply.ExitCode == 0 {
		t.Errorf("an exec is not under the container's profile: %v, %v", reply, err)
	}
	write(`{"defaultAction":"SCMP_ACT_NONSENSE"}`)
	_, err = n.Runtime.StartContainer(n.ctx(), &rt.StartContainerRequest{ContainerId: p.create(t, config("bad", "true"))})
	wantCode(t, err, codes.InvalidArgument, "seccomp", "SCMP_ACT_NONSENSE")
	write(`{"defaultAction":`)
	_, err = p.tryCreate(t.Context(), config("worse", "true"))
	wantCode(t, err, codes.InvalidArgument, profile)
}

// TestLimitsOfTheProcess: nothing of what Go does to its own process reaches a container.
func TestLimitsOfTheProcess(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	hard, err := exec.CommandContext(t.Context(), "sh", "-c", "ulimit -Hn").Output()
	if err != nil {
		t.Fatal(err)
	}
	s, out := p.run(t, containerConfig(n, "limits", "sh", "-c", "ulimit -Sn; ulimit -Hn; umask; grep -E '^Sig(Blk|Ign)' /proc/self/status; cat /proc/self/cgroup | wc -l"))
	want := "1024 " + strings.TrimSpace(string(hard)) + " 0022 SigBlk: 0000000000000000 SigIgn: 0000000000000000"
	if got := strings.Join(strings.Fields(out), " "); s.ExitCode != 0 || !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	own, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(n.Pid()), "oom_score_adj"))
	if err != nil {
		t.Fatal(err)
	}
	for adj, want := range map[int64]string{700: "700", -999: loweredTo(t, "-999", strings.TrimSpace(string(own)))} {
		c := containerConfig(n, "oom"+itoa(adj), "cat", "/proc/self/oom_score_adj")
		c.Linux.Resources.OomScoreAdj = adj
		if s, out := p.run(t, c); s.ExitCode != 0 || out != want+"\n" {
			t.Errorf("oom_score_adj %d: got %q, want %s and no failure", adj, out, want)
		}
	}
}

// loweredTo is the score that a process has which asked for a low one: without
// CAP_SYS_RESOURCE the old one stays.
func loweredTo(t *testing.T, asked, old string) string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	caps, err := strconv.ParseUint(field(string(status), "CapEff"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	if caps&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return asked
	}
	return old
}

func TestHostNetwork(t *testing.T) {
	n := newNode(t)
	config := podConfig(n, "host")
	config.Linux.SecurityContext.NamespaceOptions.Network = rt.NamespaceMode_NODE
	config.Hostname = ""
	p := n.pod(t, config)
	c := containerConfig(n, "c", "sh", "-c", "readlink /proc/self/ns/net; readlink /proc/self/ns/uts; cat /proc/sys/kernel/hostname; : </sys/class/net/lo/mtu; echo x >/sys/class/net/lo/ifalias || true")
	c.Linux.SecurityContext.NamespaceOptions.Network = rt.NamespaceMode_NODE
	s, out := p.run(t, c)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, ns := range []string{"net", "uts"} {
		link, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, link)
	}
	want = append(want, host)
	if got := strings.Fields(out); s.ExitCode != 0 || strings.Join(got[:3], " ") != strings.Join(want, " ") {
		t.Errorf("got %q, want %q", got, want)
	}
	if !strings.Contains(out, "Read-only") {
		t.Errorf("the node's /sys is writable: %s", out)
	}
	reply, err := n.Runtime.PodSandboxStatus(n.ctx(), &rt.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil || reply.Status.Network.GetIp() != "" || reply.Status.Linux.Namespaces.Options.Network != rt.NamespaceMode_NODE {
		t.Errorf("got %v, %v, want no address of its own", reply, err)
	}
}

// TestCgroupOfTheKubelet: pods go below the cgroup that the request names, which stays.
func TestCgroupOfTheKubelet(t *testing.T) {
	testkit.Need(t, testkit.CgroupV1)
	n := newNode(t)
	given := "/" + lab.Here(t).Cgroup + "/kubepods/podx"
	for _, controller := range []string{"cpu", "memory", "pids"} {
		dir := filepath.Join("/sys/fs/cgroup", controller, given)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(filepath.Dir(dir)) })
		t.Cleanup(func() { _ = os.Remove(dir) })
	}
	config := podConfig(n, "a")
	config.Linux.CgroupParent = given
	t.Run("pod", func(t *testing.T) {
		p := n.pod(t, config)
		c := containerConfig(n, "c", sleeper()...)
		c.Linux.Resources = &rt.LinuxContainerResources{CpuShares: 512, CpuQuota: 20000, CpuPeriod: 100000, MemoryLimitInBytes: 32 << 20}
		id := p.start(t, c)
		for file, want := range map[string]string{
			"cpu/cpu.shares": "512", "cpu/cpu.cfs_quota_us": "20000", "cpu/cpu.cfs_period_us": "100000", "memory/memory.limit_in_bytes": "33554432",
		} {
			controller, name := filepath.Split(file)
			body, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, given, id, name))
			if got := strings.TrimSpace(string(body)); err != nil || got != want {
				t.Errorf("%s: got %q, %v, want %s", file, got, err, want)
			}
		}
	})
	if !exists(filepath.Join("/sys/fs/cgroup/memory", given)) {
		t.Error("the kubelet's own cgroup is gone with the pod")
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*" + given + "/*/tasks")
	if err != nil || len(left) != 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	// What the runtime itself had to make in the hierarchies that this test left out.
	for _, dir := range must(filepath.Glob("/sys/fs/cgroup/*" + given)) {
		if strings.Contains(dir, "/cpu/") || strings.Contains(dir, "/memory/") || strings.Contains(dir, "/pids/") {
			continue
		}
		t.Log("made and kept: ", dir)
		_ = os.Remove(dir)
		_ = os.Remove(filepath.Dir(dir))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestReadOnlyAllTheWayDown(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	source := filepath.Join(n.Dir, "volume")
	if err := os.MkdirAll(source+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", source+"/sub", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(source+"/sub", unix.MNT_DETACH) })
	c := containerConfig(n, "c", "sh", "-c", "touch /all/sub/x 2>&1; touch /top/x 2>&1; touch /top/sub/x && echo made")
	c.Mounts = []*rt.Mount{
		{ContainerPath: "/all", HostPath: source, Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/top", HostPath: source, Readonly: true},
	}
	if _, out := p.run(t, c); strings.Count(out, "Read-only file system") != 2 || !strings.HasSuffix(out, "made\n") {
		t.Errorf("got %s", out)
	}
	for name, m := range map[string]*rt.Mount{
		"writable":   {ContainerPath: "/v", HostPath: source, RecursiveReadOnly: true},
		"propagated": {ContainerPath: "/v", HostPath: source, Readonly: true, RecursiveReadOnly: true, Propagation: rt.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	} {
		c := containerConfig(n, name, "true")
		c.Mounts = []*rt.Mount{m}
		_, err := p.tryCreate(t.Context(), c)
		wantCode(t, err, codes.InvalidArgument, "mounts[0]", "recursive_read_only")
	}
	t.Run("a source that mounts cannot leave", func(t *testing.T) {
		if err := unix.Mount("", source+"/sub", "", unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		for name, mode := range map[string]rt.MountPropagation{
			"both": rt.MountPropagation_PROPAGATION_BIDIRECTIONAL, "in": rt.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
		} {
			c := containerConfig(n, name, "true")
			c.Mounts = []*rt.Mount{{ContainerPath: "/v", HostPath: source + "/sub", Propagation: mode}}
			_, err := p.tryCreate(t.Context(), c)
			wantCode(t, err, codes.InvalidArgument, source+"/sub", "not shared")
		}
	})
}

// The channels of the remote command protocol: the first byte of a message.
const (
	channelStdin = iota
	channelStdout
	_
	_
	channelResize
)

func dial(t *testing.T, url string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(url, "http:", "ws:", 1), "http://127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	ws, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.Close() })
	if err := ws.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return ws
}

// until reads standard output up to the word, or to the end when it is "".
func until(t *testing.T, ws *websocket.Conn, word string) string {
	t.Helper()
	var out strings.Builder
	for {
		var message []byte
		err := websocket.Message.Receive(ws, &message)
		if err != nil {
			if !errors.Is(err, io.EOF) || word != "" {
				t.Errorf("after %q: %v", out.String(), err)
			}
			return out.String()
		}
		if len(message) > 0 && message[0] == channelStdout {
			out.Write(message[1:])
		}
		if word != "" && strings.Contains(out.String(), word) {
			return out.String()
		}
	}
}

func send(t *testing.T, ws *websocket.Conn, channel byte, data string) {
	t.Helper()
	if err := websocket.Message.Send(ws, append([]byte{channel}, data...)); err != nil {
		t.Fatal(err)
	}
}

func TestTerminalsAndInput(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	t.Run("the size of a terminal", func(t *testing.T) {
		id := p.start(t, containerConfig(n, "shell", sleeper()...))
		reply, err := n.Runtime.Exec(n.ctx(), &rt.ExecRequest{
			ContainerId: id, Cmd: []string{"sh", "-c", "echo ready; read x; stty size; tty"}, Tty: true, Stdin: true, Stdout: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		ws := dial(t, reply.Url)
		until(t, ws, "ready")
		send(t, ws, channelResize, `{"Width":123,"Height":45}`)
		send(t, ws, channelStdin, "\n")
		if out := until(t, ws, ""); !strings.Contains(out, "45 123") || !strings.Contains(out, "/dev/pts/") {
			t.Errorf("got %q", out)
		}
	})
	attach := func(t *testing.T, id string) *websocket.Conn {
		t.Helper()
		reply, err := n.Runtime.Attach(n.ctx(), &rt.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		return dial(t, reply.Url)
	}
	t.Run("input stays open between sessions", func(t *testing.T) {
		c := containerConfig(n, "cat", "cat")
		c.Stdin = true
		id := p.start(t, c)
		for _, word := range []string{"first", "second"} {
			ws := attach(t, id)
			send(t, ws, channelStdin, word+"\n")
			until(t, ws, word)
			_ = ws.Close()
		}
		if s := n.status(t, id); s.State != rt.ContainerState_CONTAINER_RUNNING {
			t.Errorf("got %v %d", s.State, s.ExitCode)
		}
	})
	t.Run("stdin_once ends it with the first session", func(t *testing.T) {
		c := containerConfig(n, "once", "cat")
		c.Stdin, c.StdinOnce = true, true
		id := p.start(t, c)
		ws := attach(t, id)
		send(t, ws, channelStdin, "word\n")
		until(t, ws, "word")
		_ = ws.Close()
		if s := n.ended(t, id); s.ExitCode != 0 || logText(t, s.LogPath) != "word\n" {
			t.Errorf("got %d, log %q", s.ExitCode, logText(t, s.LogPath))
		}
	})
	t.Run("no input asked for is an empty one", func(t *testing.T) {
		if s, out := p.run(t, containerConfig(n, "none", "sh", "-c", "cat; echo end")); s.ExitCode != 0 || out != "end\n" {
			t.Errorf("got %d %q", s.ExitCode, out)
		}
	})
}
