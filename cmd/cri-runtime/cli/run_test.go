package cli

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// output is a buffer that a test reads while the command writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// page serves HTTP on a free port of loopback, and gives that port.
func page(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<h1>hello</h1>\nsecond\n")) }))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// execute runs a command line as main does.
func execute(ctx context.Context, out *output, args ...string) error {
	cmd := &cobra.Command{Use: "cri-runtime"}
	cmd.AddCommand(Commands()...)
	cmd.SetArgs(args)
	cmd.SetOut(out)
	cmd.SetErr(out)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	return cmd.ExecuteContext(ctx)
}

const head = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n"

func manifest(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pod.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// runCase is a manifest and what comes of it.
type runCase struct {
	spec  string
	set   func(f *fakeNode)
	flags []string
	want  []string // in the output
	err   []string // in the error; none: it succeeds
	order string
	left  int // pods
}

func (tc runCase) test(t *testing.T) {
	f, socket := startFake(t)
	if tc.set != nil {
		tc.set(f)
	}
	data := filepath.Join(t.TempDir(), "data")
	file := manifest(t, head+strings.ReplaceAll(tc.spec, "PORT", page(t)))
	var out output
	err := execute(t.Context(), &out, append([]string{"run", "--connect", socket, "--data", data, "--logs-for", "300ms", file}, tc.flags...)...)
	if (err != nil) != (len(tc.err) > 0) {
		t.Errorf("error: got %v, want %v", err, tc.err)
	}
	for _, want := range tc.err {
		if err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("error: got %q, want %q in it", err, want)
		}
	}
	for _, want := range tc.want {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	if got := strings.Join(f.order, ", "); tc.order != "" && got != tc.order {
		t.Errorf("order: got %s, want %s", got, tc.order)
	}
	if len(f.pods) != tc.left {
		t.Errorf("pods: got %d, want %d", len(f.pods), tc.left)
	}
	if _, err := os.Stat(data); (err == nil) != (tc.left > 0) {
		t.Errorf("data directory: %v with %d pods", err, tc.left)
	}
}

func TestRun(t *testing.T) {
	const two = "  initContainers: [{name: i, image: 'x:1', command: [exit, '0']}, {name: s, image: 'x:1', restartPolicy: Always}]\n"
	for name, tc := range map[string]runCase{
		"plain": {
			spec: two + "  containers: [{name: c, image: 'x:1', command: [line one, line two], ports: [{name: http, containerPort: PORT}]}]\n",
			want: []string{
				"x:1 pulled in", "IP 127.0.0.1", "i is done", "started   s in", "started   c in", "[c] line two", "answers 200 OK", "<h1>hello</h1>", "p goes on running",
			},
			order: "run pod, start i, end i, start s, start c", left: 1,
		},
		"no events": {
			set:  func(f *fakeNode) { f.noEvents = true },
			spec: two + "  containers: [{name: c, image: 'x:1', command: [exit, '0']}]\n", want: []string{"ended     c with code 0"}, left: 1,
		},
		"removed": {
			flags: []string{"--rm"}, spec: two + "  containers: [{name: c, image: 'x:1', command: [exit, '0']}]\n", want: []string{"default/p removed"},
			order: "run pod, start i, end i, start s, start c, end c, end s, stop pod, remove pod",
		},
		"init fails": {
			spec:  "  initContainers: [{name: i, image: x, command: [exit, '3']}]\n  containers: [{name: c, image: x}]\n",
			err:   []string{"start containers: init container i ended with code 3 (Error): the fake says so; its log ends with\n  exit\n  3"},
			order: "run pod, start i, end i, stop pod, remove pod",
		},
		"container fails": {
			spec: "  containers: [{name: c, image: x, command: [exit, '1']}, {name: d, image: x}]\n", err: []string{"container c ended with code 1"},
		},
		"no start": {
			set:  func(f *fakeNode) { f.startErr["c"] = status.Error(codes.Internal, "exec: no such file") },
			spec: "  containers: [{name: c, image: x}]\n", err: []string{"start containers: start container c: exec: no such file"},
		},
		"no pull": {
			set:  func(f *fakeNode) { f.pullErr = status.Error(codes.Unknown, "RegistryUnavailable: gone") },
			spec: "  containers: [{name: c, image: x}]\n", err: []string{"get images: pull x: RegistryUnavailable: gone"},
		},
		"never pulled": {
			spec: "  containers: [{name: c, image: x, imagePullPolicy: Never}]\n", err: []string{"image x is not here"},
		},
		"no page": {
			flags: []string{"--timeout", "1s"}, set: func(f *fakeNode) { f.ip = "127.0.0.9" },
			spec: "  containers: [{name: c, image: x, ports: [{name: http, containerPort: 1}]}]\n",
			err:  []string{"ask for the page: not done within --timeout: fetch http://127.0.0.9:1/", "connection refused"},
		},
		"root": {
			spec: "  containers: [{name: c, image: x, securityContext: {runAsNonRoot: true}}]\n", err: []string{"the image runs as root"},
		},
	} {
		t.Run(name, tc.test)
	}
}

// TestInterrupt presses Ctrl-C while the pod runs, and looks for the log's last line.
func TestInterrupt(t *testing.T) {
	f, socket := startFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	data := filepath.Join(t.TempDir(), "data")
	var out output
	done := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	file := manifest(t, head+"  containers: [{name: c, image: x, command: [first]}]\n")
	wg.Go(func() { done <- execute(ctx, &out, "run", "--rm", "--connect", socket, "--data", data, file) })
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(out.String(), "[c] first"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no log: %s", out.String())
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("got %v, want success", err)
	}
	if want := []string{"end c", "stop pod", "remove pod"}; !slices.Equal(f.order[len(f.order)-3:], want) {
		t.Errorf("order: got %q, want %q at its end", f.order, want)
	}
}

func TestPodTwice(t *testing.T) {
	f, socket := startFake(t)
	data, file := t.TempDir(), manifest(t, head+"  containers: [{name: c, image: x}]\n")
	args := []string{"run", "--connect", socket, "--data", data, "--logs-for", "1ms", file}
	if err := execute(t.Context(), &output{}, args...); err != nil {
		t.Fatal(err)
	}
	if err := execute(t.Context(), &output{}, args...); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("second run: got %v", err)
	}
	if len(f.pods) != 1 || len(f.made) != 1 {
		t.Errorf("got %d pods and %d containers, want the first one's", len(f.pods), len(f.made))
	}
}

func TestPullCommand(t *testing.T) {
	f, socket := startFake(t)
	var out output
	if err := execute(t.Context(), &out, "pull", "--connect", socket, "x:1"); err != nil || f.pulls != 1 {
		t.Errorf("got %v and %d pulls", err, f.pulls)
	}
	if err := execute(t.Context(), &out, "pull", "--connect", socket+"x", "x:1"); err == nil || !strings.Contains(err.Error(), "is the daemon running") {
		t.Errorf("no socket: got %v", err)
	}
}
