package fault

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/container/node"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

// network is the plugin and its directory.
type network struct{ dir string }

// set tells the plugin what to do from now on.
func (w network) set(t *testing.T, mode string) {
	t.Helper()
	file := filepath.Join(w.dir, "mode")
	if err := os.WriteFile(file+".new", []byte(mode), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// calls counts the calls of a verb for a container, "" for any.
func (w network) calls(verb, id string) int {
	body, _ := os.ReadFile(filepath.Join(w.dir, "calls")) // none before the first call
	return strings.Count(string(body), verb+" "+id)
}

// startBroken is a node whose network is the plugin.
func startBroken(t *testing.T) (*node.Node, network) {
	t.Helper()
	dir, err := os.MkdirTemp(lab.Here(t).Work, "net.") //nolint:usetesting // where the daemon, in mounts of its own, finds it
	if err != nil {
		t.Fatal(err)
	}
	w := network{dir}
	if _, err := node.Build(t.Context(), "github.com/cri-runtime/cri-runtime/test/fault/plugin", filepath.Join(w.dir, "faulty")); err != nil {
		t.Fatal(err)
	}
	conf := `{"cniVersion":"1.0.0","name":"broken","plugins":[{"type":"faulty"}]}`
	if err := os.WriteFile(filepath.Join(w.dir, "10-broken.conflist"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	w.set(t, "ok")
	return node.Start(t, "--network=cni", "--cni-conf-dir", w.dir, "--cni-bin-dir", w.dir), w
}

func run(ctx context.Context, n *node.Node, name string) (string, error) {
	reply, err := n.Runtime.RunPodSandbox(ctx, &rt.RunPodSandboxRequest{Config: n.PodConfig(name)})
	return reply.GetPodSandboxId(), err
}

// wantPods checks how many pods there are.
func wantPods(t *testing.T, n *node.Node, want int) {
	t.Helper()
	list, err := n.Runtime.ListPodSandbox(context.WithoutCancel(t.Context()), &rt.ListPodSandboxRequest{})
	if err != nil || len(list.Items) != want {
		t.Errorf("got pods %v, %v, want %d", list.GetItems(), err, want)
	}
}

func TestAddFails(t *testing.T) {
	n, w := startBroken(t)
	for mode, words := range map[string][]string{
		"add-fail": {"told to fail"}, "add-exit": {"exit status 3", "last words"},
		"add-garbage": {}, "add-empty": {}, "add-flood": {},
	} {
		t.Run(mode, func(t *testing.T) {
			w.set(t, mode)
			dels := w.calls("DEL", "")
			_, err := run(t.Context(), n, mode)
			if err == nil {
				t.Fatal("the pod has a network")
			}
			for _, word := range append(words, "run pod ns/"+mode, "attach network") {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("got %v, want %q in it", err, word)
				}
			}
			if len(err.Error()) > 4096 || strings.Contains(err.Error(), "\n") {
				t.Errorf("an error of %d bytes: %.200q", len(err.Error()), err)
			}
			if w.calls("DEL", "") == dels {
				t.Error("the plugin was not told that the pod is gone")
			}
			wantPods(t, n, 0)
		})
	}
	w.set(t, "ok")
	n.RunPod(t, n.PodConfig("good")).Shell(t, "true", nil)
}

// TestAddHangs holds that retries join the call under way: one ADD, one pod.
func TestAddHangs(t *testing.T) {
	n, w := startBroken(t)
	w.set(t, "add-hang")
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := run(short, n, "a")
	node.WantError(t, err, codes.DeadlineExceeded)
	type answer struct {
		id  string
		err error
	}
	answers := make(chan answer, 3)
	for range 3 {
		go func() { // ends with its answer, which is waited for
			id, err := run(t.Context(), n, "a")
			answers <- answer{id, err}
		}()
	}
	wantPods(t, n, 0) // lists do not wait, and show no pod that has never been ready
	w.set(t, "ok")
	var first string
	for range 3 {
		got := <-answers
		if got.err != nil || first != "" && got.id != first {
			t.Errorf("got %s, %v, want one pod", got.id, got.err)
		}
		first = got.id
	}
	if got := w.calls("ADD", ""); got != 1 {
		t.Errorf("ADD was called %d times, want once", got)
	}
	s, err := n.Runtime.PodSandboxStatus(t.Context(), &rt.PodSandboxStatusRequest{PodSandboxId: first})
	if err != nil || s.Status.GetNetwork().GetIp() != "10.9.8.7" {
		t.Errorf("got %v, %v, want the plugin's address", s, err)
	}
	(&node.Pod{Node: n, ID: first}).Remove(t)
}

// TestAddHangsOverACrash holds that a daemon killed in ADD takes the pod back.
func TestAddHangsOverACrash(t *testing.T) {
	n, w := startBroken(t)
	w.set(t, "add-hang")
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := run(short, n, "a")
	node.WantError(t, err, codes.DeadlineExceeded)
	n.Kill()
	w.set(t, "ok")
	n.Start(t)
	list, err := n.Runtime.ListPodSandbox(t.Context(), &rt.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range list.Items {
		if item.State == rt.PodSandboxState_SANDBOX_READY {
			t.Errorf("%s is ready", item.Id)
		}
		(&node.Pod{Node: n, ID: item.Id}).Remove(t)
	}
	if w.calls("DEL", "") == 0 {
		t.Error("the plugin was not told that the pod is gone")
	}
	n.RunPod(t, n.PodConfig("a")).Shell(t, "true", nil)
}

func TestDelFails(t *testing.T) {
	n, w := startBroken(t)
	p := n.RunPod(t, n.PodConfig("a"))
	ctr := p.Start(t, p.ContainerConfig("c", node.Sleeper()...))
	stop := func(ctx context.Context) error {
		_, err := n.Runtime.StopPodSandbox(ctx, &rt.StopPodSandboxRequest{PodSandboxId: p.ID})
		return err
	}
	w.set(t, "del-fail")
	err := stop(t.Context())
	if err == nil || !strings.Contains(err.Error(), "told to fail") || !strings.Contains(err.Error(), "detach network") {
		t.Errorf("got %v, want the plugin's words", err)
	}
	if _, err := n.Runtime.RemovePodSandbox(t.Context(), &rt.RemovePodSandboxRequest{PodSandboxId: p.ID}); err == nil {
		t.Error("a pod was removed whose network was not given back")
	}
	s, err := n.Runtime.PodSandboxStatus(t.Context(), &rt.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil || s.Status.State != rt.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("got %v, %v, want NOTREADY", s, err)
	}
	if s := n.Status(t, ctr); s.State != rt.ContainerState_CONTAINER_EXITED {
		t.Errorf("its container is %v", s.State)
	}
	w.set(t, "del-hang")
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	node.WantError(t, stop(short), codes.DeadlineExceeded)
	calls := w.calls("DEL", p.ID)
	joined := make(chan error, 1)
	go func() { joined <- stop(t.Context()) }() // ends with its answer
	w.set(t, "ok")
	if err := <-joined; err != nil {
		t.Errorf("the retry: %v", err)
	}
	if got := w.calls("DEL", p.ID); got != calls {
		t.Errorf("DEL was called %d times more for a retry that joins", got-calls)
	}
	if err := stop(t.Context()); err != nil { // of a stopped pod
		t.Error(err)
	}
}
