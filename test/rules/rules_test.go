package rules

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestIdentityAndAnswers(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	c := containerConfig(n, "c", sleeper()...)
	c.Mounts = []*rt.Mount{{ContainerPath: "/img", Image: &rt.ImageSpec{Image: n.image}, Readonly: true}}
	id := p.start(t, c)
	s := n.status(t, id)
	list, err := n.Runtime.ListContainers(n.ctx(), &rt.ListContainersRequest{})
	if err != nil || len(list.Containers) != 1 {
		t.Fatal(list, err)
	}
	images, err := n.Images.ListImages(n.ctx(), &rt.ListImagesRequest{})
	if err != nil || len(images.Images) != 1 {
		t.Fatal(images, err)
	}
	t.Run("one image identity everywhere", func(t *testing.T) {
		for what, got := range map[string]string{
			"Image.id": images.Images[0].Id, "Container.image_id": list.Containers[0].ImageId,
			"ContainerStatus.image_id": s.ImageId, "mounts[0].image.image": s.Mounts[0].Image.GetImage(),
		} {
			if got != n.image {
				t.Errorf("%s: got %q, want PullImage's %q", what, got, n.image)
			}
		}
		if s.Image.GetImage() == "" || s.ImageRef == "" || s.Image.UserSpecifiedImage != image {
			t.Errorf("image %v, image_ref %q", s.Image, s.ImageRef)
		}
	})
	t.Run("nothing is zero that the kubelet rejects", func(t *testing.T) {
		reply, err := n.Runtime.PodSandboxStatus(n.ctx(), &rt.PodSandboxStatusRequest{PodSandboxId: p.id})
		if err != nil {
			t.Fatal(err)
		}
		if reply.Timestamp == 0 || len(reply.ContainersStatuses) != 1 {
			t.Errorf("timestamp %d, containers_statuses %v: fill both", reply.Timestamp, reply.ContainersStatuses)
		}
		if reply.Status.CreatedAt == 0 || reply.Status.Network.GetIp() == "" || s.CreatedAt == 0 || s.StartedAt == 0 || images.Images[0].Size == 0 {
			t.Errorf("pod %v, container %v, image size %d", reply.Status, s, images.Images[0].Size)
		}
		if !strings.HasPrefix(s.LogPath, "/") || !exists(s.LogPath) {
			t.Errorf("log path %q", s.LogPath)
		}
	})
}

func TestWhatIsGone(t *testing.T) {
	n := newNode(t)
	const no = "0123456789abcdef"
	_, err := n.Runtime.PodSandboxStatus(n.ctx(), &rt.PodSandboxStatusRequest{PodSandboxId: no})
	wantCode(t, err, codes.NotFound, no)
	_, err = n.Runtime.ContainerStatus(n.ctx(), &rt.ContainerStatusRequest{ContainerId: no})
	wantCode(t, err, codes.NotFound, no)
	_, err = n.Runtime.ExecSync(n.ctx(), &rt.ExecSyncRequest{ContainerId: no, Cmd: []string{"true"}})
	wantCode(t, err, codes.NotFound)
	_, err = n.Runtime.StartContainer(n.ctx(), &rt.StartContainerRequest{ContainerId: no})
	wantCode(t, err, codes.NotFound)
	for what, err := range map[string]error{
		"StopPodSandbox":   second(n.Runtime.StopPodSandbox(n.ctx(), &rt.StopPodSandboxRequest{PodSandboxId: no})),
		"RemovePodSandbox": second(n.Runtime.RemovePodSandbox(n.ctx(), &rt.RemovePodSandboxRequest{PodSandboxId: no})),
		"StopContainer":    second(n.Runtime.StopContainer(n.ctx(), &rt.StopContainerRequest{ContainerId: no})),
		"RemoveContainer":  second(n.Runtime.RemoveContainer(n.ctx(), &rt.RemoveContainerRequest{ContainerId: no})),
		"RemoveImage":      second(n.Images.RemoveImage(n.ctx(), &rt.RemoveImageRequest{Image: &rt.ImageSpec{Image: "nothing.example/x:1"}})),
	} {
		if err != nil {
			t.Errorf("%s: got %v, want success", what, err)
		}
	}
	reply, err := n.Images.ImageStatus(n.ctx(), &rt.ImageStatusRequest{Image: &rt.ImageSpec{Image: "nothing.example/x:1"}})
	if err != nil || reply.Image != nil {
		t.Errorf("ImageStatus: got %v, %v, want an empty answer", reply, err)
	}
}

func TestDriverAndHandlers(t *testing.T) {
	n := newNode(t)
	rc, err := n.Runtime.RuntimeConfig(n.ctx(), &rt.RuntimeConfigRequest{})
	if err != nil || rc.Linux.CgroupDriver != rt.CgroupDriver_CGROUPFS {
		t.Errorf("got %v, %v, want cgroupfs named", rc, err)
	}
	st, err := n.Runtime.Status(n.ctx(), &rt.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, h := range st.RuntimeHandlers {
		named[h.Name] = h.Features != nil
	}
	if !named[""] || !named["builtin"] {
		t.Errorf("handlers: got %v, want the default one under its name and under none", st.RuntimeHandlers)
	}
}

func second[T any](_ T, err error) error { return err }

func TestPrefixes(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	t.Run("registry that nobody answers for", func(t *testing.T) {
		host := "127.0.0.1:9" // the discard port: nothing listens
		if err := os.MkdirAll(filepath.Join(n.Hosts, host), 0o755); err != nil {
			t.Fatal(err)
		}
		toml := fmt.Sprintf("server = \"http://%s\"\n", host)
		if err := os.WriteFile(filepath.Join(n.Hosts, host, "hosts.toml"), []byte(toml), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := n.Images.PullImage(n.ctx(), &rt.PullImageRequest{Image: &rt.ImageSpec{Image: host + "/x:1"}})
		wantCode(t, err, codes.Unknown, "RegistryUnavailable: ", host)
		if err != nil && !strings.HasPrefix(strings.TrimPrefix(err.Error(), "rpc error: code = Unknown desc = "), "RegistryUnavailable: ") {
			t.Errorf("got %v, want nothing before the prefix", err)
		}
	})
	t.Run("image that the registry does not have", func(t *testing.T) {
		_, err := n.Images.PullImage(n.ctx(), &rt.PullImageRequest{Image: &rt.ImageSpec{Image: "docker.io/library/nothing:1"}})
		wantCode(t, err, codes.NotFound, "nothing")
	})
	for name, m := range map[string]*rt.Mount{
		"missing image":    {ContainerPath: "/v", Image: &rt.ImageSpec{Image: "docker.io/library/nothing:1"}},
		"missing sub path": {ContainerPath: "/v", Image: &rt.ImageSpec{Image: n.image}, ImageSubPath: "no/such"},
	} {
		t.Run("image volume, "+name, func(t *testing.T) {
			c := containerConfig(n, "v"+strings.ReplaceAll(name, " ", "-"), "true")
			c.Mounts = []*rt.Mount{m}
			_, err := p.tryCreate(t.Context(), c)
			wantCode(t, err, codes.Unknown, "ImageVolumeMountFailed: ")
		})
	}
}

func TestStop(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	t.Run("one signal, a shorter grace counts, the exit is recorded first", func(t *testing.T) {
		c := containerConfig(n, "stubborn", "sh", "-c", "trap 'echo signal' TERM; echo up; while :; do sleep 0.02; done")
		id := p.start(t, c)
		eventually(t, "the trap is set", func() bool { return strings.Contains(logText(t, n.status(t, id).LogPath), "up") })
		var wg sync.WaitGroup
		begun := time.Now()
		for _, grace := range []int64{60, 1} {
			if grace == 1 { // two signals at once would be seen as one
				eventually(t, "the first signal has come", func() bool { return strings.Contains(logText(t, n.status(t, id).LogPath), "signal") })
			}
			wg.Go(func() {
				if _, err := n.Runtime.StopContainer(n.ctx(), &rt.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil {
					t.Errorf("grace %d: %v", grace, err)
				}
				if s := n.status(t, id); s.State != rt.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 || s.FinishedAt == 0 {
					t.Errorf("grace %d: got %v %d when StopContainer returned", grace, s.State, s.ExitCode)
				}
			})
		}
		wg.Wait()
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("took %v", took)
		}
		if got := strings.Count(logText(t, n.status(t, id).LogPath), "signal"); got != 1 {
			t.Errorf("got the stop signal %d times, want once", got)
		}
	})
	t.Run("its own exit code and the configured signal", func(t *testing.T) {
		c := containerConfig(n, "usr1", "sh", "-c", "trap 'exit 9' USR1; echo up; while :; do sleep 0.02; done")
		c.StopSignal = rt.Signal_SIGNAL_SIGUSR1
		id := p.start(t, c)
		eventually(t, "the trap is set", func() bool { return strings.Contains(logText(t, n.status(t, id).LogPath), "up") })
		if _, err := n.Runtime.StopContainer(n.ctx(), &rt.StopContainerRequest{ContainerId: id, Timeout: 20}); err != nil {
			t.Fatal(err)
		}
		if s := n.status(t, id); s.ExitCode != 9 || s.Reason != "Error" || s.StopSignal != rt.Signal_SIGNAL_SIGUSR1 {
			t.Errorf("got %d %s %v", s.ExitCode, s.Reason, s.StopSignal)
		}
	})
}

func TestExecSync(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	id := p.start(t, containerConfig(n, "c", sleeper()...))
	exec := func(timeout int64, cmd ...string) (*rt.ExecSyncResponse, error) {
		return n.Runtime.ExecSync(n.ctx(), &rt.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: timeout}, grpc.MaxCallRecvMsgSize(16<<20)) // the kubelet's limit
	}
	t.Run("timeout kills the whole tree", func(t *testing.T) {
		_, err := exec(1, "sh", "-c", "setsid sleep 4242 & sleep 4243")
		wantCode(t, err, codes.DeadlineExceeded)
		eventually(t, "no survivor of the command", func() bool {
			ps := n.exec(t, id, "ps", "-o", "args")
			return !strings.Contains(ps, "4242") && !strings.Contains(ps, "4243")
		})
	})
	t.Run("a stray that holds the output does not hold the answer", func(t *testing.T) {
		begun := time.Now()
		reply, err := exec(20, "sh", "-c", "sleep 60 & echo done; exit 5")
		if err != nil || reply.ExitCode != 5 || string(reply.Stdout) != "done\n" {
			t.Errorf("got %v, %v", reply, err)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
	})
	t.Run("output is cut and not refused", func(t *testing.T) {
		reply, err := exec(60, "sh", "-c", "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2")
		if err != nil {
			t.Fatal(err)
		}
		if both := len(reply.Stdout) + len(reply.Stderr); both < 15<<20 || len(reply.Stdout) == 0 || len(reply.Stderr) == 0 {
			t.Errorf("got %d and %d bytes, want what fits", len(reply.Stdout), len(reply.Stderr))
		}
	})
	t.Run("a program that is missing is an exit code", func(t *testing.T) {
		for cmd, code := range map[string]int32{"/no/such": 127, "nosuch": 127, "/etc/passwd": 126} {
			reply, err := exec(20, cmd)
			if err != nil || reply.ExitCode != code || len(reply.Stderr) == 0 {
				t.Errorf("%s: got %v, %v, want %d and a word", cmd, reply, err, code)
			}
		}
	})
}

func TestOOM(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	const eat = "tail -c 200000000 /dev/zero"
	c := containerConfig(n, "main", "sh", "-c", "exec "+eat)
	c.Linux.Resources.MemoryLimitInBytes = 16 << 20
	if s, _ := p.run(t, c); s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("first process: got %s %d, want OOMKilled 137", s.Reason, s.ExitCode)
	}
	c = containerConfig(n, "child", "sh", "-c", eat+" | cat >/dev/null; sleep 0.2; exit 4")
	c.Linux.Resources.MemoryLimitInBytes = 16 << 20
	if s, _ := p.run(t, c); s.Reason != "Error" || s.ExitCode != 4 {
		t.Errorf("a child: got %s %d, want Error 4: the container's own end was not by memory", s.Reason, s.ExitCode)
	}
}

func TestLogs(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	c := containerConfig(n, "lines", "sh", "-c",
		"head -c 16384 /dev/zero | tr '\\0' a; echo; head -c 16385 /dev/zero | tr '\\0' b; echo; printf tail")
	id := p.create(t, c)
	if exists(filepath.Join(p.config.LogDirectory, "lines.log")) {
		t.Error("the log file is there before StartContainer")
	}
	if _, err := n.Runtime.StartContainer(n.ctx(), &rt.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if !exists(filepath.Join(p.config.LogDirectory, "lines.log")) {
		t.Error("no log file when StartContainer returned")
	}
	s := n.ended(t, id)
	body, err := os.ReadFile(s.LogPath) // complete now, without waiting
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(body)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil || f[1] != "stdout" {
			t.Errorf("line begins %q", line[:60])
		}
		got = append(got, fmt.Sprint(f[2], len(f[3])))
	}
	if want := "F16384 P16384 F1 P4"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	_, err = n.Runtime.ReopenContainerLog(n.ctx(), &rt.ReopenContainerLogRequest{ContainerId: id})
	wantCode(t, err, codes.FailedPrecondition)
	t.Run("rotation", func(t *testing.T) {
		id := p.start(t, containerConfig(n, "rotated", "sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done"))
		log := n.status(t, id).LogPath
		eventually(t, "lines", func() bool { return len(logText(t, log)) > 10 })
		if err := os.Rename(log, log+".1"); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Runtime.ReopenContainerLog(n.ctx(), &rt.ReopenContainerLogRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "lines in the new file", func() bool { return len(logText(t, log)) > 10 })
		both := logText(t, log+".1") + logText(t, log)
		for i, line := range strings.Split(strings.TrimSpace(both), "\n") {
			if line != strconv.Itoa(i) {
				t.Fatalf("line %d is %q", i, line)
			}
		}
		if err := os.Rename(log, log+".2"); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(log, 0o700); err != nil { // no file can be opened there
			t.Fatal(err)
		}
		if _, err := n.Runtime.ReopenContainerLog(n.ctx(), &rt.ReopenContainerLogRequest{ContainerId: id}); err == nil {
			t.Error("reopened a directory")
		}
		if st, err := os.Stat(log); err != nil || !st.IsDir() {
			t.Errorf("a failed reopen changed what was there: %v", err)
		}
	})
}

func TestSecretMountedAfterTheStart(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	source := filepath.Join(n.Dir, "volume")
	for _, dir := range []string{source + "/late", source + "/back"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := containerConfig(n, "c", sleeper()...)
	c.Linux.SecurityContext.Privileged = true
	c.Mounts = []*rt.Mount{
		{ContainerPath: "/in", HostPath: source, Propagation: rt.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{ContainerPath: "/both", HostPath: source, Propagation: rt.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		{ContainerPath: "/none", HostPath: source},
	}
	id := p.start(t, c)
	if err := unix.Mount("tmpfs", source+"/late", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(source+"/late", unix.MNT_DETACH)
	if err := os.WriteFile(source+"/late/secret", []byte("s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := n.exec(t, id, "cat", "/in/late/secret"); got != "s3cret" {
		t.Errorf("HostToContainer: got %q", got)
	}
	if got := n.exec(t, id, "ls", "/none/late"); got != "" {
		t.Errorf("private: got %q, want nothing", got)
	}
	n.exec(t, id, "mount", "-t", "tmpfs", "tmpfs", "/both/back")
	n.exec(t, id, "touch", "/both/back/here")
	if !exists(source + "/back/here") {
		t.Error("Bidirectional: the container's mount is not on the host")
	}
	n.exec(t, id, "umount", "/both/back")
}

func TestSharedPull(t *testing.T) {
	n := newNode(t)
	if _, err := n.Images.RemoveImage(n.ctx(), &rt.RemoveImageRequest{Image: &rt.ImageSpec{Image: image}}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(n.ctx())
			defer cancel()
			if i%2 == 0 {
				time.AfterFunc(time.Duration(i)*time.Millisecond, cancel)
			}
			_, err := n.Images.PullImage(ctx, &rt.PullImageRequest{Image: &rt.ImageSpec{Image: image}})
			if err != nil && ctx.Err() == nil {
				t.Errorf("caller %d: %v: another one's end is not ours", i, err)
			}
		})
	}
	wg.Wait()
}

func TestEvents(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(n.ctx())
	defer cancel()
	stream, err := n.Runtime.GetContainerEvents(ctx, &rt.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // the subscription is made behind the answer
	p := n.pod(t, podConfig(n, "a"))
	id := p.start(t, containerConfig(n, "c", "sh", "-c", "exit 6"))
	var got []rt.ContainerEventType
	for len(got) < 3 {
		e, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %v: %v", got, err)
		}
		if e.PodSandboxStatus == nil || e.CreatedAt == 0 {
			t.Errorf("event without its pod or time: %v", e)
		}
		if e.ContainerId != id {
			continue
		}
		got = append(got, e.ContainerEventType)
		if e.ContainerEventType == rt.ContainerEventType_CONTAINER_STOPPED_EVENT {
			if len(e.ContainersStatuses) != 1 || e.ContainersStatuses[0].ExitCode != 6 {
				t.Errorf("the exit is not in its event: %v", e.ContainersStatuses)
			}
		}
	}
	want := fmt.Sprint([]rt.ContainerEventType{
		rt.ContainerEventType_CONTAINER_CREATED_EVENT, rt.ContainerEventType_CONTAINER_STARTED_EVENT, rt.ContainerEventType_CONTAINER_STOPPED_EVENT,
	})
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
