package power

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/image/snapshot"
)

// workerEnv turns this test binary into the process that uses the disk.
const workerEnv = "CRI_POWER_WORKER"

// What the worker tells about an image.
const (
	pulled   = "pulled"   // Pull has returned
	durable  = "durable"  // Flush has
	removing = "removing" // Remove will be called now
)

type event struct {
	what  string
	image int
	at    int64 // CLOCK_MONOTONIC, the same in both processes
}

func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// worker pulls, uses and removes images until it is killed. args are root, state,
// host and format.
func worker(args string) int {
	a := strings.Split(args, " ")
	ctx := context.Background()
	s, err := image.Open(ctx, image.Options{Root: a[0], State: a[1], LayerStore: snapshot.Format(a[3])})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	var wg sync.WaitGroup
	for i := range imageCount {
		wg.Go(func() {
			for {
				if err := turn(ctx, s, a[2], i); err != nil {
					fmt.Println("error", i, err)
					os.Exit(1)
				}
			}
		})
	}
	wg.Wait()
	return 0
}

func turn(ctx context.Context, s *image.Store, host string, i int) error {
	say := func(what string) { fmt.Println(what, i, now()) } // one write: lines stay whole
	id, err := s.Pull(ctx, image.PullRequest{Ref: fmt.Sprintf("%s/x:%d", host, i)})
	if err != nil {
		return err
	}
	say(pulled)
	if rand.IntN(3) > 0 {
		if err := s.Flush(ctx); err != nil {
			return err
		}
		say(durable)
	}
	time.Sleep(rand.N(100 * time.Millisecond))
	if rand.IntN(4) == 0 {
		key := fmt.Sprint("key", i)
		root, err := s.Prepare(ctx, key, id, image.PrepareOptions{})
		if err == nil {
			err = os.WriteFile(root.Upper+"/new", []byte(stamped("written", 100000)), 0o600)
		}
		if err == nil {
			err = s.Release(ctx, key)
		}
		if err != nil {
			return err
		}
	}
	if rand.IntN(4) == 0 {
		return nil
	}
	say(removing)
	return s.Remove(ctx, string(id))
}

// work is a running worker.
type work struct {
	cmd  *exec.Cmd
	done sync.WaitGroup

	mu     sync.Mutex
	events []event
	wake   chan struct{} // closed at the next event
	failed []string
}

// startWorker runs a worker until t ends.
func startWorker(t *testing.T, root, state, host, format string) *work {
	t.Helper()
	w := &work{wake: make(chan struct{})}
	w.cmd = exec.Command("/proc/self/exe")
	w.cmd.Env = append(os.Environ(), workerEnv+"="+strings.Join([]string{root, state, host, format}, " "))
	w.cmd.Stderr = os.Stderr
	out, err := w.cmd.StdoutPipe()
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		t.Fatal("start worker: ", err)
	}
	w.done.Go(func() { w.read(out) })
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill()
		w.done.Wait()
		_ = w.cmd.Wait()
	})
	return w
}

func (w *work) read(out io.Reader) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var e event
		_, err := fmt.Sscan(lines.Text(), &e.what, &e.image, &e.at)
		w.mu.Lock()
		if err != nil {
			w.failed = append(w.failed, lines.Text())
		}
		w.events = append(w.events, e)
		close(w.wake)
		w.wake = make(chan struct{})
		w.mu.Unlock()
	}
	w.mu.Lock()
	w.failed = append(w.failed, "has ended")
	w.mu.Unlock()
}

// check fails when the worker has failed. It must still run.
func (w *work) check(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, line := range w.failed {
		t.Error("worker: ", line)
	}
}

// await waits for the next event of a kind, or some seconds.
func (w *work) await(what string) {
	start := now()
	for limit := time.After(10 * time.Second); ; {
		w.mu.Lock()
		wake := w.wake
		for i := len(w.events) - 1; i >= 0 && w.events[i].at >= start; i-- {
			if w.events[i].what == what {
				w.mu.Unlock()
				return
			}
		}
		w.mu.Unlock()
		select {
		case <-wake:
		case <-limit:
			return
		}
	}
}

// durableAt lists the images that were durable before from and not about to be removed
// before until.
func (w *work) durableAt(from, until int64) []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	is := map[int]bool{}
	for _, e := range w.events {
		switch {
		case e.what == durable && e.at < from:
			is[e.image] = true
		case e.what == removing && e.at <= until:
			delete(is, e.image)
		}
	}
	var list []int
	for i := range is {
		list = append(list, i)
	}
	return list
}
