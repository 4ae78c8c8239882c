package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// Client is the daemon's connection to the monitor. Its methods may be called from
// any goroutine; while the monitor is being replaced they wait.
type Client struct {
	cfg      Config
	dir      *os.File
	exits    *os.File
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	journal  [3]*os.File   // memfd, read end, write end
	children []*os.Process // monitors started and not yet watched
	ending   atomic.Bool   // Shutdown is under way
	gen      int           // lives of the monitor seen so far; the run goroutine's
	pid      int           // of the monitor; guarded by mu

	// mu guards the fields below; it is held to look and to note, never to wait.
	mu      sync.Mutex
	link    *link
	changed chan struct{} // closed and replaced when link changes
	dead    error         // why there will be no link any more
	seq     uint32
	calls   map[uint32]*call
	procs   map[string]*proc
	onExit  []func(string, Exit)
	numbers uint64 // attached clients so far
}

// call is a request that waits for its answer.
type call struct{ answer chan *packet } // nil: the link was lost

// proc is what the client keeps of a process.
type proc struct {
	Process
	flags                 uint32
	logPath               string
	log, logNext          *os.File
	stdout, stderr, stdin *os.File
	started               bool
	exited                bool
	exit                  Exit
	done                  chan struct{}
	attached              map[uint64]*attached
}

func newProc(id string) *proc {
	return &proc{Process: Process{ID: id}, done: make(chan struct{}), attached: map[uint64]*attached{}}
}

// closeFiles closes the client's duplicates.
func (p *proc) closeFiles() {
	closeAll(p.PIDFD, p.Master, p.log, p.logNext, p.stdout, p.stderr, p.stdin)
}

// request is a message to the monitor.
type request struct {
	typ   wire.Type
	files parcel
	extra []*os.File
	fill  func(*wire.Buf)
	size  int // what fill appends, where it is much
	// once: the request must not be repeated to another monitor; single: nor to the same,
	// which forgets a session that has ended and would begin another.
	once, single bool
}

// errInterrupted: the monitor died before it answered a request that happens once.
var errInterrupted = fmt.Errorf("the monitor died in the middle of it: %w", errdef.ErrRetry)

// errDied: a signal, the kernel's out-of-memory killer's or Kill's, was faster.
var errDied = errors.New("the process was killed while it was set up")

// do sends a request and waits for its answer, through as many monitors as it
// takes: every request may be repeated, because the monitor knows processes by id.
func (c *Client) do(ctx context.Context, r *request) (*packet, error) {
	gen := -1
	for {
		l, err := c.waitLink(ctx)
		if err != nil {
			return nil, err
		}
		if gen >= 0 && (r.single || r.once && l.gen != gen) {
			return nil, errInterrupted
		}
		gen = l.gen
		p, err := c.try(ctx, l, r)
		if err != nil {
			return nil, err
		}
		if p == nil {
			continue // the link was lost
		}
		if p.h.Type == wire.Failed {
			defer p.drop()
			return nil, failure(p)
		}
		return p, nil
	}
}

// tell is do for requests whose answer says nothing.
func (c *Client) tell(ctx context.Context, r *request) error {
	p, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	p.drop()
	return nil
}

func failure(p *packet) error {
	step, errno := p.body.U32(), unix.Errno(p.body.U32())
	if step < wire.StepSpawn {
		return &StepFailure{Step: step, Errno: errno}
	}
	if step == wire.StepDied {
		return errDied
	}
	switch errno { //nolint:exhaustive // the rest have no kind
	case unix.ENOENT, unix.ESRCH:
		return fmt.Errorf("%w: %w", errno, errdef.ErrNotFound)
	case unix.EEXIST:
		return fmt.Errorf("%w: %w", errno, errdef.ErrExists)
	case unix.EBUSY:
		return fmt.Errorf("%w: %w", errno, errdef.ErrPhase)
	case unix.EAGAIN: // of a clone, into a full pids cgroup on v2 for one
		return fmt.Errorf("clone: %w: a limit on processes is reached, such as pids.max of the pod: %w", errno, errdef.ErrExhausted)
	}
	return errno
}

// try makes one attempt; no packet and no error means that the link was lost.
func (c *Client) try(ctx context.Context, l *link, r *request) (*packet, error) {
	w := &call{answer: make(chan *packet, 1)}
	c.mu.Lock()
	if c.link != l {
		c.mu.Unlock()
		return nil, nil
	}
	c.seq++
	seq := c.seq
	c.calls[seq] = w
	c.mu.Unlock()
	h := wire.Header{Type: r.typ, Seq: seq, Files: r.files.mask, Extra: uint32(len(r.extra))}
	files := r.files.files
	if len(r.extra) > 0 {
		files = append(append([]*os.File(nil), files...), r.extra...)
	}
	if err := l.send(h, r.size, r.fill, files); err != nil {
		c.forgetCall(seq)
		if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.EBADF) || errors.Is(err, os.ErrClosed) && c.current() == l {
			return nil, err
		}
		_ = l.conn.Close() // the run goroutine takes it from here
		return nil, c.waitLost(ctx, l)
	}
	select {
	case p := <-w.answer:
		return p, nil
	case <-ctx.Done():
		c.forgetCall(seq)
		return nil, ctx.Err()
	}
}

func (c *Client) forgetCall(seq uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, seq)
}

func (c *Client) current() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link
}

// waitLink returns the link once there is one.
func (c *Client) waitLink(ctx context.Context) (*link, error) {
	for {
		c.mu.Lock()
		l, dead, changed := c.link, c.dead, c.changed
		c.mu.Unlock()
		if dead != nil {
			return nil, dead
		}
		if l != nil {
			return l, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for monitor: %w", ctx.Err())
		}
	}
}

// waitLost returns once l is no longer the link.
func (c *Client) waitLost(ctx context.Context, l *link) error {
	for {
		c.mu.Lock()
		now, changed := c.link, c.changed
		c.mu.Unlock()
		if now != l {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// setLink replaces the link; all waiting calls of the old one look again.
func (c *Client) setLink(l *link, dead error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link, c.dead = l, dead
	close(c.changed)
	c.changed = make(chan struct{})
	if l != nil {
		return
	}
	for seq, w := range c.calls {
		w.answer <- nil
		delete(c.calls, seq)
	}
}

// proc finds a process.
func (c *Client) proc(id string) (*proc, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.procs[id]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("process %s: %w", id, errdef.ErrNotFound)
}
