package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// flights joins calls for the same key: the first one does the work, on a context that
// outlives its request, and the others get its result. The kubelet retries RunPodSandbox
// and CreateContainer after its own deadline with the same name and attempt; with flights
// the retry waits for the work under way instead of being refused.
type flights struct {
	wg     sync.WaitGroup
	ended  func(context.Context, *stage, error) // told of each that is over; nil: nobody
	mu     sync.Mutex                           // guards all below
	run    map[string]*flight
	closed bool
}

type flight struct {
	stage *stage
	stop  context.CancelFunc
	done  chan struct{}
	id    ID
	err   error
}

// do runs work for key unless it is running: then it waits for its result or for ctx.
// work gets limit to finish, whatever happens to ctx. The call that begins it does not
// return before: gRPC tells a caller of its own deadline, and a goroutine of its own for
// each call, with a stack to grow and two switches, took a fifteenth of all CPU time.
func (f *flights) do(ctx context.Context, key string, limit time.Duration, work func(context.Context, *stage) (ID, error)) (ID, error) {
	fl, own, err := f.join(ctx, key, limit)
	if err != nil {
		return "", err
	}
	if own != nil {
		// The caller has gone when it gets the answer; the log is where operators look.
		stop := context.AfterFunc(ctx, func() {
			klog.FromContext(ctx).Error(fl.busy(ctx, key), "Operation takes longer than its caller waits")
		})
		defer stop()
		f.fly(own, key, fl, work)
		return fl.id, fl.err
	}
	select {
	case <-fl.done:
		return fl.id, fl.err
	case <-ctx.Done():
		return "", fl.busy(ctx, key)
	}
}

// busy tells a caller that has no more time what takes so long.
func (fl *flight) busy(ctx context.Context, key string) error {
	return fmt.Errorf("%s: still busy with %s after %v; it goes on and a retry joins it: %w",
		key, fl.stage, time.Since(fl.stage.op.Begun).Round(time.Millisecond), ctx.Err())
}

// join finds the flight of key or begins one: then the caller gets its context, and has
// to fly it.
func (f *flights) join(ctx context.Context, key string, limit time.Duration) (fl *flight, own context.Context, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.run[key]; fl != nil {
		fl.stage.join()
		return fl, nil, nil
	}
	if f.closed {
		return nil, nil, fmt.Errorf("%s: the runtime is ending: %w", key, errdef.ErrRetry)
	}
	fl = &flight{stage: newStage(), done: make(chan struct{})}
	own, fl.stop = context.WithTimeout(context.WithoutCancel(ctx), limit)
	if f.run == nil {
		f.run = map[string]*flight{}
	}
	f.run[key] = fl
	f.wg.Add(1)
	return fl, own, nil
}

func (f *flights) fly(ctx context.Context, key string, fl *flight, work func(context.Context, *stage) (ID, error)) {
	defer f.wg.Done()
	defer fl.stop()
	fl.id, fl.err = work(ctx, fl.stage)
	if f.ended != nil {
		f.ended(ctx, fl.stage, fl.err)
	}
	f.mu.Lock()
	delete(f.run, key)
	f.mu.Unlock()
	close(fl.done)
}

// cut cancels the work of key, if it is under way; its callers get the work's error.
func (f *flights) cut(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.run[key]; fl != nil {
		fl.stop()
	}
}

// close cancels all calls, refuses new ones and waits for at most limit. What is still
// running then ends with the process, and the next start takes it back.
func (f *flights) close(limit time.Duration) error {
	f.mu.Lock()
	f.closed = true
	running := make([]string, 0, len(f.run))
	for key, fl := range f.run {
		running = append(running, fmt.Sprintf("%s: %s", key, fl.stage))
		fl.stop()
	}
	f.mu.Unlock()
	all := make(chan struct{})
	go func() { f.wg.Wait(); close(all) }() // ends with the last call, or with the process
	select {
	case <-all:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("operations cut off, to be taken back by the next start: %q", running)
	}
}
