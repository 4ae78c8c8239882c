package namespace

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Pool makes namespaces before they are asked for, while pods come one after the other:
// a network namespace takes the kernel longer than all else that a pod needs of it.
// The zero value is ready. Methods may be called concurrently.
//
// What is ready is held by descriptors alone, so that it ends with this process. It
// differs from what would be made on demand in one thing: a namespace starts with a copy of
// the node's host name and of some sysctls. So none is used that is older than fresh, and
// when no pods come, nothing is kept and nothing runs.
type Pool struct {
	mu     sync.Mutex // guards what follows; never held during system calls
	ready  []set
	making int
	last   time.Time   // of the last pod
	sweep  *time.Timer // closes what nobody came for
	closed bool
	work   sync.WaitGroup
}

const (
	fresh = 3 * time.Second
	// inTurn is how soon one pod must come after another for a third to be expected: the
	// namespaces of a pod that comes alone are not worth making twice.
	inTurn   = time.Second
	poolSize = 2
	// afterwards is when the network of the pod that has just been asked for is done, which
	// needs the same locks of the kernel.
	afterwards = 4 * time.Millisecond
)

// set is one of each kind that a pod without a user namespace has.
type set struct {
	fds  map[Kind]int
	made time.Time
}

func (s set) close() {
	for _, fd := range s.fds {
		_ = unix.Close(fd)
	}
}

// Pin is the function of that name, with namespaces of the pool where they fit.
func (p *Pool) Pin(dir string, s Spec) (_ map[Kind]string, err error) {
	if s.User != nil || !s.Net || !s.IPC || !s.UTS {
		return Pin(dir, s)
	}
	defer p.expect()
	have, ok := p.take()
	if !ok {
		return Pin(dir, s)
	}
	defer have.close()
	return pin(dir, s, func(out map[Kind]string) error {
		if err := bind(func(k Kind) string { return "/proc/self/fd/" + strconv.Itoa(have.fds[k]) }, out); err != nil {
			return err
		}
		kinds := []Kind{UTS}
		if len(s.Sysctls) > 0 {
			kinds = s.kinds()
		}
		return visit(kinds, func() error {
			for _, k := range kinds {
				if err := unix.Setns(have.fds[k], k.Flag()); err != nil {
					return fmt.Errorf("enter %s namespace: %w", k, err)
				}
			}
			return s.setUp()
		})
	})
}

// take returns a set that is fresh.
func (p *Pool) take() (s set, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.ready); n > 0 && time.Since(p.ready[0].made) < fresh {
		s, p.ready = p.ready[0], p.ready[1:]
		return s, true
	}
	return set{}, false
}

// expect starts making one set if this pod came soon after another.
func (p *Pool) expect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	soon := time.Since(p.last) < inTurn
	p.last = time.Now()
	if p.closed || !soon || len(p.ready)+p.making >= poolSize {
		return
	}
	p.making++
	p.work.Add(1)
	time.AfterFunc(afterwards, func() {
		defer p.work.Done()
		p.add()
	})
}

func (p *Pool) add() {
	s, err := newSet()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.making--
	if err != nil {
		return // the next pod makes its own, and is told
	}
	if p.closed {
		s.close()
		return
	}
	p.ready = append(p.ready, s)
	if p.sweep == nil {
		p.sweep = time.AfterFunc(fresh, p.drop)
	}
}

// drop closes what is no longer fresh, and comes again while something is left.
func (p *Pool) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.ready) > 0 && (p.closed || time.Since(p.ready[0].made) >= fresh) {
		p.ready[0].close()
		p.ready = p.ready[1:]
	}
	p.sweep = nil
	if len(p.ready) > 0 {
		p.sweep = time.AfterFunc(fresh-time.Since(p.ready[0].made), p.drop)
	}
}

// Close closes what is ready. Pin goes on to work, without the pool.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.work.Wait()
	p.drop()
}

func newSet() (s set, err error) {
	spec := Spec{Net: true, IPC: true, UTS: true}
	s = set{fds: map[Kind]int{}, made: time.Now()}
	err = visit(spec.kinds(), func() error {
		if err := unix.Unshare(spec.flags()); err != nil {
			return fmt.Errorf("make namespaces: %w", err)
		}
		for _, k := range spec.kinds() {
			fd, err := unix.Open("/proc/thread-self/ns/"+string(k), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open new %s namespace: %w", k, err)
			}
			s.fds[k] = fd
		}
		return nil
	})
	if err != nil {
		s.close()
		return set{}, err
	}
	return s, nil
}
