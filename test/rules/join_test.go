package rules

import (
	"context"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// together makes the same call several times at once and returns the one answer.
func together(t *testing.T, what string, call func() (string, error)) string {
	t.Helper()
	var answers [6]string
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() {
			answer, err := call()
			if err != nil {
				t.Errorf("%s, call %d of several at once: %v", what, i, err)
			}
			answers[i] = answer
		})
	}
	wg.Wait()
	for _, a := range answers {
		if a != answers[0] {
			t.Errorf("%s: got %q, want one answer for all", what, answers)
			break
		}
	}
	return answers[0]
}

// TestRetriesJoin: a kubelet whose deadline passed asks again with the same name and
// attempt; "the name is reserved" would be a dead end for it.
func TestRetriesJoin(t *testing.T) {
	n := newNode(t)
	runPod := func(name string) string {
		return together(t, "RunPodSandbox", func() (string, error) {
			reply, err := n.Runtime.RunPodSandbox(n.ctx(), &rt.RunPodSandboxRequest{Config: podConfig(n, name)})
			return reply.GetPodSandboxId(), err
		})
	}
	p := n.pod(t, podConfig(n, "twice"))
	if again := runPod("twice"); again != p.id {
		t.Errorf("RunPodSandbox of a pod that runs: got %s, want %s", again, p.id)
	}
	id := runPod("fresh")
	config := podConfig(n, "fresh")
	config.Metadata.Attempt = 1
	if next := n.pod(t, config); next.id == id {
		t.Error("another attempt is another pod")
	}
	c := containerConfig(n, "c", "sh", "-c", "echo up; while :; do sleep 0.05; done")
	container := together(t, "CreateContainer", func() (string, error) { return p.tryCreate(n.ctx(), c) })
	together(t, "StartContainer", func() (string, error) {
		return "", second(n.Runtime.StartContainer(n.ctx(), &rt.StartContainerRequest{ContainerId: container}))
	})
	log := n.status(t, container).LogPath
	eventually(t, "a line of the log", func() bool { return logText(t, log) != "" })
	if got := logText(t, log); got != "up\n" {
		t.Errorf("one start: got %q", got)
	}
	together(t, "StopContainer", func() (string, error) {
		return "", second(n.Runtime.StopContainer(n.ctx(), &rt.StopContainerRequest{ContainerId: container}))
	})
	together(t, "RemoveContainer", func() (string, error) {
		return "", second(n.Runtime.RemoveContainer(n.ctx(), &rt.RemoveContainerRequest{ContainerId: container}))
	})
	together(t, "StopPodSandbox", func() (string, error) {
		return "", second(n.Runtime.StopPodSandbox(n.ctx(), &rt.StopPodSandboxRequest{PodSandboxId: id}))
	})
	together(t, "RemovePodSandbox", func() (string, error) {
		return "", second(n.Runtime.RemovePodSandbox(n.ctx(), &rt.RemovePodSandboxRequest{PodSandboxId: id}))
	})
	list, err := n.Runtime.ListPodSandbox(n.ctx(), &rt.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != 2 {
		t.Errorf("got %d pods, %v, want the first and the second attempt", len(list.GetItems()), err)
	}
}

// TestADeadlineNamesTheStage: what the runtime waited for and for how long is all that
// an operator has when a request ran out of time.
func TestADeadlineNamesTheStage(t *testing.T) {
	n, mode, _ := broken(t)
	mode("hang")
	config := podConfig(n, "slow")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := n.Runtime.RunPodSandbox(ctx, &rt.RunPodSandboxRequest{Config: config})
	wantCode(t, err, codes.DeadlineExceeded)
	said := regexp.MustCompile(`slow.*still busy with .*network.* \(for [0-9.]+m?s\).* after [0-9.]+m?s; it goes on and a retry joins it`)
	eventually(t, "the log names pod, stage and time", func() bool {
		body, err := os.ReadFile(n.Log)
		return err == nil && said.Match(body)
	})
	if _, err := n.Runtime.ListPodSandbox(n.ctx(), &rt.ListPodSandboxRequest{}); err != nil { // is not held up
		t.Error(err)
	}
	mode("ok")
	n.pod(t, config)
}

// TestRemoveWhileBusy: a pod may go at any moment; whoever is at work in it gets an
// answer soon, and nothing is left (newNode looks).
func TestRemoveWhileBusy(t *testing.T) {
	n := newNode(t)
	for _, busy := range []string{"exec", "create and start"} {
		t.Run(busy, func(t *testing.T) {
			p := n.pod(t, podConfig(n, strings.Fields(busy)[0]))
			id := p.start(t, containerConfig(n, "c", sleeper()...))
			begun := make(chan struct{})
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				if busy == "exec" {
					close(begun)
					reply, err := n.Runtime.ExecSync(n.ctx(), &rt.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "300"}, Timeout: 300})
					if err == nil && reply.ExitCode == 0 {
						t.Error("an exec in a removed container succeeded")
					}
					return
				}
				for i := range 1000 {
					c, err := p.tryCreate(n.ctx(), containerConfig(n, "c"+itoa(int64(i)), "sleep", "300"))
					if i == 1 {
						close(begun)
					}
					if err == nil {
						err = second(n.Runtime.StartContainer(n.ctx(), &rt.StartContainerRequest{ContainerId: c}))
					}
					if err != nil {
						return // the pod is stopping or gone
					}
				}
				t.Error("containers are made in a pod that is gone")
			})
			<-begun
			time.Sleep(30 * time.Millisecond) // into the middle of it, wherever that is
			at := time.Now()
			if _, err := n.Runtime.RemovePodSandbox(n.ctx(), &rt.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			if took := time.Since(at); took > 10*time.Second {
				t.Errorf("removal and the others' answers took %v", took)
			}
			list, err := n.Runtime.ListContainers(n.ctx(), &rt.ListContainersRequest{})
			if err != nil || len(list.Containers) != 0 {
				t.Errorf("left: %v, %v", list, err)
			}
		})
	}
}

// TestWrongPhase: a request that comes at the wrong time says so with a code of its
// own, and is not taken for one with a wrong name.
func TestWrongPhase(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	created := p.create(t, containerConfig(n, "created", sleeper()...))
	exited, _ := p.run(t, containerConfig(n, "exited", "true"))
	for phase, id := range map[string]string{"created": created, "exited": exited.Id} {
		for call, err := range map[string]error{
			"ExecSync":           second(n.Runtime.ExecSync(n.ctx(), &rt.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})),
			"Exec":               second(n.Runtime.Exec(n.ctx(), &rt.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})),
			"Attach":             second(n.Runtime.Attach(n.ctx(), &rt.AttachRequest{ContainerId: id, Stdout: true})),
			"ReopenContainerLog": second(n.Runtime.ReopenContainerLog(n.ctx(), &rt.ReopenContainerLogRequest{ContainerId: id})),
		} {
			t.Run(call+" "+phase, func(t *testing.T) { wantCode(t, err, codes.FailedPrecondition, id) })
		}
	}
	_, err := n.Runtime.StartContainer(n.ctx(), &rt.StartContainerRequest{ContainerId: exited.Id})
	wantCode(t, err, codes.FailedPrecondition, "exited")
	if log := n.status(t, created).LogPath; exists(log) {
		t.Errorf("a reopen that failed made %s", log)
	}
	if err := os.Rename(exited.LogPath, exited.LogPath+".1"); err != nil { // as the kubelet rotates
		t.Fatal(err)
	}
	_, err = n.Runtime.ReopenContainerLog(n.ctx(), &rt.ReopenContainerLogRequest{ContainerId: exited.Id})
	wantCode(t, err, codes.FailedPrecondition)
	if exists(exited.LogPath) {
		t.Error("a reopen that failed left a new file: the kubelet's next rotation would delete the old log")
	}
	if _, err := n.Runtime.StopPodSandbox(n.ctx(), &rt.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	_, err = p.tryCreate(n.ctx(), containerConfig(n, "late", "true"))
	wantCode(t, err, codes.FailedPrecondition, p.id)
	_, err = n.Runtime.StartContainer(n.ctx(), &rt.StartContainerRequest{ContainerId: created})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = n.Runtime.PortForward(n.ctx(), &rt.PortForwardRequest{PodSandboxId: p.id, Port: []int32{80}})
	wantCode(t, err, codes.FailedPrecondition, p.id)
}
