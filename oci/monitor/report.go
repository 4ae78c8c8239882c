package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/poll"
	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// errNoAnswer: the monitor closed the connection instead of answering.
var errNoAnswer = errors.New("the monitor closed the connection")

// read handles what the monitor says until the link breaks.
func (c *Client) read(l *link) error {
	for {
		p, err := l.recv()
		if err != nil {
			return err
		}
		if p.h.Seq == 0 {
			if err := c.report(p); err != nil {
				return err
			}
			continue
		}
		c.mu.Lock()
		w := c.calls[p.h.Seq]
		delete(c.calls, p.h.Seq)
		c.mu.Unlock()
		if w == nil { // its caller has given up
			p.drop()
			continue
		}
		w.answer <- p
	}
}

// ask is a request during the handshake, while nobody else reads.
func (c *Client) ask(l *link, t wire.Type, f *parcel, fill func(*wire.Buf)) (*packet, error) {
	if f == nil {
		f = &parcel{}
	}
	err := l.send(wire.Header{Type: t, Seq: 1, Files: f.mask}, 0, fill, f.files)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	if err != nil {
		return nil, err
	}
	for {
		p, err := l.recv()
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil, fmt.Errorf("%w: %w", errNoAnswer, err)
		}
		if err != nil {
			return nil, err
		}
		if p.h.Seq == 0 {
			if err := c.report(p); err != nil {
				return nil, err
			}
			continue
		}
		if p.h.Type == wire.Failed {
			defer p.drop()
			return nil, failure(p)
		}
		return p, nil
	}
}

// report handles what the monitor says on its own.
func (c *Client) report(p *packet) error {
	defer p.drop()
	switch p.h.Type {
	case wire.Exited:
		id := p.body.Str()
		var x wire.Exit
		x.Get(&p.body)
		if !p.body.Bad {
			c.finish(id, exitOf(x))
		}
	case wire.Detached:
		id, number := p.body.Str(), p.body.U64()
		c.mu.Lock()
		if q := c.procs[id]; q != nil && q.attached[number] != nil {
			q.attached[number].fail(ErrTooSlow)
			delete(q.attached, number)
		}
		c.mu.Unlock()
	case wire.Replaced:
		return ErrReplaced
	default:
		return fmt.Errorf("monitor reports unknown thing %d", p.h.Type)
	}
	return nil
}

// finish notes an exit, once, and tells everybody.
func (c *Client) finish(id string, e Exit) {
	c.mu.Lock()
	p := c.procs[id]
	if p == nil || p.exited {
		c.mu.Unlock()
		return
	}
	p.exited, p.exit, p.started = true, e, true
	// All is in the log: nobody needs our ends of the pipes any more.
	closeAll(p.log, p.logNext, p.stdout, p.stderr, p.stdin)
	p.log, p.logNext, p.stdout, p.stderr, p.stdin = nil, nil, nil, nil, nil
	for n, a := range p.attached {
		a.closeWriters()
		delete(p.attached, n)
	}
	close(p.done)
	tell := c.onExit
	c.mu.Unlock()
	for _, f := range tell {
		f(id, e)
	}
}

// takeList takes over what the monitor holds and returns the ids.
func (c *Client) takeList(l *link) (map[string]bool, error) {
	listed := map[string]bool{}
	p, err := c.ask(l, wire.List, nil, nil)
	for ; err == nil && p.h.Type != wire.OK; p, err = l.recv() {
		if p.h.Seq == 0 {
			if err := c.report(p); err != nil {
				return nil, err
			}
			continue
		}
		c.takeItem(p, listed)
	}
	if err != nil {
		return nil, fmt.Errorf("list what the monitor holds: %w", err)
	}
	p.drop()
	return listed, nil
}

func (c *Client) takeItem(p *packet, listed map[string]bool) {
	defer p.drop()
	id, flags, pid, start := p.body.Str(), p.body.U32(), int(p.body.U32()), p.body.U64()
	var x wire.Exit
	x.Get(&p.body)
	if p.body.Bad {
		return
	}
	listed[id] = true
	c.mu.Lock()
	q := c.procs[id]
	if q == nil {
		q = newProc(id)
		c.procs[id] = q
		q.log = p.take(wire.FileLog)
		q.stdout, q.stderr, q.stdin = p.take(wire.FileStdout), p.take(wire.FileStderr), p.take(wire.FileStdin)
		q.Master = p.take(wire.FileMaster)
		q.flags = flags & (wire.FlagTTY | wire.FlagEphemeral)
	}
	if q.PIDFD == nil {
		q.PIDFD = p.take(wire.FilePidfd)
	}
	q.PID, q.StartTime = pid, start
	q.started = q.started || flags&wire.FlagLaunching == 0
	c.mu.Unlock()
	if flags&wire.FlagExited != 0 {
		c.finish(id, exitOf(x))
	}
}

// settleLimit is how long launches of the last daemon may go on before they are killed.
const settleLimit = 2 * time.Second

// settle waits until the launches that the last daemon had begun are decided: each has
// become a process, or has failed and is forgotten. In between a process would run that
// nobody was told of. It is for Connect, when no launch is this client's.
func (c *Client) settle(ctx context.Context, l *link) error {
	for begun, wait := time.Now(), time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		undecided := c.undecided()
		if len(undecided) == 0 {
			return nil
		}
		for _, p := range undecided {
			if time.Since(begun) < settleLimit {
				break
			}
			ok, err := c.ask(l, wire.Kill, nil, func(b *wire.Buf) { b.Str(p.ID) })
			if err == nil {
				ok.drop()
			} else if !errors.Is(err, errdef.ErrNotFound) {
				return fmt.Errorf("end launch of %s: %w", p.ID, err)
			}
		}
		// The monitor tells nobody how a launch ended whose daemon has gone.
		if err := poll.Pause(ctx, wait); err != nil {
			return fmt.Errorf("wait for launches under way: %w", err)
		}
		listed, err := c.takeList(l)
		if err != nil {
			return err
		}
		for _, p := range undecided {
			if !listed[p.ID] {
				c.unregister(p)
			}
		}
		if time.Since(begun) > 2*settleLimit {
			return nil // stuck in the kernel, as on a dead file system: the node must not wait for it
		}
	}
}

func (c *Client) undecided() []*proc {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*proc
	for _, p := range c.procs {
		if !p.started {
			out = append(out, p)
		}
	}
	return out
}

// restore hands a new monitor what it does not know, then lets it finish what was
// in flight.
func (c *Client) restore(l *link, listed map[string]bool) error {
	c.mu.Lock()
	var todo []*proc
	for id, p := range c.procs {
		if p.started && !p.exited && !listed[id] {
			todo = append(todo, p)
		}
	}
	c.mu.Unlock()
	for _, p := range todo {
		c.mu.Lock()
		files := p.parcel()
		c.mu.Unlock()
		ok, err := c.ask(l, wire.Restore, files, func(b *wire.Buf) {
			b.Str(p.ID)
			b.U32(p.flags | wire.FlagOrphan)
			b.U32(uint32(p.PID))
			b.U64(p.StartTime)
		})
		if err != nil {
			return fmt.Errorf("hand process %s over: %w", p.ID, err)
		}
		ok.drop()
		if err := c.reattach(l, p); err != nil {
			return fmt.Errorf("hand process %s over: %w", p.ID, err)
		}
	}
	ok, err := c.ask(l, wire.Recover, nil, nil)
	if err != nil {
		return fmt.Errorf("recover the journal: %w", err)
	}
	ok.drop()
	return nil
}

// parcel packs all descriptors of a process.
func (p *proc) parcel() *parcel {
	f := &parcel{}
	f.add(wire.FilePidfd, p.PIDFD)
	f.add(wire.FileLog, p.log)
	f.add(wire.FileLogNext, p.logNext)
	f.add(wire.FileStdout, p.stdout)
	f.add(wire.FileStderr, p.stderr)
	f.add(wire.FileStdin, p.stdin)
	f.add(wire.FileMaster, p.Master)
	return f
}

// readRecords learns of what ended while neither daemon nor monitor lived.
func (c *Client) readRecords(ctx context.Context) {
	names, err := c.exits.Readdirnames(-1)
	if err != nil {
		klog.FromContext(ctx).Error(err, "exit records cannot be listed")
	}
	for _, id := range names {
		c.mu.Lock()
		known := c.procs[id] != nil
		c.mu.Unlock()
		if known || !wire.ValidID(id) {
			continue
		}
		b, err := os.ReadFile(c.recordPath(id))
		if err != nil {
			klog.FromContext(ctx).Error(err, "exit record cannot be read", "id", id)
			continue
		}
		x, ok := wire.ParseRecord(b)
		if !ok {
			klog.FromContext(ctx).Info("exit record is damaged and was removed", "id", id)
			_ = os.Remove(c.recordPath(id))
			continue
		}
		p := newProc(id)
		c.mu.Lock()
		c.procs[id] = p
		c.mu.Unlock()
		c.finish(id, exitOf(x))
	}
}
