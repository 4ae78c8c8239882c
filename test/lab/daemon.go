package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
)

// stopLimit is how long a daemon may take to end.
const stopLimit = 30 * time.Second

// Daemon is cri-runtime with directories of its own. It may be started and ended any
// number of times.
type Daemon struct {
	Dir, Root, State, Socket, Hosts, Log string

	Args []string // more of the command line
	// Command replaces the command line, for tests of another runtime.
	Command []string
	Env     []string

	Runtime rt.RuntimeServiceClient // survive restarts
	Images  rt.ImageServiceClient

	process *exec.Cmd
	gone    chan struct{} // closed when the process has ended
	exit    error         // how, once gone is closed
	wait    sync.WaitGroup
}

// NewDaemon makes the directories below dir, the state on a tmpfs, and starts nothing.
func NewDaemon(t testing.TB, dir string, args ...string) *Daemon {
	t.Helper()
	d := &Daemon{
		Dir: dir, Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "cri.sock"),
		Hosts: filepath.Join(dir, "certs.d"), Log: filepath.Join(dir, "daemon.log"),
	}
	d.Args = append([]string{
		"--root", d.Root, "--state", d.State, "--listen", d.Socket, "--registry-config", d.Hosts, "--network=builtin",
		"--cgroup-parent", "/" + here.Cgroup + "/cri",
	}, args...)
	d.MountState(t)
	conn, err := grpc.NewClient("unix:"+d.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(grpc.ConnectParams{
		MinConnectTimeout: 20 * time.Millisecond, // a killed daemon is back at once
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	d.Runtime, d.Images = rt.NewRuntimeServiceClient(conn), rt.NewImageServiceClient(conn)
	return d
}

// MountState makes the state directory a fresh tmpfs.
func (d *Daemon) MountState(t testing.TB) {
	t.Helper()
	if err := os.MkdirAll(d.State, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", d.State, "tmpfs", 0, "mode=0711"); err != nil {
		t.Fatal("mount state: ", err)
	}
}

// Start starts the process, and returns when runtime and network are ready.
func (d *Daemon) Start(t testing.TB) {
	t.Helper()
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), stopLimit)
	defer cancel()
	for {
		err := d.ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-d.gone:
			t.Fatalf("the daemon ended at its start: %v\n%s", d.exit, d.LogTail())
		case <-ctx.Done():
			t.Fatalf("the daemon is not ready after %v: %v\n%s", stopLimit, err, d.LogTail())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (d *Daemon) start() error {
	args := d.Command
	if args == nil {
		args = append([]string{filepath.Join(here.Bin, "cri-runtime"), "serve"}, d.Args...)
	}
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	d.process = exec.CommandContext(context.Background(), args[0], args[1:]...) // it outlives any one test: Stop or Kill end it
	d.process.Stdout, d.process.Stderr, d.process.Env = log, log, append(os.Environ(), d.Env...)
	d.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.process.Start(); err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	process, gone := d.process, make(chan struct{})
	d.gone = gone
	d.wait.Go(func() {
		d.exit = process.Wait()
		close(gone)
	})
	return nil
}

// ready asks whether runtime and network are ready.
func (d *Daemon) ready(ctx context.Context) error {
	reply, err := d.Runtime.Status(ctx, &rt.StatusRequest{}, grpc.WaitForReady(false))
	if err != nil {
		return err
	}
	for _, c := range reply.GetStatus().GetConditions() {
		if !c.Status {
			return fmt.Errorf("%s: %s: %s", c.Type, c.Reason, c.Message)
		}
	}
	return nil
}

// Pid is the running process.
func (d *Daemon) Pid() int { return d.process.Process.Pid }

// Kill ends the daemon as a crash does.
func (d *Daemon) Kill() {
	_ = d.process.Process.Kill()
	d.wait.Wait()
}

// Stop asks the daemon to end, and sees that it does, and well.
func (d *Daemon) Stop(t testing.TB) {
	t.Helper()
	_ = d.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.gone:
		if d.exit != nil {
			t.Errorf("the daemon ended with %v\n%s", d.exit, d.LogTail())
		}
	case <-time.After(stopLimit):
		t.Errorf("the daemon did not end within %v of SIGTERM\n%s", stopLimit, d.LogTail())
		_ = d.process.Process.Kill()
	}
	d.wait.Wait()
	if t.Failed() {
		t.Logf("end of the daemon's log:\n%s", d.LogTail())
	}
}

// LogTail is the end of the daemon's log.
func (d *Daemon) LogTail() string {
	body, err := os.ReadFile(d.Log)
	if err != nil {
		return err.Error()
	}
	return string(body[max(0, len(body)-6000):])
}

// Serve makes images available to the daemon, from a registry on loopback.
func (d *Daemon) Serve(t testing.TB, address string, store http.Handler) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if err := catalogue.WriteHosts(d.Hosts, listener.Addr().String()); err != nil {
		t.Fatal(errors.Join(err, listener.Close()))
	}
	server := &http.Server{Handler: store, ReadHeaderTimeout: 10 * time.Second}
	var wait sync.WaitGroup
	wait.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		_ = server.Close()
		wait.Wait()
	})
}
