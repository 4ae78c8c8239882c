package rules

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

// plugin is a network plugin that does what the file "mode" beside it says: it fails,
// hangs or babbles. It counts its calls in the file "calls".
const plugin = `#!/bin/sh
cat >/dev/null
cd "$(dirname "$0")"
mode=$(cat mode)
echo "$CNI_COMMAND" >>calls
case "$CNI_COMMAND:$mode" in
VERSION:*) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
ADD:ok) echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.8.7/24"}]}' ;;
ADD:fail) echo '{"cniVersion":"1.0.0","code":11,"msg":"no address left"}'; exit 1 ;;
ADD:garbage) echo 'this is not JSON' ;;
ADD:hang) while [ "$(cat mode)" = hang ]; do sleep 0.05; done; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.8.7/24"}]}' ;;
DEL:delfail) echo '{"cniVersion":"1.0.0","code":7,"msg":"not now"}'; exit 1 ;;
esac
`

// broken is a node whose network is the plugin.
func broken(t *testing.T) (n *node, mode func(string), calls func(string) int) {
	t.Helper()
	dir, err := os.MkdirTemp(lab.Here(t).Work, "cni.") //nolint:usetesting // removed by the outer half even when the tests are killed
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	write := func(name, body string, perm os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), perm); err != nil {
			t.Fatal(err)
		}
	}
	write("faulty", plugin, 0o755)
	if err := os.Mkdir(filepath.Join(dir, "net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("net.d/10.conflist", `{"cniVersion":"1.0.0","name":"faulty","plugins":[{"type":"faulty"}]}`, 0o644)
	mode = func(m string) { write("mode", m, 0o644) }
	mode("ok")
	calls = func(verb string) int {
		body, _ := os.ReadFile(filepath.Join(dir, "calls"))
		return strings.Count(string(body), verb+"\n")
	}
	return newNode(t, "--network=cni", "--cni-conf-dir", filepath.Join(dir, "net.d"), "--cni-bin-dir", dir), mode, calls
}

func TestFaultyNetwork(t *testing.T) {
	n, mode, calls := broken(t)
	run := func(ctx context.Context, name string) (string, error) {
		reply, err := n.Runtime.RunPodSandbox(ctx, &rt.RunPodSandboxRequest{Config: podConfig(n, name)})
		return reply.GetPodSandboxId(), err
	}
	none := func(t *testing.T) {
		t.Helper()
		list, err := n.Runtime.ListPodSandbox(n.ctx(), &rt.ListPodSandboxRequest{})
		if err != nil || len(list.Items) != 0 {
			t.Errorf("left: %v, %v", list, err)
		}
	}
	for m, word := range map[string]string{"fail": "no address left", "garbage": "faulty"} {
		t.Run("ADD: "+m, func(t *testing.T) {
			mode(m)
			_, err := run(t.Context(), m)
			if err == nil || !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), "network") {
				t.Errorf("got %v, want %q and the stage", err, word)
			}
			none(t)
		})
	}
	t.Run("ADD hangs: the retry joins", func(t *testing.T) {
		mode("hang")
		before := calls("ADD")
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := run(ctx, "hang")
		wantCode(t, err, codes.DeadlineExceeded)
		// The client has gone when the answer comes; the log is where operators look.
		eventually(t, "the log names the stage and how long it took", func() bool {
			log, err := os.ReadFile(n.Log)
			return err == nil && strings.Contains(string(log), `still busy with \"attach network\" (for `)
		})
		time.AfterFunc(300*time.Millisecond, func() { mode("ok") })
		id, err := run(t.Context(), "hang")
		if err != nil || calls("ADD") != before+1 {
			t.Fatalf("retry: got %v after %d calls of ADD, want one", err, calls("ADD")-before)
		}
		s, err := n.Runtime.PodSandboxStatus(n.ctx(), &rt.PodSandboxStatusRequest{PodSandboxId: id})
		if err != nil || s.Status.Network.GetIp() != "10.9.8.7" {
			t.Errorf("got %v, %v", s, err)
		}
		t.Run("DEL fails once", func(t *testing.T) {
			mode("delfail")
			_, err := n.Runtime.StopPodSandbox(n.ctx(), &rt.StopPodSandboxRequest{PodSandboxId: id})
			if err == nil || !strings.Contains(err.Error(), "not now") {
				t.Errorf("got %v, want the plugin's word", err)
			}
			s, err := n.Runtime.PodSandboxStatus(n.ctx(), &rt.PodSandboxStatusRequest{PodSandboxId: id})
			if err != nil || s.Status.State != rt.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("got %v, %v, want it listed as not ready", s, err)
			}
			mode("ok")
			if _, err := n.Runtime.RemovePodSandbox(n.ctx(), &rt.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
				t.Error(err)
			}
			none(t)
		})
	})
}

func TestPidsLimit(t *testing.T) {
	testkit.Need(t, testkit.CgroupV1)
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	id := p.start(t, containerConfig(n, "c", "sleep", "1000"))
	dirs, err := filepath.Glob("/sys/fs/cgroup/pids/cri-rules.*/cri/" + p.id)
	if err != nil || len(dirs) != 1 {
		t.Fatal(dirs, err)
	}
	set := func(limit string) {
		t.Helper()
		if err := os.WriteFile(dirs[0]+"/pids.max", []byte(limit), 0); err != nil {
			t.Fatal(err)
		}
	}
	set("1")
	if _, err := n.Runtime.ExecSync(n.ctx(), &rt.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 10}); err == nil {
		t.Log("an exec joins a full pids cgroup: v1 limits forks, not joins")
	}
	next := p.create(t, containerConfig(n, "next", "sh", "-c", "true & wait"))
	_, err = n.Runtime.StartContainer(n.ctx(), &rt.StartContainerRequest{ContainerId: next})
	if err == nil { // started, but its own forks fail
		if s := n.ended(t, next); s.ExitCode == 0 {
			t.Errorf("forked over the limit")
		}
	}
	set("max")
	if got := n.exec(t, id, "echo", "again"); got != "again" {
		t.Errorf("got %q", got)
	}
}

func TestFullLogDisk(t *testing.T) {
	n := newNode(t)
	config := podConfig(n, "a")
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", config.LogDirectory, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(config.LogDirectory, unix.MNT_DETACH)
	p := n.pod(t, config)
	c := containerConfig(n, "c", "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i+1)); done; echo full > /done; while [ ! -e /go ]; do sleep 0.02; done; echo after")
	id := p.start(t, c)
	eventually(t, "the container writes on over a full disk", func() bool {
		reply, err := n.Runtime.ExecSync(n.ctx(), &rt.ExecSyncRequest{ContainerId: id, Cmd: []string{"cat", "/done"}, Timeout: 10})
		return err == nil && reply.ExitCode == 0
	})
	if err := unix.Mount("", config.LogDirectory, "", unix.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	n.exec(t, id, "touch", "/go")
	s := n.ended(t, id)
	body, err := os.ReadFile(s.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	tail := string(body[max(0, len(body)-400):])
	if !strings.Contains(tail, "after") || !strings.Contains(tail, "lost") {
		t.Errorf("the loss is not told: %s", tail)
	}
	// What is there and what is told to be lost is all that was written.
	there, lost := 0, 0
	for line := range strings.Lines(string(body)) {
		if _, told, ok := strings.Cut(line, " bytes in "); ok {
			count, _, _ := strings.Cut(told, " ")
			n, err := strconv.Atoi(count)
			if err != nil {
				t.Errorf("marker %q: %v", line, err)
			}
			lost += n
		} else if strings.Contains(line, " stdout F line-") {
			there++
		}
	}
	if there+lost != 20000 || there == 0 {
		t.Errorf("%d lines are there and %d told to be lost, want 20000 together", there, lost)
	}
}

// TestProcessesOfTenPods: one daemon, one monitor, the containers, nothing else; one
// small init more for each pod that shares its pid namespace.
func TestProcessesOfTenPods(t *testing.T) {
	n := newNode(t)
	for i := range 10 {
		n.pod(t, podConfig(n, fmt.Sprint("p", i))).start(t, containerConfig(n, "c", "sleep", "1000"))
	}
	shared := podConfig(n, "shared")
	shared.Linux.SecurityContext.NamespaceOptions.Pid = rt.NamespaceMode_POD
	c := containerConfig(n, "c", "sleep", "1000")
	c.Linux.SecurityContext.NamespaceOptions.Pid = rt.NamespaceMode_POD
	n.pod(t, shared).start(t, c)

	children := map[int][]int{}
	names := map[int]string{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range stats {
		body, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		open, end := strings.IndexByte(string(body), '('), strings.LastIndexByte(string(body), ')')
		f := strings.Fields(string(body[end+1:]))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		parent, _ := strconv.Atoi(f[1])
		names[pid] = string(body[open+1 : end])
		children[parent] = append(children[parent], pid)
	}
	got := map[string]int{}
	for _, pid := range children[n.Pid()] {
		got["daemon's "+names[pid]]++
		for _, c := range children[pid] {
			got[names[pid]+"'s "+names[c]]++
		}
	}
	want := map[string]int{"daemon's cri-monitor": 1, "cri-monitor's sleep": 11}
	inits := 0
	for name, count := range got {
		if count != want[name] {
			if strings.HasPrefix(name, "cri-monitor's ") && count == 1 {
				inits++
				continue
			}
			t.Errorf("%s: got %d, want %d", name, count, want[name])
		}
	}
	if inits != 1 || len(got) != 3 {
		t.Errorf("got %v, want %v and one init", got, want)
	}
}
