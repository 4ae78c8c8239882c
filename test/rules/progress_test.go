package rules

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	store "github.com/cri-runtime/cri-runtime/image"
	registries "github.com/cri-runtime/cri-runtime/test/faulty"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

const slowImage = "r.example/team/app:1"

// slowNode is a node whose registry r.example does what a test wants. The image has two layers; only the
// first has the path part that is returned.
func slowNode(t *testing.T) (*node, *registries.Registry, string) {
	t.Helper()
	n := newNode(t)
	r := registries.New(t, registries.Plain)
	big, small := randomTar(t, "big", 3<<20), randomTar(t, "small", 1000)
	r.Push("team/app", "1", big, small)
	dir := filepath.Join(n.Hosts, "r.example")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "server = %q\n", r.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	return n, r, registries.Digest(big)
}

func randomTar(t *testing.T, name string, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := make([]byte, size)
	_, _ = rand.Read(body)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// command runs our program as an operator does, and gives what it prints.
func (n *node) command(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(lab.Here(t).Bin, "cri-runtime"), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// must is command for what has to succeed.
func (n *node) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, err := n.command(t, args...)
	if err != nil {
		t.Fatalf("%q: %v: %s%s", args, err, out, errs)
	}
	return out
}

func (n *node) adminSocket() string { return filepath.Join(n.State, "admin.sock") }

// admin gets a path from the admin socket.
func (n *node) admin(t *testing.T, path string) string {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.adminSocket())
	}}}
	resp, err := c.Get("http://x" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: got %d %s, %v", path, resp.StatusCode, body, err)
	}
	return string(body)
}

// kubeletPull pulls as the kubelet does, for a pod.
func (n *node) kubeletPull(ctx context.Context, ref string) (string, error) {
	reply, err := n.Images.PullImage(ctx, &rt.PullImageRequest{Image: &rt.ImageSpec{Image: ref}, SandboxConfig: podConfig(n, "puller")})
	return reply.GetImageRef(), err
}

func (n *node) pullInfo(t *testing.T, ref string) (p store.PullStatus, ok bool) {
	t.Helper()
	st, err := n.Images.ImageStatus(t.Context(), &rt.ImageStatusRequest{Image: &rt.ImageSpec{Image: ref}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	text := st.Info["pull"]
	if text != "" && json.Unmarshal([]byte(text), &p) != nil {
		t.Fatalf("pull info: %s", text)
	}
	return p, text != ""
}

// TestPullIsSeen: a pull that the kubelet began shows, while its layer stands still
// half-way, in ImageStatus, Status, the metrics and the operator's commands, and is joined
// by who asks for the same.
func TestPullIsSeen(t *testing.T) {
	n, r, layer := slowNode(t)
	arrived, open := make(chan struct{}, 1), make(chan struct{})
	r.Set(registries.Rule{Path: layer, Do: registries.Gate(1<<20, arrived, open)})
	pulled := make(chan error, 1)
	var id string
	go func() { // ends before the test does: the gate opens, or the registry closes
		var err error
		id, err = n.kubeletPull(t.Context(), slowImage)
		pulled <- err
	}()
	<-arrived
	var p store.PullStatus
	eventually(t, "1 MiB of the first layer and all of the second", func() bool {
		p, _ = n.pullInfo(t, slowImage)
		return len(p.Layers) == 2 && p.Layers[0].Done == 1<<20 && p.Layers[1].State == store.LayerDone
	})
	if p.Phase != store.PhasePulling || p.Layers[0].State != store.LayerDownloading || p.Layers[0].Digest.String() != layer || p.Layers[0].Host != r.Host() || p.Ended != nil {
		t.Errorf("verbose ImageStatus: got %+v", p)
	}
	st, err := n.Runtime.Status(t.Context(), &rt.StatusRequest{Verbose: true})
	if err != nil || !strings.Contains(st.Info["pulls"], slowImage) {
		t.Errorf("verbose Status: got %q, %v", st.GetInfo()["pulls"], err)
	}
	if m := n.admin(t, "/metrics"); !strings.Contains(m, "\ncri_runtime_image_pulls_in_flight 1\n") || !strings.Contains(m, `_pull_bytes_total{host="`+r.Host()+`"} 10`) {
		t.Errorf("metrics: got %s", m)
	}
	if out := n.must(t, "pulls", "--admin", n.adminSocket()); !strings.Contains(out, slowImage+" 33% of 3.1 MB") ||
		!strings.Contains(out, layer[7:19]+" downloading [=") || !strings.Contains(out, " done ") {
		t.Errorf("pulls: got\n%s", out)
	}
	var list struct{ Pulls []store.PullStatus }
	if err := json.Unmarshal([]byte(n.must(t, "pulls", "-o", "json", "--admin", n.adminSocket())), &list); err != nil || list.Pulls[len(list.Pulls)-1].Done != p.Done {
		t.Errorf("pulls in JSON: got %+v, %v", list, err)
	}
	// Another caller joins, and sees how far it is; a watcher sees the end.
	joined, watched := n.begin(t, "pull", "--connect", n.Socket, slowImage), n.begin(t, "pulls", "--watch", "--admin", n.adminSocket())
	for _, c := range []*running{joined, watched} {
		eventually(t, "a look at the first layer", func() bool {
			return strings.Contains(c.String(), layer[7:19]+" downloading, 3.1 MB from "+r.Host())
		})
	}
	close(open)
	if err := <-pulled; err != nil {
		t.Fatal(err)
	}
	if _, ok := n.pullInfo(t, slowImage); ok {
		t.Error("the pull shows after its end")
	}
	if err := joined.cmd.Wait(); err != nil || !strings.HasSuffix(joined.String(), "\n"+id+"\n") {
		t.Errorf("pull: got %v\n%s", err, joined)
	}
	eventually(t, "a word on the end", func() bool { return strings.Contains(watched.String(), slowImage+" done, 3.1 MB in ") })
	_ = watched.cmd.Process.Signal(os.Interrupt)
	if err := watched.cmd.Wait(); err != nil {
		t.Errorf("pulls --watch: got %v after Ctrl-C\n%s", err, watched)
	}
	if got := r.Sent(layer); got > 4<<20 {
		t.Errorf("the layer was sent more than once: %d bytes", got)
	}
	if out := n.must(t, "pulls", "--admin", n.adminSocket()); !strings.Contains(out, slowImage+" done") || !strings.Contains(out, "no pull is in flight") {
		t.Errorf("pulls afterwards: got\n%s", out)
	}
}

// running is our program at work, with what it has printed so far.
type running struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	out bytes.Buffer
}

func (r *running) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Write(p)
}

func (r *running) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.String()
}

// begin starts our program; the test waits for it, or its end kills it.
func (n *node) begin(t *testing.T, args ...string) *running {
	t.Helper()
	r := &running{cmd: exec.CommandContext(t.Context(), filepath.Join(lab.Here(t).Bin, "cri-runtime"), args...)}
	r.cmd.Stdout, r.cmd.Stderr = r, r
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestPullSaysWhyItWaits: a registry that asks for patience shows as that, with its word.
func TestPullSaysWhyItWaits(t *testing.T) {
	n, r, layer := slowNode(t)
	r.Set(registries.Rule{Path: layer, Times: 1, Do: registries.Status(http.StatusTooManyRequests, "Retry-After", "3")})
	pulled := make(chan error, 1)
	go func() {
		_, err := n.kubeletPull(t.Context(), slowImage)
		pulled <- err
	}()
	var w *store.WaitStatus
	eventually(t, "a reason to wait", func() bool {
		if p, _ := n.pullInfo(t, slowImage); len(p.Layers) > 0 {
			w = p.Layers[0].Waiting
		}
		return w != nil
	})
	if w == nil || !strings.Contains(w.Reason, "429") || w.Until == nil || time.Until(*w.Until) > 4*time.Second {
		t.Errorf("got %+v", w)
	}
	if err := <-pulled; err != nil {
		t.Error(err)
	}
}

// TestResumedBytesShow: what a killed daemon had received, after the first two seconds
// which nothing is kept of, is not transferred again, and counted apart.
func TestResumedBytesShow(t *testing.T) {
	n, r, layer := slowNode(t)
	r.Set(registries.Rule{Path: layer, Times: 1, Do: registries.Trickle(0, 64<<10, 100*time.Millisecond)})
	pulled := make(chan error, 1)
	go func() {
		_, err := n.kubeletPull(t.Context(), slowImage)
		pulled <- err
	}()
	eventually(t, "2.4 MB", func() bool { // of 3.1, after 3.7 s
		p, _ := n.pullInfo(t, slowImage)
		return len(p.Layers) > 0 && p.Layers[0].Done > 2_400_000
	})
	n.Kill()
	if err := <-pulled; err == nil {
		t.Error("the pull of a killed daemon succeeded")
	}
	n.Start(t)
	if _, err := n.kubeletPull(t.Context(), slowImage); err != nil {
		t.Fatal(err)
	}
	var list struct{ Pulls []store.PullStatus }
	if err := json.Unmarshal([]byte(n.must(t, "pulls", "-o", "json", "--admin", n.adminSocket())), &list); err != nil || len(list.Pulls) != 1 {
		t.Fatalf("pulls: got %+v, %v", list, err)
	}
	if p := list.Pulls[0]; p.Resumed < 1<<19 || p.Layers[0].Resumed != p.Resumed || p.Done != p.Total {
		t.Errorf("got %+v", p)
	}
	if m := n.admin(t, "/metrics"); !strings.Contains(m, fmt.Sprintf("\ncri_runtime_image_pull_resumed_bytes_total %d\n", list.Pulls[0].Resumed)) {
		t.Errorf("metrics: got %s", m)
	}
}

// TestPullOnATerminal draws bars, and ends with the id.
func TestPullOnATerminal(t *testing.T) {
	n, r, _ := slowNode(t)
	for _, width := range []int{80, 40} {
		ref := fmt.Sprint("team/wide:", width)
		layer := randomTar(t, "big", 3<<20)
		r.Push("team/wide", fmt.Sprint(width), layer)
		r.Set(registries.Rule{Path: registries.Digest(layer), Do: registries.Trickle(1<<20, 256<<10, 100*time.Millisecond)})
		out := n.onTerminal(t, width, "pull", "--connect", n.Socket, "r.example/"+ref)
		if !strings.Contains(out, "=>") || !strings.Contains(out, "\x1b[J") {
			t.Errorf("width %d: no bar in %q", width, out)
		}
		lines := strings.Split(strings.TrimSpace(out), "\r\n")
		if last := lines[len(lines)-1]; !strings.HasPrefix(strings.TrimPrefix(last, "\x1b[J"), "sha256:") {
			t.Errorf("width %d: the last line is %q", width, last)
		}
		for _, line := range lines[:len(lines)-2] { // the last two may be longer
			for _, part := range regexp.MustCompile("\x1b\\[[0-9]*[A-Z]|\r").Split(line, -1) {
				if len(part) >= width {
					t.Errorf("width %d: %q", width, part)
				}
			}
		}
	}
}

// onTerminal runs our program on a terminal of its own, and gives what it wrote.
func (n *node) onTerminal(t *testing.T, width int, args ...string) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(width)}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(lab.Here(t).Bin, "cri-runtime"), args...)
	cmd.Env = append(os.Environ(), "TERM=xterm")
	cmd.Stdout, cmd.Stderr = slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	var out bytes.Buffer
	_, _ = io.Copy(&out, master) // EIO is the end of a terminal
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%q: %v: %s", args, err, out.String())
	}
	return out.String()
}

// TestArchives takes an image out of the node and brings it in again.
func TestArchives(t *testing.T) {
	n := newNode(t)
	file := filepath.Join(n.Dir, "busybox.tar")
	for _, format := range []string{"oci", "docker"} {
		n.must(t, "image", "save", "--admin", n.adminSocket(), "--format", format, "-o", file, image)
		if _, err := n.Images.RemoveImage(t.Context(), &rt.RemoveImageRequest{Image: &rt.ImageSpec{Image: image}}); err != nil {
			t.Fatal(err)
		}
		if out := n.must(t, "image", "ls", "--connect", n.Socket); strings.Contains(out, image) {
			t.Errorf("%s: the image is still there: %s", format, out)
		}
		if out := n.must(t, "image", "load", "--admin", n.adminSocket(), file); !strings.Contains(out, n.image) || !strings.Contains(out, image) {
			t.Errorf("%s: load: got %s, want %s", format, out, n.image)
		}
		if out := n.must(t, "image", "ls", "--connect", n.Socket); !strings.Contains(out, image+"  "+n.image[7:19]) || strings.Contains(out, "  -\n") {
			t.Errorf("%s: ls: got %s", format, out)
		}
		if out := n.must(t, "image", "verify", "--admin", n.adminSocket(), image); !strings.Contains(out, "is as it was pulled") {
			t.Errorf("%s: verify: got %s", format, out)
		}
	}
	if _, stderr, err := n.command(t, "image", "save", "--admin", n.adminSocket(), "-o", file+"2", "nobody/knows:1"); err == nil || !strings.Contains(stderr, "not found") {
		t.Errorf("unknown image: got %q, %v", stderr, err)
	}
	if left, err := filepath.Glob(filepath.Join(n.Dir, "*busybox.tar*2*")); err != nil || len(left) != 0 {
		t.Errorf("a failed save has left %v, %v", left, err)
	}
	cut := filepath.Join(n.Dir, "cut.tar")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cut, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, err := n.command(t, "image", "load", "--admin", n.adminSocket(), cut); err == nil || !strings.Contains(stderr, "cri-runtime: load: ") {
		t.Errorf("half an archive: got %q, %v", stderr, err)
	}
}

// TestVerifyCommand: damage on the disk is found, and the next pull heals it.
func TestVerifyCommand(t *testing.T) {
	n := newNode(t, "--layer-store", "erofs")
	tars, err := filepath.Glob(filepath.Join(n.Root, "image", "l", "*.tar"))
	if err != nil || len(tars) == 0 {
		t.Fatalf("layers: got %v, %v", tars, err)
	}
	f, err := os.OpenFile(tars[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 1000); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, 1000); err != nil {
		t.Fatal(err)
	}
	if _, stderr, err := n.command(t, "image", "verify", "--admin", n.adminSocket(), image); err == nil || !strings.Contains(stderr, "damaged") {
		t.Errorf("verify: got %q, %v", stderr, err)
	}
	if out := n.must(t, "image", "ls", "--connect", n.Socket); strings.Contains(out, image) {
		t.Errorf("a damaged image is listed: %s", out)
	}
	if id, err := n.kubeletPull(t.Context(), image); err != nil || id != n.image {
		t.Errorf("pull: got %s, %v, want %s", id, err, n.image)
	}
	n.must(t, "image", "verify", "--admin", n.adminSocket(), image)
}

// TestMetricsAddress serves the metrics on TCP, and nothing else.
func TestMetricsAddress(t *testing.T) {
	const address = "127.0.0.1:9474" // ours: the test has a network of its own
	_ = newNode(t, "--metrics-address", address)
	for path, want := range map[string]int{"/metrics": http.StatusOK, "/v1/pulls": http.StatusNotFound} {
		resp, err := http.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: got %d, want %d", path, resp.StatusCode, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestGarbageCommand finds a stray file and nothing else, and deletes it when told to.
func TestGarbageCommand(t *testing.T) {
	n := newNode(t)
	if out := n.must(t, "gc", "--dry-run", "--admin", n.adminSocket()); !strings.Contains(out, "nothing is without an owner") {
		t.Errorf("a clean store: got %s", out)
	}
	stray := filepath.Join(n.Root, "image", "l", "stray")
	if err := os.WriteFile(stray, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := n.must(t, "gc", "--dry-run", "--admin", n.adminSocket()); !strings.Contains(out, stray) || !strings.Contains(out, "1 to delete") || !exists(stray) {
		t.Errorf("dry run: got %s", out)
	}
	var doc struct{ Orphans []struct{ Path string } }
	if err := json.Unmarshal([]byte(n.must(t, "gc", "-o", "json", "--admin", n.adminSocket())), &doc); err != nil || len(doc.Orphans) != 1 || doc.Orphans[0].Path != stray {
		t.Errorf("got %+v, %v", doc, err)
	}
	eventually(t, "the stray file is gone", func() bool { return !exists(stray) })
	n.must(t, "image", "verify", "--admin", n.adminSocket(), image)
}

// TestAdminSocketIsRoots: it can do what CRI cannot, for nobody but root.
func TestAdminSocketIsRoots(t *testing.T) {
	n := newNode(t)
	st, err := os.Stat(n.adminSocket())
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("got %v, %v", st.Mode(), err)
	}
	n.Stop(t)
	for _, args := range [][]string{{"pulls"}, {"pulls", "--watch"}, {"gc"}, {"image", "verify", "x"}, {"image", "load", "-"}} {
		if _, stderr, err := n.command(t, append(args, "--admin", n.adminSocket())...); err == nil || !strings.Contains(stderr, "is the daemon running") {
			t.Errorf("%v without a daemon: got %q, %v", args, stderr, err)
		}
	}
	n.Start(t)
}
