package fault

import (
	"errors"
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

// fill leaves no room on the file system of dir, whatever its size, until the returned
// function is called.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal("fill disk: ", err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// TestFullLogDisk holds that a container never waits for a disk, and that what was
// lost is told where it is missing.
func TestFullLogDisk(t *testing.T) {
	n := node.Start(t)
	config := n.PodConfig("a")
	node.MountTmpfs(t, config.LogDirectory, "size=64k")
	p := n.RunPod(t, config)
	const lines = 20000
	ctr := p.Start(t, p.ContainerConfig("c", "sh", "-c", fmt.Sprintf(
		"i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done; : >/full; until test -e /go; do sleep 0.01; done; echo after", lines)))
	node.Eventually(t, "the container has written everything", func() bool {
		reply, err := p.Runtime.ExecSync(t.Context(), &rt.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"test", "-e", "/full"}, Timeout: 10})
		return err == nil && reply.ExitCode == 0
	})
	if err := unix.Mount("", config.LogDirectory, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	p.Exec(t, ctr, "touch", "/go")
	s := p.Ended(t, ctr)
	if s.ExitCode != 0 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	// Lines in order, then a word about the loss, then the rest in order.
	next, gap := 0, ""
	all := strings.Split(strings.TrimSpace(node.LogText(t, s.LogPath)), "\n")
	for _, line := range all[:len(all)-1] {
		if line == fmt.Sprint("line ", next) {
			next++
			continue
		}
		after, isLine := strings.CutPrefix(line, "line ")
		if number, err := strconv.Atoi(after); isLine && err == nil && gap != "" && number > next {
			next, gap = number+1, gap+", then lines"
			continue
		}
		gap += line
	}
	if !strings.Contains(gap, "lost") || next > lines || next < 100 || all[len(all)-1] != "after" {
		t.Errorf("after line %d: %q, last %q, want a word about the loss and the end", next, gap, all[len(all)-1])
	}
}

func TestFullStateDirectory(t *testing.T) {
	n := node.Start(t)
	if err := unix.Mount("", n.State, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	p := n.RunPod(t, n.PodConfig("a"))
	running := p.Start(t, p.ContainerConfig("running", node.Sleeper()...))
	created := p.Create(t, p.ContainerConfig("created", "true"))
	free := fill(t, n.State)
	const word = "no space left on device"
	_, err := run(t.Context(), n, "b")
	node.WantError(t, err, codes.ResourceExhausted, word)
	_, err = p.TryCreate(t.Context(), p.ContainerConfig("late", "true"))
	node.WantError(t, err, codes.ResourceExhausted, word)
	// A start adds a line to its record, which may fit into the block that the record has already.
	want := rt.ContainerState_CONTAINER_CREATED
	if err = p.TryStart(t.Context(), created); err != nil {
		node.WantError(t, err, codes.ResourceExhausted, word, created)
	} else {
		p.Ended(t, created)
		want = rt.ContainerState_CONTAINER_EXITED
	}
	wantPods(t, n, 1)
	if s := p.Status(t, created); s.State != want {
		t.Errorf("the container whose start returned %v is %v, want %v", err, s.State, want)
	}
	if s := p.Status(t, running); s.State != rt.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the running container is %v", s.State)
	}
	if got := p.Exec(t, running, "echo", "still there"); got != "still there" {
		t.Errorf("exec: got %q", got)
	}
	if _, err := n.Runtime.StopContainer(t.Context(), &rt.StopContainerRequest{ContainerId: running, Timeout: 5}); err != nil {
		t.Errorf("stop container: %v", err)
	}
	for _, id := range []string{running, created} {
		if _, err := n.Runtime.RemoveContainer(t.Context(), &rt.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("remove container: %v", err)
		}
	}
	p.Remove(t)
	wantPods(t, n, 0)
	free()
	n.RunPod(t, n.PodConfig("c")).Shell(t, "true", nil)
}
