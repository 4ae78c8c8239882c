package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

func built(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "cri-monitor")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// A monitor that somebody started by hand took what the shell had open as descriptor 3, such
// as a pipe whose other end is closed, for the daemon's socket, and span on it.
func TestStartedByHand(t *testing.T) {
	bin := built(t)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	ended, w, err := os.Pipe() // readable for ever
	if err != nil {
		t.Fatal(err)
	}
	defer ended.Close()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, extra := range map[string][]*os.File{"nothing": nil, "files": {null, null}, "ended pipe": {ended, null}} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, bin)
			cmd.ExtraFiles = extra
			out, err := cmd.CombinedOutput()
			if err == nil || ctx.Err() != nil || !strings.Contains(string(out), "cri-runtime serve") {
				t.Errorf("got %q, %v, want an end at once that names cri-runtime serve", out, err)
			}
		})
	}
}

// The socket's directory keeps other users out; should they reach it all the same, the
// monitor hangs up.
func TestOnlyRootIsServed(t *testing.T) {
	testkit.Need(t, testkit.Root)
	addr := &unix.SockaddrUnix{Name: fmt.Sprintf("@cri-monitor-test-%d", os.Getpid())} // abstract: no directory protects it
	listener := socket(t)
	if err := errors.Join(unix.Bind(listener, addr), unix.Listen(listener, 4)); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	l := os.NewFile(uintptr(listener), "listener")
	defer l.Close()
	ctx, stop := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, built(t))
	cmd.ExtraFiles = []*os.File{l, dir}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stop(); _ = cmd.Wait() }()
	for name, uid := range map[string]uintptr{"root": 0, "nobody": 65534} {
		t.Run(name, func(t *testing.T) {
			fd := socket(t)
			defer unix.Close(fd)
			if err := connectAs(uid, fd, addr); err != nil {
				t.Fatal(err)
			}
			// Whoever is served hears nothing before it speaks; the other is hung up on.
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
			limit := 300
			if uid != 0 {
				limit = 10_000
			}
			n, err := unix.Poll(poll, limit)
			if err != nil || (n == 1) != (uid != 0) {
				t.Errorf("poll: got %d, %#x, %v; want the end of the connection for nobody only", n, poll[0].Revents, err)
			}
		})
	}
}

func socket(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// connectAs connects with the thread's user changed, which is not given back: the
// thread ends with the goroutine.
func connectAs(uid uintptr, fd int, addr unix.Sockaddr) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
			done <- e
			return
		}
		done <- unix.Connect(fd, addr)
	}()
	return <-done
}
