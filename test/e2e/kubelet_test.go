package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

const (
	nodeName    = "n1"
	nodeAddress = "10.202.255.11"
)

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /CGROUP
containerRuntimeEndpoint: unix://SOCKET
staticPodPath: DIR/manifests
podLogsDir: DIR/podlogs
volumePluginDir: DIR/plugins
address: 0.0.0.0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
oomScoreAdj: 0
failSwapOn: false
makeIPTablesUtilChains: false
fileCheckFrequency: 1s
syncFrequency: 2s
serializeImagePulls: false
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
featureGates: {PodAndContainerStatsFromCRI: GATE}
`

const kubeletWeb = `apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: setup
    image: IMAGE
    command: [sh, -c, "cat /host/page >/www/index.html && echo set up"]
    volumeMounts: [{name: www, mountPath: /www}, {name: host, mountPath: /host, readOnly: true}]
  - name: side
    image: IMAGE
    restartPolicy: Always
    command: [sh, -c, "trap 'exit 0' TERM; while :; do date >/www/alive; sleep 1 & wait $!; done"]
    volumeMounts: [{name: www, mountPath: /www}]
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, "test -s /www/index.html || exit 9; echo serving; exec httpd -f -p 8080 -h /www"]
    ports: [{name: http, containerPort: 8080, hostPort: 18080}]
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}
    securityContext: {allowPrivilegeEscalation: false, seccompProfile: {type: RuntimeDefault}}
    readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
    livenessProbe: {exec: {command: [test, -f, /www/index.html]}, periodSeconds: 1}
    volumeMounts: [{name: www, mountPath: /www}]
  volumes:
  - {name: www, emptyDir: {}}
  - {name: host, hostPath: {path: DIR/host, type: Directory}}
`

const kubeletCrash = `apiVersion: v1
kind: Pod
metadata: {name: crash, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: crash
    image: IMAGE
    command: [sh, -c, "echo giving up; echo the reason >/dev/termination-log; exit 3"]
`

// kubelet is a real one, standalone: it takes pods from files.
type kubelet struct {
	dir, log string
	config   string // with GATE to be filled in
	process  *exec.Cmd
	gone     chan struct{}
	wait     sync.WaitGroup
}

// kubePod is what we look at of the kubelet's view of a pod.
type kubePod struct {
	Metadata struct{ Name string }
	Status   struct {
		Phase, PodIP          string
		Conditions            []struct{ Type, Status string }
		InitContainerStatuses []kubeContainer
		ContainerStatuses     []kubeContainer
	}
}

type kubeContainer struct {
	Name, ContainerID string
	Ready             bool
	RestartCount      int
	State, LastState  struct {
		Waiting    *struct{ Reason, Message string }
		Running    *struct{ StartedAt time.Time }
		Terminated *struct {
			ExitCode                     int
			Reason, Message, ContainerID string
		}
	}
}

func (p kubePod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

func TestKubelet(t *testing.T) {
	if _, err := os.Stat(filepath.Join(lab.Here(t).Tools, "kubelet")); err != nil {
		t.Skip("no kubelet has been built: make kubelet")
	}
	d := newNode(t, "kubelet", "--take-away", "-v", "2")
	prepareKubeletNode(t, d)
	before, err := lab.Take("", lab.Here(t).Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	d.Start(t)
	k := newKubelet(t, d)
	t.Cleanup(func() {
		if k.process != nil && k.process.Process != nil {
			_ = k.process.Process.Kill()
		}
		k.wait.Wait()
	})
	k.start(t, "false")
	web := k.await(t, "web", func(p kubePod) error {
		if !p.ready() {
			return fmt.Errorf("not ready: %+v", p.Status)
		}
		return nil
	})
	t.Run("containers", func(t *testing.T) { checkWeb(t, web) })
	t.Run("logs", k.testLogs)
	t.Run("exec", k.testExec)
	t.Run("port-forward", k.testForward)
	t.Run("host port", func(t *testing.T) {
		if body, err := fetchURL(t.Context(), "http://"+nodeAddress+":18080/"); err != nil || body != "from the host\n" {
			t.Errorf("got %q, %v", body, err)
		}
	})
	t.Run("stats", func(t *testing.T) { k.testStats(t, false) })
	t.Run("crash", k.testCrash)
	t.Run("kubelet restart", func(t *testing.T) {
		k.stop(t)
		k.start(t, "true") // from here on it takes all statistics from us
		k.unchanged(t, web)
		k.testStats(t, true)
	})
	t.Run("runtime restart", func(t *testing.T) {
		d.Kill()
		time.Sleep(2 * time.Second) // long enough for probes to fail, if they were to
		d.Start(t)
		k.unchanged(t, web)
		k.testExec(t)
	})
	k.drain(t)
	k.stop(t)
	d.Stop(t)
	if err := lab.RemoveCgroups(lab.Here(t).Cgroup); err != nil { // the kubelet's
		t.Error(err)
	}
	lab.CheckLeaks(t, "", before)
	if t.Failed() {
		t.Logf("end of the kubelet's log:\n%s", k.logTail())
	}
}

// prepareKubeletNode gives the node an address, and keeps the kubelet from what is the
// whole machine's.
func prepareKubeletNode(t *testing.T, d *lab.Daemon) {
	t.Helper()
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "node0"}}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal("add link: ", err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) })
	address, err := netlink.ParseAddr(nodeAddress + "/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.AddrAdd(link, address), netlink.LinkSetUp(link)); err != nil {
		t.Fatal("set address: ", err)
	}
	mount := func(from, to, kind string, flags uintptr) {
		t.Helper()
		if err := unix.Mount(from, to, kind, flags, ""); err != nil {
			t.Fatalf("mount %s: %v", to, err)
		}
		t.Cleanup(func() { _ = unix.Unmount(to, unix.MNT_DETACH) })
	}
	// The kubelet writes these sysctls, and links logs below /var/log/containers, whatever it is told.
	for name, value := range map[string]string{"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"} {
		file := filepath.Join(d.Dir, filepath.Base(name))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		mount(file, "/proc/sys/"+name, "", unix.MS_BIND)
	}
	mount("tmpfs", "/var/log", "tmpfs", 0)
	host, err := cgroup.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g, err := host.Create(cgroup.Path("/"+lab.Here(t).Cgroup), cgroup.Resources{})
	if err != nil {
		t.Fatal("make the kubelet's cgroup: ", err)
	}
	g.Close()
}

func newKubelet(t *testing.T, d *lab.Daemon) *kubelet {
	t.Helper()
	k := &kubelet{dir: filepath.Join(d.Dir, "kubelet")}
	k.log = filepath.Join(k.dir, "kubelet.log")
	fill := strings.NewReplacer("CGROUP", lab.Here(t).Cgroup, "SOCKET", d.Socket, "DIR", k.dir, "IMAGE", image)
	k.config = fill.Replace(kubeletConfig)
	for name, text := range map[string]string{
		"host/page": "from the host\n", "manifests/web.yaml": fill.Replace(kubeletWeb), "manifests/crash.yaml": fill.Replace(kubeletCrash),
	} {
		file := filepath.Join(k.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func (k *kubelet) start(t *testing.T, gate string) {
	t.Helper()
	config := filepath.Join(k.dir, "config.yaml")
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(k.config, "GATE", gate)), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(k.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	k.process = exec.Command(filepath.Join(lab.Here(t).Tools, "kubelet"), "--config", config, "--root-dir", filepath.Join(k.dir, "root"),
		"--cert-dir", filepath.Join(k.dir, "pki"), "--hostname-override", nodeName, "--node-ip", nodeAddress)
	k.process.Stdout, k.process.Stderr = log, log
	k.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := k.process.Start(); err != nil {
		t.Fatal("start kubelet: ", err)
	}
	k.gone = make(chan struct{})
	k.wait.Go(func() { _ = k.process.Wait(); close(k.gone) })
}

func (k *kubelet) stop(t *testing.T) {
	t.Helper()
	_ = k.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-k.gone:
	case <-time.After(20 * time.Second):
		t.Error("the kubelet does not end")
		_ = k.process.Process.Kill()
	}
	k.wait.Wait()
}

func (k *kubelet) logTail() string {
	body, err := os.ReadFile(k.log)
	if err != nil {
		return err.Error()
	}
	return string(body[max(0, len(body)-6000):])
}

// get asks the kubelet's API.
func (k *kubelet) get(ctx context.Context, path string) (string, error) {
	return fetchURL(ctx, "https://127.0.0.1:10250"+path)
}

func (k *kubelet) pods(ctx context.Context) (map[string]kubePod, error) {
	body, err := k.get(ctx, "/pods")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []kubePod }
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		return nil, err
	}
	pods := map[string]kubePod{}
	for _, p := range list.Items {
		pods[strings.TrimSuffix(p.Metadata.Name, "-"+nodeName)] = p
	}
	return pods, nil
}

// await waits until a pod is as wanted.
func (k *kubelet) await(t *testing.T, name string, want func(kubePod) error) kubePod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for {
		pods, err := k.pods(ctx)
		p, ok := pods[name]
		switch {
		case err != nil:
		case !ok:
			err = fmt.Errorf("no pod %s", name)
		default:
			if err = want(p); err == nil {
				return p
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("pod %s is not as wanted: %v\n%s", name, err, k.logTail())
		case <-k.gone:
			t.Fatalf("the kubelet ended\n%s", k.logTail())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func checkWeb(t *testing.T, p kubePod) {
	t.Helper()
	setup := p.Status.InitContainerStatuses[0]
	if end := setup.State.Terminated; end == nil || end.ExitCode != 0 || end.Reason != "Completed" {
		t.Errorf("init container: got %+v, want its end with 0", setup.State)
	}
	for _, c := range append(p.Status.InitContainerStatuses[1:], p.Status.ContainerStatuses...) {
		if c.State.Running == nil || c.RestartCount != 0 || !c.Ready {
			t.Errorf("container %s: got %+v, want it running and ready, never restarted", c.Name, c)
		}
	}
	if body, err := fetchURL(t.Context(), "http://"+p.Status.PodIP+":8080/"); err != nil || body != "from the host\n" {
		t.Errorf("page: got %q, %v, want that of the init container", body, err)
	}
}

func (k *kubelet) testLogs(t *testing.T) {
	for container, want := range map[string]string{"setup": "set up\n", "main": "serving\n"} {
		if body, err := k.get(t.Context(), "/containerLogs/default/web-"+nodeName+"/"+container); err != nil || body != want {
			t.Errorf("%s: got %q, %v, want %q", container, body, err, want)
		}
	}
}

func (k *kubelet) testCrash(t *testing.T) {
	k.await(t, "crash", func(p kubePod) error {
		c := p.Status.ContainerStatuses[0]
		if c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff" || c.RestartCount < 1 {
			return fmt.Errorf("got %+v, restarted %d times", c.State, c.RestartCount)
		}
		if end := c.LastState.Terminated; end == nil || end.ExitCode != 3 || end.Reason != "Error" || end.Message != "the reason\n" {
			return fmt.Errorf("last end: got %+v, want code 3 and its message", c.LastState.Terminated)
		}
		return nil
	})
}

// unchanged holds for some seconds that the web pod is the very one that it was.
func (k *kubelet) unchanged(t *testing.T, was kubePod) {
	t.Helper()
	same := func(p kubePod) error {
		if p.Status.PodIP != was.Status.PodIP {
			return fmt.Errorf("address %s, was %s", p.Status.PodIP, was.Status.PodIP)
		}
		before := append(was.Status.InitContainerStatuses[1:], was.Status.ContainerStatuses...)
		for i, c := range append(p.Status.InitContainerStatuses[1:], p.Status.ContainerStatuses...) {
			if c.ContainerID != before[i].ContainerID || c.RestartCount != before[i].RestartCount {
				return fmt.Errorf("container %s: got %s after %d restarts, was %s", c.Name, c.ContainerID, c.RestartCount, before[i].ContainerID)
			}
		}
		return nil
	}
	ready := func(p kubePod) error {
		if err := same(p); err != nil || p.ready() {
			return err
		}
		return errors.New("not ready")
	}
	k.await(t, "web", ready)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		pods, err := k.pods(t.Context())
		if err == nil {
			err = same(pods["web"])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// In between, a kubelet that has just started takes what it probes for not ready, until
	// the first probe's answer.
	k.await(t, "web", ready)
}

// testStats looks for figures of the running containers, and, where the kubelet takes
// them from us, of the pod's network. (Otherwise it asks cAdvisor, which knows none but
// containerd and CRI-O.)
func (k *kubelet) testStats(t *testing.T, fromUs bool) {
	t.Helper()
	type usage struct{ UsageNanoCores, UsageCoreNanoSeconds, WorkingSetBytes uint64 }
	var last string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		body, err := k.get(t.Context(), "/stats/summary")
		if err != nil {
			last = err.Error()
			continue
		}
		var summary struct {
			Pods []struct {
				PodRef     struct{ Name string }
				Network    *struct{ RxBytes, TxBytes uint64 }
				CPU        usage
				Memory     usage
				Containers []struct {
					Name   string
					CPU    usage
					Memory usage
					Rootfs struct{ UsedBytes *uint64 }
				}
			}
		}
		if err := json.Unmarshal([]byte(body), &summary); err != nil {
			t.Fatal(err)
		}
		last = body
		for _, p := range summary.Pods {
			full := p.PodRef.Name == "web-"+nodeName && len(p.Containers) == 2
			for _, c := range p.Containers {
				full = full && c.CPU.UsageCoreNanoSeconds > 0 && c.Memory.WorkingSetBytes > 0 && c.Rootfs.UsedBytes != nil
			}
			if full && (!fromUs || p.Network != nil && p.Network.RxBytes > 0 && p.CPU.UsageCoreNanoSeconds > 0 && p.Memory.WorkingSetBytes > 0) {
				return
			}
		}
	}
	t.Errorf("the web pod's figures are not complete (all from us: %v):\n%s", fromUs, last)
}

// drain takes the pods' manifests away, and waits until the kubelet has ended them.
func (k *kubelet) drain(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(k.dir, "manifests")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(k.dir, "manifests"), 0o755); err != nil {
		t.Fatal(err)
	}
	var pods map[string]kubePod
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if pods, err = k.pods(t.Context()); err == nil && len(pods) == 0 {
			return
		}
	}
	t.Errorf("the kubelet still has %d pods: %v", len(pods), err)
}

// fetchURL gets a page, whoever signed the certificate.
func fetchURL(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := insecureClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := readAll(response)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return body, err
}
