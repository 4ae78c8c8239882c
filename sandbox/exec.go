package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
	"github.com/cri-runtime/cri-runtime/oci/runtime"
	"github.com/cri-runtime/cri-runtime/oci/spec"
)

// strayGrace is how long output is still read after a command has ended while one of
// its children holds the stream open.
const strayGrace = 20 * time.Millisecond

// ExecSync runs cmd and collects its output, at most outputLimit bytes a stream. After
// timeout (0: none) everything that cmd started is killed.
func (s *Service) ExecSync(ctx context.Context, id ID, cmd []string, timeout time.Duration) (ExecResult, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout,
			fmt.Errorf("command %q did not end in %v: %w", cmd, timeout, context.DeadlineExceeded))
		defer cancel()
	}
	stdout, stderr := &limited{left: outputLimit}, &limited{left: outputLimit}
	code, err := s.Exec(ctx, ExecRequest{Container: id, Cmd: cmd, Stdout: stdout, Stderr: stderr})
	if err != nil {
		return ExecResult{}, err
	}
	return ExecResult{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), ExitCode: code}, nil
}

// limited keeps the first bytes and lets the rest go.
type limited struct {
	bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	l.Buffer.Write(p[:n])
	return len(p), nil
}

// execution is one exec session: its process, its cgroup and our ends of its streams.
type execution struct {
	id      string
	group   *cgroup.Group
	done    <-chan struct{}
	in      *os.File
	out     *os.File // the terminal, for sessions with one
	err     *os.File
	tty     bool
	service *Service
}

// Exec runs a command in a running container and copies its streams until it ends. It
// returns the exit code. When ctx ends, so does everything that the command started.
func (s *Service) Exec(ctx context.Context, q ExecRequest) (int32, error) {
	c, err := s.containers.get(q.Container)
	if err != nil {
		return 0, err
	}
	if len(q.Cmd) == 0 {
		return 0, fmt.Errorf("exec in container %s: the command is empty: %w", c.id, errdef.ErrInvalid)
	}
	x, err := s.startExec(ctx, c, q)
	if failed, ok := errors.AsType[*runtime.ExecError](err); ok {
		return s.refuse(q, failed)
	}
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	return x.wait(ctx, q)
}

// refuse reports a command that could not be executed as a shell would: its message on
// standard error and exit code 126 or 127. A probe whose program is missing has then
// failed, and is not an error of the runtime.
func (s *Service) refuse(q ExecRequest, failed *runtime.ExecError) (int32, error) {
	to := q.Stderr
	if q.TTY || to == nil {
		to = q.Stdout
	}
	if to != nil {
		if _, err := fmt.Fprintf(to, "%v\n", failed.Err); err != nil {
			return failed.Code, nil //nolint:nilerr // the client has gone; the code is still the answer
		}
	}
	return failed.Code, nil
}

func (s *Service) startExec(ctx context.Context, c *container, q ExecRequest) (*execution, error) {
	r := c.record()
	if r.Phase != PhaseRunning {
		return nil, fmt.Errorf("the container is %v: %w", r.Phase, errdef.ErrPhase)
	}
	rt, err := s.runtime(r.Handler)
	if err != nil {
		return nil, err
	}
	target, err := s.targets.get(c.id, func() (*execTarget, error) { return s.execTarget(r) })
	if err != nil {
		return nil, err
	}
	x := &execution{id: "exec-" + string(newID()), tty: q.TTY, service: s}
	if x.group, err = target.group.Exec(x.id); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	proc, err := spec.BuildProcess(target.spec.Process, spec.Exec{Args: q.Cmd, Terminal: q.TTY})
	if err != nil {
		return nil, errors.Join(err, x.close(ctx))
	}
	theirs, err := x.streams(q)
	if err == nil {
		err = x.start(ctx, rt, runtime.Exec{
			ID: x.id, Container: string(c.id), PID: r.Process.PID, StartTime: r.Process.Start, Bundle: s.paths.bundle(c.id), Spec: target.spec,
			Process: proc, Group: x.group, Stdio: theirs,
		})
	}
	closeAll(theirs.Stdin, theirs.Stdout, theirs.Stderr)
	if err != nil {
		return nil, errors.Join(err, x.close(ctx))
	}
	return x, nil
}

func (x *execution) start(ctx context.Context, rt Runtime, e runtime.Exec) error {
	proc, err := rt.Exec(ctx, e)
	if err != nil {
		return err
	}
	x.done = x.service.Processes.Done(x.id) // first, so that a failure below forgets it
	if x.tty {
		if proc.Master == nil {
			return fmt.Errorf("the session has no terminal: %w", errdef.ErrRetry)
		}
		if x.out, err = dup(proc.Master); err != nil {
			return err
		}
	}
	return nil
}

// streams makes the pipes of a session without a terminal, and returns the ends that
// the command gets.
func (x *execution) streams(q ExecRequest) (runtime.Stdio, error) {
	var theirs runtime.Stdio
	if q.TTY {
		return theirs, nil
	}
	var err error
	if q.Stdin != nil {
		if theirs.Stdin, x.in, err = pipe(1); err != nil {
			return theirs, err
		}
	}
	if x.out, theirs.Stdout, err = pipe(0); err != nil {
		return theirs, err
	}
	x.err, theirs.Stderr, err = pipe(0)
	return theirs, err
}

// pipe is os.Pipe, of which only one end, ours, is known to the runtime's poller.
func pipe(ours int) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[ours], true); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make pipe: %w", err), unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// connect begins to copy the streams and to follow the client's terminal size. copied is
// closed when what the command prints has ended.
func (x *execution) connect(q ExecRequest) (copied <-chan struct{}, stop func()) {
	var stops []func()
	in := x.in
	if x.tty {
		in = x.out
	}
	if q.Stdin != nil && in != nil {
		stops = append(stops, feed(in, q.Stdin, func() {
			if !x.tty {
				in.Close()
			}
		}))
	}
	all := make(chan struct{})
	left := new(atomic.Int32)
	left.Store(1)
	done := func() {
		if left.Add(-1) == 0 {
			close(all)
		}
	}
	var copies sync.WaitGroup // they end with the stream, or with the client's
	x.outputs(q, func(from *os.File, to io.Writer) {
		left.Add(1)
		copies.Go(func() { defer done(); copyOut(to, from) })
	})
	done()
	if q.Resize != nil {
		stops = append(stops, follow(q.Resize, func(sz TerminalSize) { _ = x.service.Streams.Resize(x.id, sz.Width, sz.Height) }))
	}
	return all, func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// outputs calls do for each stream that the command prints to.
func (x *execution) outputs(q ExecRequest, do func(from *os.File, to io.Writer)) {
	if x.out != nil {
		do(x.out, q.Stdout)
	}
	if x.err != nil {
		do(x.err, q.Stderr)
	}
}

// wait copies the streams until the command has ended and what it wrote is read.
func (x *execution) wait(ctx context.Context, q ExecRequest) (code int32, err error) {
	defer func() { err = errors.Join(err, x.close(ctx)) }()
	copied, stop := x.connect(q)
	defer stop()
	select {
	case <-x.done:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	// Whoever still holds a stream is a stray: what it has written so far is read.
	if !closed(copied) {
		deadline := time.Now().Add(strayGrace)
		x.outputs(q, func(from *os.File, _ io.Writer) { _ = from.SetReadDeadline(deadline) })
		select {
		case <-copied:
		case <-ctx.Done(): // the client neither reads nor goes
			return 0, context.Cause(ctx)
		}
		x.outputs(q, func(from *os.File, to io.Writer) { copyRest(to, from) })
	}
	e, ok := x.service.Processes.Exit(x.id)
	if !ok || !e.Known {
		return unknownCode, nil
	}
	return e.Code, nil
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// close kills what is left of the session and forgets it.
func (x *execution) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	closeAll(x.in, x.out, x.err)
	var errs []error
	// Most commands leave nothing behind: then the cgroup goes at once.
	removed := x.done != nil && closed(x.done) && x.group.RemoveEmpty()
	if !removed {
		errs = append(errs, x.group.Kill(ctx))
	}
	if x.done != nil {
		select {
		case <-x.done:
			errs = append(errs, x.service.Processes.Forget(ctx, x.id))
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("end exec session: %w", ctx.Err()))
		}
	}
	if !removed {
		errs = append(errs, x.group.Remove(ctx))
	}
	return errors.Join(errs...)
}

// Attach connects streams to the first process of a running container until it ends,
// the client goes, or its standard input was stdin_once and has ended.
func (s *Service) Attach(ctx context.Context, q AttachRequest) error {
	c, err := s.containers.get(q.Container)
	if err != nil {
		return err
	}
	r := c.record()
	if r.Phase != PhaseRunning {
		return fmt.Errorf("attach to container %s, which is %v: %w", c.id, r.Phase, errdef.ErrPhase)
	}
	a, err := s.Streams.Attach(ctx, string(c.id))
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	defer func() { _ = a.Close() }() // attachOutput has closed it unless it was not reached
	if q.Stdin != nil && r.Config.Stdin {
		stop, err := s.attachStdin(ctx, c, q.Stdin)
		if err != nil {
			return fmt.Errorf("attach to container %s: %w", c.id, err)
		}
		defer stop()
	}
	if q.Resize != nil {
		stop := follow(q.Resize, func(sz TerminalSize) { _ = s.Streams.Resize(string(c.id), sz.Width, sz.Height) })
		defer stop()
	}
	return s.attachOutput(ctx, c, q, a)
}

func (s *Service) attachOutput(ctx context.Context, c *container, q AttachRequest, a *monitor.Attached) error {
	var copies sync.WaitGroup
	copies.Go(func() { copyOut(q.Stdout, a.Stdout) })
	if a.Stderr != nil {
		copies.Go(func() { copyOut(q.Stderr, a.Stderr) })
	}
	all := make(chan struct{})
	var last sync.WaitGroup
	last.Go(func() { copies.Wait(); close(all) })
	select {
	case <-all:
	case <-c.ended:
		// Nobody writes any more, so the copies end by themselves, having read everything.
		select {
		case <-all:
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	err := a.Close() // ends the copies of a client that has gone
	last.Wait()
	return err
}

// attachStdin feeds the container's standard input. With stdin_once its end is the end
// of that input for ever.
func (s *Service) attachStdin(ctx context.Context, c *container, from io.Reader) (stop func(), err error) {
	r := c.record()
	if r.StdinDone {
		return nil, fmt.Errorf("its standard input was for one attach only and is closed: %w", errdef.ErrPhase)
	}
	in, err := s.Streams.Stdin(string(c.id))
	if err != nil {
		return nil, err
	}
	var once sync.Once
	finish := func() {
		if r.Config.StdinOnce && !r.Config.TTY {
			once.Do(func() { s.stdinDone(ctx, c) })
		}
		in.Close()
	}
	ended := feed(in, from, finish)
	return func() {
		ended()
		finish()
	}, nil
}

func (s *Service) stdinDone(ctx context.Context, c *container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	if err := c.gate.enter(ctx, "container "+string(c.id)); err != nil {
		return
	}
	defer c.gate.leave()
	r := *c.record()
	r.StdinDone = true
	if err := s.commit(c, r); err == nil {
		_ = s.Streams.CloseStdin(ctx, string(c.id)) // fails only when the process has ended
	}
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
