package snapshot

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	// usageAge is how old a figure may get before a request starts a new measurement.
	usageAge = 10 * time.Second
	// usageShare bounds the time spent measuring: a tree that takes a second to walk
	// is walked every 50 seconds.
	usageShare = 50
	// usageWait is how long the first request for a tree waits; later ones never do.
	usageWait = 500 * time.Millisecond
)

// usage measures writable layers on request. A goroutine runs per measurement, never
// without a request, at most two at once; close ends and awaits them.
type usage struct {
	ctx    context.Context //nolint:containedctx // ends the measurements at close
	cancel context.CancelFunc
	done   sync.WaitGroup
	slots  chan struct{}

	mu     sync.Mutex
	closed bool
	known  map[string]*figure
}

type figure struct {
	bytes, inodes uint64
	at            time.Time
	took          time.Duration
	running       chan struct{} // closed when the measurement under way ends
}

func (u *usage) init(ctx context.Context) {
	u.ctx, u.cancel = context.WithCancel(context.WithoutCancel(ctx))
	u.slots = make(chan struct{}, 2)
	u.known = map[string]*figure{}
}

func (u *usage) close() {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.cancel()
	u.done.Wait()
}

func (u *usage) forget(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.known, key)
}

// get gives the last figure, and has it renewed when it is old.
func (u *usage) get(key, dir string) (bytes, inodes uint64, err error) {
	u.mu.Lock()
	f := u.known[key]
	if f == nil {
		f = &figure{}
		u.known[key] = f
	}
	if f.running == nil && !u.closed && time.Since(f.at) > max(usageAge, usageShare*f.took) {
		f.running = make(chan struct{})
		u.done.Go(func() { u.measure(f, dir) })
	}
	running, fresh := f.running, f.at.IsZero()
	if !fresh {
		defer u.mu.Unlock()
		return f.bytes, f.inodes, nil
	}
	u.mu.Unlock()
	if running != nil {
		limit := time.NewTimer(usageWait)
		defer limit.Stop()
		select {
		case <-running:
		case <-limit.C:
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if f.at.IsZero() {
		return 0, 0, fmt.Errorf("usage of snapshot %s is being measured: %w", key, errdef.ErrRetry)
	}
	return f.bytes, f.inodes, nil
}

func (u *usage) measure(f *figure, dir string) {
	select {
	case u.slots <- struct{}{}:
		defer func() { <-u.slots }()
	case <-u.ctx.Done():
	}
	start := time.Now()
	bytes, inodes, err := walk(u.ctx, dir)
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil {
		f.bytes, f.inodes, f.at, f.took = bytes, inodes, time.Now(), time.Since(start)
	}
	close(f.running)
	f.running = nil
}

// walk sums up a tree, hard links once. What vanishes meanwhile is not counted.
func walk(ctx context.Context, dir string) (bytes, inodes uint64, err error) {
	links := map[uint64]bool{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if path == dir {
				return err
			}
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // removed by the container meanwhile
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !fi.IsDir() {
			if links[st.Ino] {
				return nil
			}
			links[st.Ino] = true
		}
		inodes++
		bytes += uint64(st.Blocks) * 512 // #nosec G115 -- never negative
		return nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("measure writable layer: %w", err)
	}
	return bytes, inodes, nil
}

// Usage gives the size of a snapshot's writable layer, at most some ten seconds old.
func (s *Store) Usage(key string) (bytes, inodes uint64, err error) {
	s.mu.Lock()
	sn := s.snaps[key]
	s.mu.Unlock()
	if sn == nil {
		return 0, 0, fmt.Errorf("snapshot %.300q: %w", key, errdef.ErrNotFound)
	}
	if sn.Write == "" {
		return 0, 0, nil
	}
	return s.usage.get(key, filepath.Join(s.writeDir(sn.Write), "u"))
}

// WritableTotals sums up what is known of all writable layers.
func (s *Store) WritableTotals() (bytes, inodes uint64) {
	for _, key := range s.Keys() {
		// One that is still being measured, or was released meanwhile, counts nothing.
		if b, i, err := s.Usage(key); err == nil {
			bytes += b
			inodes += i
		}
	}
	return bytes, inodes
}
