package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// planRoom is what a packet has for a plan: it is less the id and some numbers.
const planRoom = wire.MaxRequest - 512

// cancelLimit bounds the clean-up after a caller that gave up.
const cancelLimit = 10 * time.Second

// Start carries out a launch plan and returns once its exec has succeeded. A step
// that fails is a *StepFailure. When ctx ends the launch is killed. When the
// monitor dies in the middle the error is errdef.ErrRetry: what the launch left is
// in the container's cgroup, which the caller kills when it takes the step back.
func (c *Client) Start(ctx context.Context, s Start) (Process, error) {
	p := newProc(s.ID)
	p.setLog(s.Log)
	p.stdin = s.Stdin
	p.flags = flag(s.TTY, wire.FlagTTY) | flag(s.Ephemeral, wire.FlagEphemeral)
	r := &request{typ: wire.Start, once: true, single: s.Ephemeral, fill: p.describe, extra: s.Files}
	p.logParcel(&r.files)
	if len(s.Plan) <= planRoom {
		r.size = len(s.Plan)
		r.fill = func(b *wire.Buf) {
			p.describe(b)
			b.Bytes(s.Plan)
		}
	} else {
		plan, err := sealed("cri-plan", s.Plan)
		if err != nil {
			p.closeFiles()
			return Process{}, fmt.Errorf("start %s: %w", s.ID, err)
		}
		defer func() { _ = plan.Close() }()
		r.files.add(wire.FilePlan, plan)
	}
	if s.TTY {
		ours, theirs, err := socketPair()
		if err != nil {
			p.closeFiles()
			return Process{}, fmt.Errorf("start %s: %w", s.ID, err)
		}
		defer closeAll(ours, theirs)
		r.files.add(wire.FilePTYSock, ours)
		r.extra = append([]*os.File(nil), s.Files...)
		r.extra[s.PTYAt] = theirs
	}
	return c.begin(ctx, p, r)
}

// Spawn runs a program as it is and returns once its exec has succeeded.
func (c *Client) Spawn(ctx context.Context, s Spawn) (Process, error) {
	p := newProc(s.ID)
	p.setLog(s.Log)
	p.stdin = s.Stdin
	p.flags = flag(s.Ephemeral, wire.FlagEphemeral)
	r := &request{typ: wire.Spawn, once: true, single: s.Ephemeral, fill: p.describe}
	var b wire.Buf
	(&wire.Program{Path: s.Path, Args: s.Args, Env: s.Env, Dir: s.Dir}).Put(&b)
	prog, err := sealed("cri-program", b.B)
	if err != nil {
		p.closeFiles()
		return Process{}, fmt.Errorf("run %s: %w", s.Path, err)
	}
	defer func() { _ = prog.Close() }()
	p.logParcel(&r.files)
	r.files.add(wire.FileProgram, prog)
	for i, bit := range []uint32{wire.FileIn, wire.FileOut, wire.FileErr} {
		r.files.add(bit, s.Stdio[i])
	}
	return c.begin(ctx, p, r)
}

// Adopt takes charge of a process that the monitor has inherited.
func (c *Client) Adopt(ctx context.Context, a Adopt) (Process, error) {
	p := newProc(a.ID)
	p.setLog(a.Log)
	p.stdin, p.Master, p.PID = a.Stdin, a.Master, a.PID
	p.flags = flag(a.Master != nil, wire.FlagTTY)
	r := &request{typ: wire.Adopt, fill: func(b *wire.Buf) {
		p.describe(b)
		b.U32(uint32(a.PID))
	}}
	p.logParcel(&r.files)
	r.files.add(wire.FileMaster, a.Master)
	return c.begin(ctx, p, r)
}

// begin registers p, sends the request that starts it, and notes the answer.
func (c *Client) begin(ctx context.Context, p *proc, r *request) (Process, error) {
	if err := c.register(p); err != nil {
		p.closeFiles()
		return Process{}, err
	}
	a, err := c.do(ctx, r)
	if err != nil {
		if ctx.Err() != nil {
			c.abandon(ctx, p.ID)
		}
		c.unregister(p)
		return Process{}, fmt.Errorf("start %s: %w", p.ID, err)
	}
	defer a.drop()
	c.mu.Lock()
	defer c.mu.Unlock()
	p.PID, p.StartTime = int(a.body.U32()), a.body.U64()
	p.started = true
	if f := a.take(wire.FilePidfd); p.PIDFD == nil {
		p.PIDFD = f
	} else {
		closeAll(f)
	}
	if f := a.take(wire.FileMaster); p.Master == nil {
		p.Master = f
	} else {
		closeAll(f)
	}
	return p.Process, nil
}

func (c *Client) register(p *proc) error {
	if !wire.ValidID(p.ID) {
		return fmt.Errorf("process id %q: %w", p.ID, errdef.ErrInvalid)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.procs[p.ID] != nil {
		return fmt.Errorf("process %s: %w", p.ID, errdef.ErrExists)
	}
	c.procs[p.ID] = p
	return nil
}

func (c *Client) unregister(p *proc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.procs[p.ID] == p {
		delete(c.procs, p.ID)
	}
	p.closeFiles()
}

// abandonPause is the time between two looks at a process that was killed: the monitor
// tells nobody of the end of an abandoned one.
const abandonPause = time.Millisecond

// abandon ends a start whose caller has gone, and returns when the monitor has dropped
// it: a further start under the same id would else be taken for a repetition of it.
func (c *Client) abandon(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelLimit)
	defer cancel()
	tell := func(t wire.Type) error {
		return c.tell(ctx, &request{typ: t, fill: func(b *wire.Buf) { b.Str(id) }})
	}
	// An error means that the monitor does not know it, or is not to be had.
	_ = tell(wire.Kill)
	for errors.Is(tell(wire.Forget), errdef.ErrPhase) { // it is not dead yet
		select {
		case <-time.After(abandonPause):
		case <-ctx.Done():
			return
		}
	}
}

func (p *proc) describe(b *wire.Buf) {
	b.Str(p.ID)
	b.U32(p.flags)
}

func (p *proc) setLog(l *Log) {
	if l != nil {
		p.logPath, p.log, p.stdout, p.stderr = l.Path, l.File, l.Stdout, l.Stderr
	}
}

// logParcel packs what the monitor needs for logging.
func (p *proc) logParcel(f *parcel) {
	f.add(wire.FileLog, p.log)
	f.add(wire.FileStdout, p.stdout)
	f.add(wire.FileStderr, p.stderr)
	f.add(wire.FileStdin, p.stdin)
}

func flag(on bool, bit uint32) uint32 {
	if on {
		return bit
	}
	return 0
}

// sealed puts b into a memfd that nobody can change any more.
func sealed(name string, b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(b); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("fill memfd: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("seal memfd: %w", err)
	}
	return f, nil
}

func socketPair() (a, b *os.File, err error) {
	fd, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return os.NewFile(uintptr(fd[0]), "pty"), os.NewFile(uintptr(fd[1]), "pty"), nil
}
