package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

// registryAddress is free in any fresh network namespace, and no port that critest uses.
const registryAddress = "127.0.0.1:5010"

// node is a registry and a daemon, in namespaces of their own.
type node struct {
	*lab.Daemon
	tools string
	fresh lab.Snapshot // before the daemon's start
}

// startNode prepares the namespaces and starts everything, with a daemon that keeps new
// layers in store; the test's end stops it.
func startNode(t *testing.T, store string) *node {
	t.Helper()
	here := lab.Here(t)
	dir := filepath.Join(here.Work, store)
	if err := os.Mkdir(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	if *handler == "crun" {
		if err := hideUnified(); err != nil {
			t.Fatal("hide cgroup2: ", err)
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	n := &node{Daemon: lab.NewDaemon(t, dir, "--take-away", "--layer-store", store), tools: here.Tools}
	n.Env = []string{"PATH=" + os.Getenv("PATH") + ":" + n.tools}
	n.command(here.Cgroup)
	n.startRegistry(t)
	var err error
	if n.fresh, err = lab.Take("", here.Cgroup); err != nil {
		t.Fatal(err)
	}
	n.Start(t)
	t.Cleanup(func() {
		n.Stop(t)
		if *serve == "" {
			lab.CheckLeaks(t, "", n.fresh)
		}
	})
	return n
}

func (n *node) startRegistry(t *testing.T) {
	t.Helper()
	cache, err := catalogue.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	store, err := catalogue.Critest(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	critest, err := os.ReadFile(filepath.Join(n.tools, "critest"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.critest(), critest, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := store.PatchCritest(n.critest()); err != nil {
		t.Fatal(err)
	}
	n.Serve(t, registryAddress, store)
}

// critest is our copy of the suite, which expects our digest.
func (n *node) critest() string { return filepath.Join(n.Dir, "critest") }

// command sets the command line for another runtime, or another handler of ours.
func (n *node) command(cgroup string) {
	if *serve != "" {
		n.Command = strings.Fields(strings.NewReplacer("{root}", n.Root, "{state}", n.State, "{socket}", n.Socket,
			"{hosts}", n.Hosts, "{cgroup}", cgroup).Replace(*serve))
	}
	switch *handler {
	case "runc":
		n.Args = append(n.Args, "--runtime", "runc="+filepath.Join(n.tools, "runc"))
	case "crun":
		n.Args = append(n.Args, "--runtime", "crun=/usr/bin/crun")
	}
}

// hideUnified takes away the cgroup2 mount of a hybrid host, which crun refuses.
func hideUnified() error {
	mounts, err := lab.ReadMounts()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(mounts, func(m lab.Mount) bool { return m.Type == "cgroup" }) {
		for _, m := range mounts {
			if m.Type == "cgroup2" {
				if err := unix.Unmount(m.Point, unix.MNT_DETACH); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// crictl runs crictl against the daemon and returns its standard output.
func (n *node) crictl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(n.tools, "crictl"), append([]string{"-r", "unix://" + n.Socket, "-t", "20s"}, args...)...)
	cmd.Dir = n.Dir
	out, err := cmd.Output()
	if err != nil {
		var text []byte
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			text = exit.Stderr
		}
		return "", fmt.Errorf("crictl %s: %w: %s", strings.Join(args, " "), err, text)
	}
	return strings.TrimSpace(string(out)), nil
}

const (
	warmUpImage = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
	warmUpPod   = `{"metadata": {"name": "warm-up", "namespace": "default", "uid": "warm-up", "attempt": 0}, "log_directory": %q, "linux": {}}`
	warmUpCtr   = `{"metadata": {"name": "warm-up"}, "image": {"image": %q}, "command": ["sleep", "60"], "log_path": "warm-up.log", "linux": {}}`
)

// warmUp runs a pod with a container, so that what a daemon makes once (a bridge, a
// pool) is there, and returns the state to compare with.
func (n *node) warmUp(t *testing.T) lab.Snapshot {
	t.Helper()
	dir := n.Dir
	pod, ctr := filepath.Join(dir, "pod.json"), filepath.Join(dir, "container.json")
	for file, body := range map[string]string{pod: fmt.Sprintf(warmUpPod, filepath.Join(dir, "logs")), ctr: fmt.Sprintf(warmUpCtr, warmUpImage)} {
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	crictl := func(args ...string) string {
		t.Helper()
		out, err := n.crictl(t.Context(), args...)
		if err != nil {
			t.Fatalf("%v\n%s", err, n.LogTail())
		}
		return out
	}
	crictl("pull", warmUpImage)
	runp := []string{"runp", pod}
	if *handler != "" {
		runp = []string{"runp", "-r", *handler, pod}
	}
	podID := crictl(runp...)
	ctrID := crictl("create", podID, ctr, pod)
	crictl("start", ctrID)
	crictl("stop", "-t", "0", ctrID)
	crictl("rm", ctrID)
	crictl("stopp", podID)
	crictl("rmp", podID)
	crictl("rmi", "-a")
	// Wait until the warm-up's own traces have gone: two equal looks in a row.
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
		time.Sleep(300 * time.Millisecond)
	}
	t.Log("the daemon does not come to rest after a pod")
	return last
}
