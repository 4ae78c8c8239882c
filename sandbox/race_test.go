package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/pidfd"
)

// A call that waited at the gate while the container was removed must not write its
// record again: the next start of the daemon would list a container that nobody has.
func TestLateWriterDoesNotBringBackWhatWasRemoved(t *testing.T) {
	b := newBench(t)
	pod := b.pod(t, "a")
	id := b.container(t, pod, "c")
	c, err := b.containers.get(id)
	if err != nil {
		t.Fatal(err)
	}
	p, err := b.pods.get(pod)
	if err != nil {
		t.Fatal(err)
	}
	c.gate <- struct{}{}
	started := make(chan error, 1)
	go func() { started <- b.StartContainer(t.Context(), id) }() // ends with the test's start
	waitBlocked(t)
	if err := b.discard(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c.gate.leave()
	if err := <-started; !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("start: got %v, want %v", err, errdef.ErrNotFound)
	}
	p.gate <- struct{}{}
	updated := make(chan error, 1)
	go func() { updated <- b.UpdatePodResources(t.Context(), pod, &Resources{}, nil) }()
	waitBlocked(t)
	p.gate.leave()
	if err := <-updated; err != nil {
		t.Errorf("update: %v", err)
	}
	if err := b.RemovePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := b.commitPod(p, *p.record()); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("commit of a removed pod: got %v, want %v", err, errdef.ErrNotFound)
	}
	for _, dir := range []string{b.paths.podJournal(), b.paths.containerJournal()} {
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("%s: got %v, %v, want nothing", dir, left, err)
		}
	}
}

// The kubelet's deadline may pass in the middle of a start. The container must not end
// by that, and the retry gets the result.
func TestStartOutlivesItsRequest(t *testing.T) {
	b := newBench(t)
	id := b.container(t, b.pod(t, "a"), "c")
	c, err := b.containers.get(id)
	if err != nil {
		t.Fatal(err)
	}
	c.gate <- struct{}{} // the start hangs
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	first := make(chan error, 1)
	go func() { first <- b.StartContainer(ctx, id) }() // ends with the start
	waitBlocked(t)
	if err := b.StartContainer(ctx, id); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "wait for the container") {
		t.Errorf("got %v, want the deadline and the stage", err)
	}
	retry := make(chan error, 1)
	go func() { retry <- b.StartContainer(t.Context(), id) }() // ends with the start
	waitBlocked(t)
	c.gate.leave()
	if err := errors.Join(<-first, <-retry); err != nil {
		t.Errorf("first call and retry: %v", err)
	}
	if err := b.StartContainer(t.Context(), id); err != nil {
		t.Errorf("a later retry: %v", err)
	}
	if v, err := b.Container(id); err != nil || v.State != ContainerRunning {
		t.Errorf("got %v, %v, want it running", v, err)
	}
}

// waitBlocked lets a goroutine reach the gate; if it comes later it fails all the same.
func waitBlocked(t *testing.T) {
	t.Helper()
	select {
	case <-time.After(20 * time.Millisecond):
	case <-t.Context().Done():
	}
}

// A pod may be stopped between the look at its phase and the container's entry in the
// index: the stop has then not seen the container, so the creation must see the stop.
func TestContainerIsNotCreatedBehindAStop(t *testing.T) {
	b := newBench(t)
	pod := b.pod(t, "a")
	p, err := b.pods.get(pod)
	if err != nil {
		t.Fatal(err)
	}
	b.images.resolving = func() {
		if err := b.markStopping(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	_, err = b.CreateContainer(t.Context(), pod, containerConfig("c"))
	b.images.resolving = nil
	if !errors.Is(err, errdef.ErrPhase) {
		t.Errorf("got %v, want %v", err, errdef.ErrPhase)
	}
	if n := len(b.containers.all()); n != 0 || len(b.images.Keys()) != 0 {
		t.Errorf("left: %d containers, snapshots %v", n, b.images.Keys())
	}
}

// When nothing can be written any more, pods must still stop: that is what gives the
// space back.
func TestWhatCannotBeWrittenCanBeStopped(t *testing.T) {
	b := newBench(t)
	pod := b.pod(t, "a")
	id := b.started(t, pod, "c")
	for _, dir := range []string{b.paths.podJournal(), b.paths.containerJournal()} {
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.StopContainer(t.Context(), id, time.Second); err != nil {
		t.Fatalf("stop container: %v", err)
	}
	if v, err := b.Container(id); err != nil || v.State != ContainerExited {
		t.Errorf("got %+v, %v, want exited", v, err)
	}
	if _, kept := b.procs.Exit(string(id)); !kept {
		t.Error("the only record of the exit was dropped")
	}
	if _, err := b.RunPod(t.Context(), podConfig("b")); err == nil {
		t.Error("a pod without a record was made")
	}
	if err := b.StopPod(t.Context(), pod); err != nil {
		t.Fatalf("stop pod: %v", err)
	}
	if err := b.RemovePod(t.Context(), pod); err != nil {
		t.Fatalf("remove pod: %v", err)
	}
	if n := b.net.left(); n != 0 || len(b.pods.all())+len(b.containers.all()) != 0 {
		t.Errorf("left: %d attachments, pods %v, containers %v", n, b.pods.all(), b.containers.all())
	}
}

// Between creation and start the process whose pid namespace a container shares may end,
// and its id go to another process.
func TestSharedPIDNamespaceIsKnownAgain(t *testing.T) {
	b := newBench(t)
	start, err := pidfd.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	r := &containerRecord{containerBase: &containerBase{}}
	r.Config.Security.Namespaces.PID = ModePod
	for _, c := range []struct {
		init *process
		want error
	}{
		{&process{PID: os.Getpid(), Start: start}, nil},
		{&process{PID: os.Getpid(), Start: start + 1}, errdef.ErrPhase},
		{&process{PID: 1 << 30}, errdef.ErrPhase},
		{nil, errdef.ErrPhase},
	} {
		rs := &specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: "/proc/1/ns/pid"}}}}
		f, err := b.holdPIDNamespace(r, newPod(&podRecord{podBase: &podBase{}, podState: podState{Init: c.init}}), rs)
		if !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.init, err, c.want)
		}
		if err != nil {
			continue
		}
		got, err1 := os.Readlink(rs.Linux.Namespaces[0].Path)
		want, err2 := os.Readlink("/proc/self/ns/pid")
		if got != want || err1 != nil || err2 != nil {
			t.Errorf("got %q, want %q: %v, %v", got, want, err1, err2)
		}
		f.Close()
	}
}

// A pod's /dev/shm is writable for everybody inside, and its path is in the mount table.
func TestPodFilesCannotBeReachedByTheHostsUsers(t *testing.T) {
	b := newBench(t)
	shm := b.paths.file(b.pod(t, "a"), dirShm)
	cmd := exec.CommandContext(t.Context(), "/bin/ls", shm)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	// t.TempDir is closed to others as well: only what is ours counts here.
	for dir := filepath.Dir(b.config.State); dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&1 == 0 {
			if err := os.Chmod(dir, info.Mode()|1); err != nil {
				t.Fatal(err)
			}
		}
	}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "ermission denied") {
		t.Errorf("another user: got %q, %v, want permission denied", out, err)
	}
}
