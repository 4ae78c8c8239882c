package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// attachBuffer is how far a client may lag behind before it is dropped: a
// container never waits for somebody who looks on.
const attachBuffer = 1 << 20

// attached keeps the write ends, for the case that the monitor must be replaced.
type attached struct {
	out, err *os.File
	why      atomic.Pointer[error]
}

func (a *attached) closeWriters() { closeAll(a.out, a.err) }

func (a *attached) fail(err error) {
	a.why.Store(&err)
	a.closeWriters()
}

// stream is a reading end that tells why it ended.
type stream struct {
	*os.File
	a *attached
}

// Read ends with ErrTooSlow, not io.EOF, when something was left out.
func (s stream) Read(b []byte) (int, error) {
	n, err := s.File.Read(b)
	if why := s.a.why.Load(); errors.Is(err, io.EOF) && why != nil {
		return n, *why
	}
	return n, err //nolint:wrapcheck // io.Reader's contract
}

// Attach gives a copy of what a container prints from now on, until it ends or the
// caller closes it.
func (c *Client) Attach(ctx context.Context, id string) (_ *Attached, err error) {
	p, err := c.proc(id)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	a, res := &attached{}, &Attached{}
	if res.Stdout, a.out, err = attachPipe(a); err != nil {
		return nil, fmt.Errorf("attach to %s: %w", id, err)
	}
	if p.flags&wire.FlagTTY == 0 {
		if res.Stderr, a.err, err = attachPipe(a); err != nil {
			closeAll(a.out)
			return nil, errors.Join(fmt.Errorf("attach to %s: %w", id, err), res.Stdout.Close())
		}
	}
	c.mu.Lock()
	gone := p.exited
	c.numbers++
	number := c.numbers
	if !gone {
		p.attached[number] = a
	}
	c.mu.Unlock()
	detach := func() { c.detach(context.WithoutCancel(ctx), p, number, res) }
	if gone {
		detach()
		return nil, fmt.Errorf("attach to %s: it has ended: %w", id, errdef.ErrPhase)
	}
	if err := c.tell(ctx, attachRequest(id, number, a)); err != nil {
		detach()
		return nil, fmt.Errorf("attach to %s: %w", id, err)
	}
	res.close = detach
	return res, nil
}

func attachRequest(id string, number uint64, a *attached) *request {
	r := &request{typ: wire.Attach, fill: func(b *wire.Buf) {
		b.Str(id)
		b.U64(number)
	}}
	r.files.add(wire.FileAttachOut, a.out)
	r.files.add(wire.FileAttachErr, a.err)
	return r
}

// reattach hands the attached clients of p to a new monitor.
func (c *Client) reattach(l *link, p *proc) error {
	c.mu.Lock()
	todo := maps.Clone(p.attached)
	c.mu.Unlock()
	for n, a := range todo {
		r := attachRequest(p.ID, n, a)
		ok, err := c.ask(l, r.typ, &r.files, r.fill)
		if err != nil {
			return err
		}
		ok.drop()
	}
	return nil
}

func (c *Client) detach(ctx context.Context, p *proc, number uint64, res *Attached) {
	c.mu.Lock()
	a := p.attached[number]
	delete(p.attached, number)
	if a != nil {
		a.closeWriters()
	}
	c.mu.Unlock()
	_ = res.Stdout.Close()
	if res.Stderr != nil {
		_ = res.Stderr.Close()
	}
	if a == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, cancelLimit)
	defer cancel()
	// Without an answer the monitor finds out by EPIPE at its next write.
	_ = c.tell(ctx, &request{typ: wire.Detach, fill: func(b *wire.Buf) {
		b.Str(p.ID)
		b.U64(number)
	}})
}

// attachPipe makes a pipe whose ends do not block. It is not os.Pipe, whose Fd makes
// an end blocking again: the monitor shares that flag.
func attachPipe(a *attached) (io.ReadCloser, *os.File, error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	// Without the right to a large pipe the usual 64 KiB must do.
	_, _ = unix.FcntlInt(uintptr(fd[1]), unix.F_SETPIPE_SZ, attachBuffer)
	return stream{File: os.NewFile(uintptr(fd[0]), "attached"), a: a}, os.NewFile(uintptr(fd[1]), "attach"), nil
}
