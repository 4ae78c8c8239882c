package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

func (c *Client) recordPath(id string) string {
	return filepath.Join(c.cfg.StateDir, exitsName, id)
}

// Exit tells how a process ended; false while it runs or when it is not known.
func (c *Client) Exit(id string) (Exit, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.procs[id]
	if p == nil || !p.exited {
		return Exit{}, false
	}
	return p.exit, true
}

// closed is what there is to wait for when a process is not known.
var closed = func() chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}()

// Done is closed once the process has ended, its log is complete and its exit
// recorded. It is closed for a process that is not known.
func (c *Client) Done(id string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.procs[id]; p != nil {
		return p.done
	}
	return closed
}

// OnExit adds a function that is told of every exit, in order, those found by
// Connect excepted. It must not block: it runs where the monitor is read.
func (c *Client) OnExit(f func(id string, e Exit)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onExit = append(slices.Clone(c.onExit), f)
}

// List gives all processes that were not forgotten, the ended ones too, by id.
func (c *Client) List() []Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]Process, 0, len(c.procs))
	for _, p := range c.procs {
		if p.started {
			list = append(list, p.Process)
		}
	}
	slices.SortFunc(list, func(a, b Process) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// Get finds one process.
func (c *Client) Get(id string) (Process, error) {
	p, err := c.proc(id)
	if err != nil {
		return Process{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return p.Process, nil
}

// Signal sends a signal by pidfd, so that no other process can get it;
// errdef.ErrNotFound when the process has ended.
func (c *Client) Signal(id string, sig unix.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.procs[id]
	if p == nil || p.PIDFD == nil || p.exited {
		return fmt.Errorf("signal process %s: %w", id, errdef.ErrNotFound)
	}
	err := unix.PidfdSendSignal(int(p.PIDFD.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %s: %w", id, errdef.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("signal process %s: %w", id, err)
	}
	return nil
}

// Reopen makes a new file at path the container's log, after a rotation. When it
// fails it leaves no file that was not there before: the kubelet would take it for
// the log.
func (c *Client) Reopen(ctx context.Context, id, path string) (err error) {
	p, err := c.proc(id)
	if err != nil {
		return fmt.Errorf("reopen log: %w", err)
	}
	f, made, err := openLog(path)
	if err != nil {
		return fmt.Errorf("reopen log of %s: %w", id, err)
	}
	if err := c.setNext(p, f); err != nil {
		err = fmt.Errorf("reopen log of %s: %w", id, err)
		return errors.Join(err, dropLog(f, path, made))
	}
	r := &request{typ: wire.Reopen, fill: func(b *wire.Buf) { b.Str(id) }}
	r.files.add(wire.FileLog, f)
	err = c.tell(ctx, r)
	c.mu.Lock()
	defer c.mu.Unlock()
	current := p.logNext == f // an exit meanwhile has closed it
	if err == nil {
		if current {
			closeAll(p.log)
			p.log, p.logNext, p.logPath = f, nil, path
		}
		return nil
	}
	err = fmt.Errorf("reopen log of %s: %w", id, err)
	if ctx.Err() != nil {
		// The request may still arrive, and lines in this file with it.
		return err
	}
	if current {
		p.logNext = nil
		return errors.Join(err, dropLog(f, path, made))
	}
	return errors.Join(err, dropLog(nil, path, made))
}

// setNext notes the log to come: if the monitor dies now, the next one is told of
// both and finds out which of them the last line went to.
func (c *Client) setNext(p *proc, f *os.File) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case p.exited || !p.started:
		return fmt.Errorf("it is not running: %w", errdef.ErrPhase)
	case p.log == nil:
		return fmt.Errorf("it has no log: %w", errdef.ErrPhase)
	}
	closeAll(p.logNext)
	p.logNext = f
	return nil
}

// OpenLog opens a container's log for Log.File, making it if need be.
func OpenLog(path string) (*os.File, error) {
	f, _, err := openLog(path)
	return f, err
}

// openLog opens or makes a log. Whoever may write to the log directory, a container
// with that host path for one, must not direct it elsewhere by a symbolic link, nor
// hang us with a fifo that nobody reads.
func openLog(path string) (f *os.File, made bool, err error) {
	const mode = os.O_WRONLY | os.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK
	if f, err = os.OpenFile(path, mode|os.O_CREATE|os.O_EXCL, 0o640); err == nil {
		return f, true, nil
	}
	if !errors.Is(err, os.ErrExist) {
		return nil, false, fmt.Errorf("make log file: %w", err)
	}
	if f, err = os.OpenFile(path, mode, 0); err != nil {
		return nil, false, fmt.Errorf("open log file: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && path != os.DevNull {
		err = fmt.Errorf("it is no regular file: %w", errdef.ErrInvalid)
	}
	if err != nil {
		return nil, false, errors.Join(fmt.Errorf("open log file %s: %w", path, err), f.Close())
	}
	return f, false, nil
}

func dropLog(f *os.File, path string, made bool) error {
	closeAll(f)
	if !made {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove new log file: %w", err)
	}
	return nil
}

// Stdin gives a duplicate of the write end of a container's standard input, or of
// its terminal.
func (c *Client) Stdin(id string) (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.procs[id]
	if p == nil {
		return nil, fmt.Errorf("open standard input of %s: %w", id, errdef.ErrNotFound)
	}
	f := p.stdin
	if p.Master != nil {
		f = p.Master
	}
	if f == nil {
		return nil, fmt.Errorf("open standard input of %s: it is closed: %w", id, errdef.ErrPhase)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open standard input of %s: %w", id, err)
	}
	// Else a write that the container does not read would hold a thread, whoever closes
	// the file, and a client that comes again and again takes all there are.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open standard input of %s: %w", id, err)
	}
	return os.NewFile(uintptr(fd), "stdin"), nil
}

// CloseStdin lets the container read an end of file, once all duplicates are
// closed. It may be repeated.
func (c *Client) CloseStdin(ctx context.Context, id string) error {
	p, err := c.proc(id)
	if err != nil {
		return fmt.Errorf("close standard input: %w", err)
	}
	c.mu.Lock()
	closeAll(p.stdin)
	p.stdin = nil
	c.mu.Unlock()
	if err := c.tell(ctx, &request{typ: wire.CloseStdin, fill: func(b *wire.Buf) { b.Str(id) }}); err != nil {
		return fmt.Errorf("close standard input of %s: %w", id, err)
	}
	return nil
}

// Resize tells a container's terminal how large it is.
func (c *Client) Resize(id string, cols, rows uint16) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.procs[id]
	if p == nil {
		return fmt.Errorf("resize terminal of %s: %w", id, errdef.ErrNotFound)
	}
	if p.Master == nil {
		return fmt.Errorf("resize terminal of %s: it has none: %w", id, errdef.ErrPhase)
	}
	if err := unix.IoctlSetWinsize(int(p.Master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		return fmt.Errorf("resize terminal of %s: %w", id, err)
	}
	return nil
}

// Stats counts what a container has logged and lost.
func (c *Client) Stats(ctx context.Context, id string) (LogStats, error) {
	var s LogStats
	a, err := c.do(ctx, &request{typ: wire.Stats, fill: func(b *wire.Buf) { b.Str(id) }})
	if err != nil {
		return s, fmt.Errorf("count log of %s: %w", id, err)
	}
	defer a.drop()
	s.Get(&a.body)
	return s, nil
}

// Forget drops an ended process and its exit record; what is not known is
// forgotten already. A running one is errdef.ErrPhase.
func (c *Client) Forget(ctx context.Context, id string) error {
	p, _ := c.proc(id)
	if p != nil && p.flags&wire.FlagEphemeral != 0 {
		return c.forgetEphemeral(p)
	}
	if err := c.tell(ctx, &request{typ: wire.Forget, fill: func(b *wire.Buf) { b.Str(id) }}); err != nil {
		return fmt.Errorf("forget process %s: %w", id, err)
	}
	if p != nil {
		c.unregister(p)
	}
	return nil
}

// forgetEphemeral drops a session that has ended: the monitor has done so by itself.
func (c *Client) forgetEphemeral(p *proc) error {
	c.mu.Lock()
	exited := p.exited
	c.mu.Unlock()
	if !exited {
		return fmt.Errorf("forget process %s: it has not ended: %w", p.ID, errdef.ErrPhase)
	}
	c.unregister(p)
	return nil
}

// Upgrade makes the monitor execute Config.Binary in place: its children, their
// pipes and logs stay.
func (c *Client) Upgrade(ctx context.Context) error {
	l, err := c.waitLink(ctx)
	if err != nil {
		return fmt.Errorf("upgrade monitor: %w", err)
	}
	// The answer is the end of the connection; try is enough, do would repeat it.
	a, err := c.try(ctx, l, &request{typ: wire.Upgrade, fill: func(b *wire.Buf) { b.Str(c.cfg.Binary) }})
	if err == nil && a != nil {
		defer a.drop()
		if a.h.Type == wire.Failed {
			err = failure(a)
		}
	}
	if err != nil {
		return fmt.Errorf("upgrade monitor: %w", err)
	}
	if _, err := c.waitLink(ctx); err != nil {
		return fmt.Errorf("upgrade monitor: %w", err)
	}
	return nil
}

// Shutdown ends the monitor if nothing runs any more (else errdef.ErrPhase), and
// the client with it.
func (c *Client) Shutdown(ctx context.Context) error {
	c.ending.Store(true) // else its end would be mended
	if err := c.tell(ctx, &request{typ: wire.Shutdown, fill: func(b *wire.Buf) { b.U32(0) }}); err != nil {
		c.ending.Store(false)
		return fmt.Errorf("shut monitor down: %w", err)
	}
	return c.Close()
}

// MonitorPID is the monitor's process, for reports and memory figures.
func (c *Client) MonitorPID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}
