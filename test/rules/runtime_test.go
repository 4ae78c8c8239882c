package rules

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/lab"
)

// program is an OCI runtime that does what the file named as its command says: it
// fails, fails after it has done its work, or hangs. Without one it is runc.
const program = `#!/bin/sh
dir=$(dirname "$0")
for a; do
	case "$a" in create|start|state|delete|kill|exec|features) verb=$a; break ;; esac
	[ "$last" = --log ] && log=$a
	last=$a
done
say() { echo '{"level":"error","msg":"'"$1"'"}' >>"${log:-/dev/stderr}"; exit 1; }
[ -n "$verb" ] && [ -e "$dir/$verb" ] && mode=$(cat "$dir/$verb")
case "$mode" in
fail) say "told to fail" ;;
silent) exit 1 ;;
half) %[1]s "$@" || exit; say "told to fail half-way" ;;
hang) exec sleep 1000 ;;
esac
exec %[1]s "$@"
`

// faulty is a pod whose runtime is the program.
func faulty(t *testing.T) (p *pod, mode func(verb, how string)) {
	t.Helper()
	dir := filepath.Join(lab.Here(t).Work, "runtime")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(program, filepath.Join(lab.Here(t).Tools, "runc"))
	if err := os.WriteFile(filepath.Join(dir, "program"), []byte(body), 0o755); err != nil {
		t.Fatal(err)
	}
	mode = func(verb, how string) {
		t.Helper()
		file := filepath.Join(dir, verb)
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		if how != "" {
			if err := os.WriteFile(file, []byte(how), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := newNode(t, "--runtime", "faulty="+filepath.Join(dir, "program"))
	config := podConfig(n, "a")
	reply, err := n.Runtime.RunPodSandbox(t.Context(), &rt.RunPodSandboxRequest{Config: config, RuntimeHandler: "faulty"})
	if err != nil {
		t.Fatal(err)
	}
	p = &pod{node: n, id: reply.PodSandboxId, config: config}
	t.Cleanup(func() {
		if _, err := n.Runtime.RemovePodSandbox(context.WithoutCancel(t.Context()), &rt.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Errorf("remove pod: %v", err)
		}
	})
	return p, mode
}

func TestFaultyRuntime(t *testing.T) { // long: one handler, its failures one after the other
	p, mode := faulty(t)
	start := func(ctx context.Context, name string, command ...string) (string, error) {
		t.Helper()
		id := p.create(t, containerConfig(p.node, name, command...))
		_, err := p.Runtime.StartContainer(ctx, &rt.StartContainerRequest{ContainerId: id})
		return id, err
	}
	remove := func(t *testing.T, id string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := p.Runtime.StopContainer(ctx, &rt.StopContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("stop: %v", err)
		}
		if _, err := p.Runtime.RemoveContainer(ctx, &rt.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	for verb, hows := range map[string]map[string]string{
		"create": {"fail": "told to fail", "silent": "without a word", "half": "half-way"},
		"start":  {"fail": "told to fail", "half": "half-way"},
	} {
		for how, word := range hows {
			t.Run(verb+": "+how, func(t *testing.T) {
				mode(verb, how)
				defer mode(verb, "")
				id, err := start(t.Context(), verb+how, "sleep", "1000")
				if err == nil || !strings.Contains(err.Error(), "faulty "+verb) || !strings.Contains(err.Error(), word) {
					t.Errorf("got %v, want the handler, its command and %q", err, word)
				}
				s := p.status(t, id)
				if s.State != rt.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" || !strings.Contains(s.Message, word) {
					t.Errorf("got %v %s %d %q", s.State, s.Reason, s.ExitCode, s.Message)
				}
				remove(t, id)
			})
		}
	}
	for _, verb := range []string{"create", "start"} {
		t.Run(verb+" hangs", func(t *testing.T) {
			mode(verb, "hang")
			defer mode(verb, "")
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			begun := time.Now()
			id, err := start(ctx, verb+"hang", "sleep", "1000")
			if code := status.Code(err); code != codes.DeadlineExceeded || time.Since(begun) > 5*time.Second {
				t.Errorf("got %v after %v", err, time.Since(begun))
			}
			remove(t, id)
		})
	}
	t.Run("exec", func(t *testing.T) {
		id, err := start(t.Context(), "exec", "sleep", "1000")
		if err != nil {
			t.Fatal(err)
		}
		mode("exec", "fail")
		_, err = p.Runtime.ExecSync(t.Context(), &rt.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 10})
		if err == nil || !strings.Contains(err.Error(), "told to fail") {
			t.Errorf("got %v", err)
		}
		mode("exec", "hang")
		_, err = p.Runtime.ExecSync(t.Context(), &rt.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 1})
		wantCode(t, err, codes.DeadlineExceeded)
		mode("exec", "")
		if got := p.exec(t, id, "echo", "again"); got != "again" {
			t.Errorf("got %q", got)
		}
		remove(t, id)
	})
	t.Run("delete fails once", func(t *testing.T) {
		id, err := start(t.Context(), "delete", "sleep", "1000")
		if err != nil {
			t.Fatal(err)
		}
		mode("delete", "fail")
		_, err = p.Runtime.StopContainer(t.Context(), &rt.StopContainerRequest{ContainerId: id})
		if s := p.status(t, id); s.State != rt.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
			t.Errorf("stop: %v; got %v %d: the exit does not depend on the program", err, s.State, s.ExitCode)
		}
		_, err = p.Runtime.RemoveContainer(t.Context(), &rt.RemoveContainerRequest{ContainerId: id})
		if err == nil || !strings.Contains(err.Error(), "told to fail") {
			t.Errorf("remove: got %v, want the program's word", err)
		}
		mode("delete", "")
		remove(t, id)
	})
	t.Run("a pod is removed in spite of it all", func(t *testing.T) {
		if _, err := start(t.Context(), "last", "sleep", "1000"); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Runtime.StopPodSandbox(t.Context(), &rt.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Error(err)
		}
	})
}
