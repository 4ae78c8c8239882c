package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

// node is a daemon and what a kubelet would know of it.
type node struct {
	*lab.Daemon
	logs  string
	image string // id
}

func startNode(t *testing.T, name string) *node {
	t.Helper()
	d := newNode(t, name, "-v", "2", "--take-away")
	d.Start(t)
	n := &node{Daemon: d, logs: filepath.Join(d.Dir, "logs")}
	reply, err := d.Images.PullImage(t.Context(), &rt.PullImageRequest{Image: &rt.ImageSpec{Image: image}})
	if err != nil {
		t.Fatal(err)
	}
	n.image = reply.ImageRef
	return n
}

// retry repeats a call that the daemon's end cut off, as the kubelet does.
func retry[Q, R any](ctx context.Context, call func(context.Context, Q, ...grpc.CallOption) (R, error), request Q) (R, error) {
	for {
		reply, err := call(ctx, request, grpc.WaitForReady(true))
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return reply, err
		}
	}
}

func (n *node) podConfig(name string) *rt.PodSandboxConfig {
	return &rt.PodSandboxConfig{
		Metadata: &rt.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name}, LogDirectory: filepath.Join(n.logs, name), Hostname: "pod",
		Labels: map[string]string{"name": name}, Linux: &rt.LinuxPodSandboxConfig{},
	}
}

func (n *node) containerConfig(name string, command ...string) *rt.ContainerConfig {
	return &rt.ContainerConfig{
		Metadata: &rt.ContainerMetadata{Name: name}, Image: &rt.ImageSpec{Image: n.image, UserSpecifiedImage: image}, Command: command,
		LogPath: name + ".log", Linux: &rt.LinuxContainerConfig{SecurityContext: &rt.LinuxContainerSecurityContext{
			NamespaceOptions: &rt.NamespaceOption{Pid: rt.NamespaceMode_CONTAINER},
		}},
	}
}

// create makes a container, and may do so twice: the name is the same.
func (n *node) create(ctx context.Context, pod string, config *rt.PodSandboxConfig, c *rt.ContainerConfig) (string, error) {
	reply, err := retry(ctx, n.Runtime.CreateContainer, &rt.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
	return reply.GetContainerId(), err
}

func (n *node) state(ctx context.Context, id string) (*rt.ContainerStatus, error) {
	reply, err := retry(ctx, n.Runtime.ContainerStatus, &rt.ContainerStatusRequest{ContainerId: id})
	return reply.GetStatus(), err
}

// errNotStarted is what a dying monitor may do to a container: a launch
// in the middle of it fails.
var errNotStarted = errors.New("the launch failed")

// errNotSeen is what may happen to a process that ends while neither monitor nor daemon
// live, as when both are killed at once: nobody is left to be told its exit status.
var errNotSeen = errors.New("nobody saw the end")

// start starts a container. A first start whose answer was lost makes the second one
// an error: then the state tells.
func (n *node) start(ctx context.Context, id string) error {
	_, err := retry(ctx, n.Runtime.StartContainer, &rt.StartContainerRequest{ContainerId: id})
	if err == nil {
		return nil
	}
	state, stateErr := n.state(ctx, id)
	switch {
	case stateErr != nil || state.State == rt.ContainerState_CONTAINER_CREATED:
		return errors.Join(err, stateErr)
	case state.StartedAt == 0 || state.Reason == "StartError":
		return fmt.Errorf("%w: %w: %s: %s", errNotStarted, err, state.Reason, state.Message)
	}
	return nil
}

func (n *node) awaitExit(ctx context.Context, id string) (*rt.ContainerStatus, error) {
	for {
		state, err := n.state(ctx, id)
		if err != nil || state.State == rt.ContainerState_CONTAINER_EXITED {
			return state, err
		}
		select {
		case <-ctx.Done():
			return state, fmt.Errorf("container %s is %s: %w", id, state.State, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// logLines is what the lines of the workers' containers look like.
const logLines = 400

// life is one pod's life. Each step tells what it found wrong.
type life struct {
	*node
	name   string
	config *rt.PodSandboxConfig
	pod    string
	ip     string
	code   int // of the container that ends by itself
	ids    map[string]string
	// exits tells whether exit codes must be known, although the monitor may have been killed.
	exits func() bool
}

func (l *life) run(ctx context.Context) error {
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"run pod", l.runPod}, {"create", l.createAll}, {"start", l.startAll}, {"exec", l.exec}, {"exit", l.checkExit}, {"log", l.checkLog},
		{"start later", l.startLater}, {"address", l.checkAddress}, {"stop", l.stopMain}, {"remove", l.remove},
	} {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %s: %w", l.name, step.name, err)
		}
	}
	return nil
}

func (l *life) runPod(ctx context.Context) error {
	reply, err := retry(ctx, l.Runtime.RunPodSandbox, &rt.RunPodSandboxRequest{Config: l.config})
	if err != nil {
		return err
	}
	l.pod = reply.PodSandboxId
	list, err := retry(ctx, l.Runtime.ListPodSandbox, &rt.ListPodSandboxRequest{Filter: &rt.PodSandboxFilter{LabelSelector: l.config.Labels}})
	if err != nil {
		return err
	}
	if len(list.Items) != 1 || list.Items[0].Id != l.pod || list.Items[0].State != rt.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("listed: %v, want one ready pod %s", list.Items, l.pod)
	}
	l.ip, err = l.address(ctx)
	return err
}

func (l *life) address(ctx context.Context) (string, error) {
	reply, err := retry(ctx, l.Runtime.PodSandboxStatus, &rt.PodSandboxStatusRequest{PodSandboxId: l.pod})
	if err != nil {
		return "", err
	}
	if reply.Status.State != rt.PodSandboxState_SANDBOX_READY || reply.Status.GetNetwork().GetIp() == "" {
		return "", fmt.Errorf("pod is %s, address %q", reply.Status.State, reply.Status.GetNetwork().GetIp())
	}
	return reply.Status.Network.Ip, nil
}

// commands are three containers: one that writes numbered lines and ends, one
// that obeys SIGTERM, one that is created long before it starts.
func (l *life) commands() map[string]string {
	return map[string]string{
		"log":   fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo "line $i of %s"; i=$((i+1)); [ $((i%%50)) != 0 ] || sleep 0.1; done; exit %d`, logLines, l.name, l.code),
		"main":  `trap 'echo going; exit 7' TERM; while :; do sleep 100 & wait $!; done`,
		"later": "echo started",
	}
}

func (l *life) createAll(ctx context.Context) error {
	for name, script := range l.commands() {
		id, err := l.create(ctx, l.pod, l.config, l.containerConfig(name, "sh", "-c", script))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		l.ids[name] = id
	}
	list, err := retry(ctx, l.Runtime.ListContainers, &rt.ListContainersRequest{Filter: &rt.ContainerFilter{PodSandboxId: l.pod}})
	if err == nil && len(list.Containers) != len(l.ids) {
		err = fmt.Errorf("listed %d containers, want %d: %v", len(list.Containers), len(l.ids), list.Containers)
	}
	return err
}

func (l *life) startAll(ctx context.Context) error {
	return errors.Join(l.start(ctx, l.ids["log"]), l.start(ctx, l.ids["main"]))
}

func (l *life) exec(ctx context.Context) error {
	reply, err := retry(ctx, l.Runtime.ExecSync, &rt.ExecSyncRequest{ContainerId: l.ids["main"], Cmd: []string{"sh", "-c", "hostname; exit 5"}, Timeout: 20})
	if err != nil {
		return err
	}
	if string(reply.Stdout) != "pod\n" || reply.ExitCode != 5 {
		return fmt.Errorf("got %q, code %d, want the host name and 5", reply.Stdout, reply.ExitCode)
	}
	return nil
}

func (l *life) checkExit(ctx context.Context) error {
	state, err := l.awaitExit(ctx, l.ids["log"])
	if err != nil {
		return err
	}
	if int(state.ExitCode) != l.code && l.exits() {
		err := fmt.Errorf("exit code: got %d (%s: %s), want %d", state.ExitCode, state.Reason, state.Message, l.code)
		if state.Reason == "ContainerStatusUnknown" {
			err = fmt.Errorf("%w: %w", errNotSeen, err)
		}
		return err
	}
	return nil
}

// checkLog wants each line once, whole and in its place.
func (l *life) checkLog(context.Context) error {
	body, err := os.ReadFile(filepath.Join(l.config.LogDirectory, "log.log"))
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	if len(lines) != logLines {
		return fmt.Errorf("got %d lines, want %d", len(lines), logLines)
	}
	for i, line := range lines {
		if f := strings.SplitN(line, " ", 4); len(f) != 4 || f[1] != "stdout" || f[2] != "F" || f[3] != fmt.Sprintf("line %d of %s", i, l.name) {
			return fmt.Errorf("line %d: got %q", i, line)
		}
	}
	return nil
}

func (l *life) startLater(ctx context.Context) error {
	state, err := l.state(ctx, l.ids["later"])
	if err != nil {
		return err
	}
	if state.State != rt.ContainerState_CONTAINER_CREATED {
		return fmt.Errorf("before its start it is %s: %s", state.State, state.Message)
	}
	if err := l.start(ctx, l.ids["later"]); err != nil {
		return err
	}
	state, err = l.awaitExit(ctx, l.ids["later"])
	if err == nil && state.ExitCode != 0 && l.exits() {
		err = fmt.Errorf("exit code %d: %s", state.ExitCode, state.Message)
	}
	return err
}

func (l *life) checkAddress(ctx context.Context) error {
	ip, err := l.address(ctx)
	if err == nil && ip != l.ip {
		err = fmt.Errorf("got %s, was %s", ip, l.ip)
	}
	return err
}

func (l *life) stopMain(ctx context.Context) error {
	if _, err := retry(ctx, l.Runtime.StopContainer, &rt.StopContainerRequest{ContainerId: l.ids["main"], Timeout: 20}); err != nil {
		return err
	}
	state, err := l.state(ctx, l.ids["main"])
	if err == nil && (state.State != rt.ContainerState_CONTAINER_EXITED || state.ExitCode != 7 && l.exits()) {
		err = fmt.Errorf("got %s with code %d (%s), want its end with 7", state.State, state.ExitCode, state.Message)
	}
	return err
}

func (l *life) remove(ctx context.Context) error {
	_, err1 := retry(ctx, l.Runtime.StopPodSandbox, &rt.StopPodSandboxRequest{PodSandboxId: l.pod})
	_, err2 := retry(ctx, l.Runtime.RemovePodSandbox, &rt.RemovePodSandboxRequest{PodSandboxId: l.pod})
	return errors.Join(err1, err2)
}

// TestRestartUnderLoad kills the daemon again and again while workers run whole lives
// of pods, none of which may notice.
func TestRestartUnderLoad(t *testing.T) {
	n := startNode(t, "restart")
	defer n.Stop(t)
	warm := n.newLife("warm", 0)
	if err := warm.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := settled(t, n)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	stop := make(chan struct{})
	var wait sync.WaitGroup
	var lives [4]int
	var monitorKills atomic.Int64
	for w := range lives {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				l := n.newLife(fmt.Sprintf("w%d-%d", w, lives[w]), w+1)
				killed := monitorKills.Load()
				err := l.run(ctx)
				if (errors.Is(err, errNotStarted) || errors.Is(err, errNotSeen)) && monitorKills.Load() != killed {
					t.Log("the monitor died: ", err)
					err = l.remove(ctx)
				}
				if err != nil {
					t.Error(err)
					return
				}
				lives[w]++
			}
		})
	}
	for i := range *kills {
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		if i%10 == 9 { // now and then the monitor: the daemon holds what it held
			monitorKills.Add(1)
			killMonitor(t)
		}
		n.Kill()
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		n.Start(t)
		if t.Failed() {
			break
		}
	}
	close(stop)
	wait.Wait()
	t.Logf("%v lives of pods through %d kills", lives, *kills)
	lab.CheckLeaks(t, n.State, before)
	n.checkEmpty(t)
}

func (n *node) newLife(name string, code int) *life {
	return &life{node: n, name: name, config: n.podConfig(name), code: code, ids: map[string]string{}, exits: knowsExits}
}

// knowsExits tells whether the kernel keeps the exit status of a process whose parent
// is gone for those who hold a descriptor of it: since Linux 6.15.
func knowsExits() bool { return testkit.Kernel(6, 15).Check() == nil }

// settled waits until the traces of a first pod have gone, and returns what is there.
func settled(t *testing.T, n *node) lab.Snapshot {
	t.Helper()
	var last lab.Snapshot
	for range 50 {
		now, err := lab.Take(n.State, lab.Here(t).Cgroup)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil && len(now.Growth(last)) == 0 && len(last.Growth(now)) == 0 {
			return now
		}
		last = now
		time.Sleep(200 * time.Millisecond)
	}
	return last
}

func (n *node) checkEmpty(t *testing.T) {
	t.Helper()
	pods, err1 := n.Runtime.ListPodSandbox(t.Context(), &rt.ListPodSandboxRequest{})
	containers, err2 := n.Runtime.ListContainers(t.Context(), &rt.ListContainersRequest{})
	if err1 != nil || err2 != nil || len(pods.Items) != 0 || len(containers.Containers) != 0 {
		t.Errorf("got pods %v (%v), containers %v (%v), want none", pods.GetItems(), err1, containers.GetContainers(), err2)
	}
}

// TestMonitorKilled ends the monitor under running pods: another one takes over the
// descriptors, containers run on, and their ends are seen.
func TestMonitorKilled(t *testing.T) {
	n := startNode(t, "monitor")
	defer n.Stop(t)
	l := n.newLife("one", 3)
	for _, step := range []func(context.Context) error{l.runPod, l.createAll, l.startAll} {
		if err := step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	killMonitor(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"exec", l.exec}, {"exit", l.checkExit}, {"log", l.checkLog}, {"later", l.startLater}, {"address", l.checkAddress}, {"stop", l.stopMain}, {"remove", l.remove},
	} {
		if err := step.do(ctx); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
	}
	n.checkEmpty(t)
}

// monitors finds the processes that have the monitor's name and are no child of one
// that has: a container that is about to be is such a child.
func monitors() (found []int) {
	parents := map[int]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		var pid, parent int
		var comm, state string
		body, err := os.ReadFile(stat)
		if _, scanErr := fmt.Sscan(string(body), &pid, &comm, &state, &parent); err == nil && scanErr == nil && comm == "(cri-monitor)" && state != "Z" {
			parents[pid] = parent
		}
	}
	for pid, parent := range parents {
		if _, child := parents[parent]; !child {
			found = append(found, pid)
		}
	}
	return found
}

func monitorOf(t *testing.T) int {
	t.Helper()
	found := monitors()
	if len(found) != 1 {
		t.Fatalf("got monitors %v, want one", found)
	}
	return found[0]
}

// killMonitor kills the monitor, and waits for the one that takes its place: the two
// of them and the daemon hold a container's pipes, so that one at a time may die.
func killMonitor(t *testing.T) {
	t.Helper()
	old := monitorOf(t)
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, pid := range monitors() {
			if pid != old {
				time.Sleep(100 * time.Millisecond) // it takes the descriptors over
				return
			}
		}
	}
	t.Fatal("no other monitor within 5 s")
}

// TestReboot takes away all that a reboot takes: processes, mounts, cgroups, links and
// the state directory. What is on disk of the old pods must go, too.
func TestReboot(t *testing.T) {
	n := startNode(t, "reboot")
	if err := n.newLife("warm", 0).run(t.Context()); err != nil { // makes what a node makes once
		t.Fatal(err)
	}
	empty := n.files(t)
	mounts, err := lab.ReadMounts()
	if err != nil {
		t.Fatal(err)
	}
	old := n.newLife("web", 0)
	for _, step := range []func(context.Context) error{old.runPod, old.createAll, old.startAll} {
		if err := step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(n.since(t, empty)) == 0 {
		t.Fatal("a pod leaves nothing on disk: this test looks in the wrong place")
	}
	n.reboot(t, mounts)
	n.Start(t)
	defer n.Stop(t)
	n.checkEmpty(t)
	again := n.newLife("web", 2) // the same name, uid and attempt
	if err := again.runPod(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again.pod == old.pod {
		t.Errorf("the pod after the reboot has the old one's id %s", old.pod)
	}
	for _, step := range []func(context.Context) error{again.createAll, again.startAll, again.exec, again.checkExit, again.startLater, again.stopMain, again.remove} {
		if err := step(t.Context()); err != nil {
			t.Error(err)
		}
	}
	var left []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if left = n.since(t, empty); len(left) == 0 {
			return
		}
	}
	t.Errorf("left on disk of the pods before and after the reboot: %s", left)
}

// since lists what is below the root directory now and was not before: what was there
// may be on its way to deletion.
func (n *node) since(t *testing.T, before map[string]bool) (names []string) {
	t.Helper()
	for name := range n.files(t) {
		if !before[name] {
			names = append(names, name)
		}
	}
	return names
}

// files lists what is below the root directory.
func (n *node) files(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	if err := filepath.WalkDir(n.Root, func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			all[name] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// reboot ends every process but this one and the first, and takes away the rest.
func (n *node) reboot(t *testing.T, mounts []lab.Mount) {
	t.Helper()
	if err := unix.Kill(-1, unix.SIGKILL); err != nil { // in this process namespace
		t.Fatal(err)
	}
	n.Kill()
	now, err := lab.ReadMounts()
	if err != nil {
		t.Fatal(err)
	}
	known := map[lab.Mount]bool{}
	for _, m := range mounts {
		known[m] = true
	}
	for _, m := range slices.Backward(now) {
		if !known[m] {
			_ = unix.Unmount(m.Point, unix.MNT_DETACH)
		}
	}
	if err := unix.Unmount(n.State, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	n.MountState(t)
	if err := lab.RemoveCgroups(lab.Here(t).Cgroup); err != nil {
		t.Fatal(err)
	}
	lab.RemoveLinks(t)
	lab.NewBootID(t, n.Dir)
}
