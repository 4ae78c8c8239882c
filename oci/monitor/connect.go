package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

const (
	socketName = "monitor.sock"
	logName    = "monitor.log"
	exitsName  = "exits"

	greetLimit = 20 * time.Second // for all of a handshake
	retryFirst = 50 * time.Millisecond
	retryMax   = 5 * time.Second
)

// Connect finds the running monitor of cfg.StateDir or starts one, takes back all
// descriptors, and reads the exit records of what ended meanwhile. ctx bounds the
// connecting; its values stay for the log.
func Connect(ctx context.Context, cfg Config) (_ *Client, err error) {
	c := &Client{cfg: cfg, changed: make(chan struct{}), calls: map[uint32]*call{}, procs: map[string]*proc{}}
	defer func() {
		if err != nil {
			c.release()
		}
	}()
	if err := c.openDirs(); err != nil {
		return nil, err
	}
	l, err := c.connect(ctx)
	if err == nil {
		err = c.settle(ctx, l)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to monitor in %s: %w", cfg.StateDir, err)
	}
	c.readRecords(ctx)
	c.setLink(l, nil)
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	c.reapChildren(run)
	c.wg.Go(func() { c.run(run, l) })
	return c, nil
}

func (c *Client) openDirs() error {
	for _, dir := range []string{c.cfg.StateDir, filepath.Join(c.cfg.StateDir, exitsName)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make state directory of the monitor: %w", err)
		}
		// An abstract socket, or one that others reach, would give containers away
		// (CVE-2020-15257).
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("close state directory of the monitor: %w", err)
		}
	}
	var err error
	if c.dir, err = os.Open(c.cfg.StateDir); err != nil {
		return fmt.Errorf("open state directory of the monitor: %w", err)
	}
	if c.exits, err = os.Open(filepath.Join(c.cfg.StateDir, exitsName)); err != nil {
		return fmt.Errorf("open exit records: %w", err)
	}
	return nil
}

// Close leaves the monitor alone and gives up all duplicates.
func (c *Client) Close() error {
	c.cancel()
	c.wg.Wait()
	c.release()
	return nil
}

func (c *Client) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.procs {
		p.closeFiles()
		for _, a := range p.attached {
			a.closeWriters()
		}
	}
	c.procs = map[string]*proc{}
	closeAll(c.journal[0], c.journal[1], c.journal[2], c.dir, c.exits)
}

// run reads from the monitor and replaces the link whenever it breaks.
func (c *Client) run(ctx context.Context, l *link) {
	log := klog.FromContext(ctx)
	for {
		stop := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
		err := c.read(l)
		stop()
		_ = l.conn.Close()
		if ctx.Err() != nil || c.ending.Load() {
			err = os.ErrClosed
		}
		if errors.Is(err, os.ErrClosed) || errors.Is(err, ErrReplaced) {
			c.setLink(nil, fmt.Errorf("monitor: %w", err))
			return
		}
		c.setLink(nil, nil)
		began := time.Now()
		if l, err = c.reconnect(ctx); err != nil {
			c.setLink(nil, fmt.Errorf("monitor: %w", err))
			return
		}
		c.reapChildren(ctx)
		c.setLink(l, nil)
		log.Info("monitor is back", "pid", c.pid, "took", time.Since(began))
	}
}

// reconnect tries until it works or ctx ends.
func (c *Client) reconnect(ctx context.Context) (*link, error) {
	for wait := retryFirst; ; wait = min(2*wait, retryMax) {
		l, err := c.connect(ctx)
		if err == nil {
			return l, nil
		}
		if errors.Is(err, ErrReplaced) {
			return nil, err
		}
		klog.FromContext(ctx).Error(err, "no monitor, trying again", "in", wait)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, os.ErrClosed
		}
	}
}

// connect dials the monitor, starting one when nobody listens, and greets it.
func (c *Client) connect(ctx context.Context) (*link, error) {
	var last error
	for range 5 {
		l, err := dial(c.dir)
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
			if err := c.launch(); err != nil {
				return nil, err
			}
			l, err = dial(c.dir)
		}
		if err != nil {
			return nil, err
		}
		again, err := c.greet(ctx, l)
		if err == nil && !again {
			return l, nil
		}
		_ = l.conn.Close()
		// Without an answer it was a dying monitor, whose socket still stood.
		if err != nil && !errors.Is(err, errNoAnswer) {
			return nil, err
		}
		last = err
	}
	if last == nil {
		last = errors.New("the monitor stays old after its upgrade")
	}
	return nil, last
}

// launch starts a monitor that listens already.
func (c *Client) launch() error {
	sock, err := c.listen()
	if err != nil {
		return err
	}
	defer func() { _ = sock.Close() }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("start monitor: %w", err)
	}
	defer func() { _ = null.Close() }()
	log, err := os.OpenFile(filepath.Join(c.cfg.StateDir, logName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start monitor: %w", err)
	}
	defer func() { _ = log.Close() }()
	p, err := os.StartProcess(c.cfg.Binary, []string{"cri-monitor", "--listen=3"}, &os.ProcAttr{
		Dir: "/", Files: []*os.File{null, null, log, sock, c.exits},
		// One processor: the loop is one thread, and memory is counted per processor.
		Env: []string{"GOMAXPROCS=1", "GOTRACEBACK=all"},
		Sys: &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start monitor: %w", err)
	}
	for _, dir := range c.cfg.CgroupDirs {
		name := filepath.Join(dir, "cgroup.procs")
		if err := os.WriteFile(name, fmt.Appendf(nil, "%d", p.Pid), 0); err != nil {
			_ = p.Kill()
			_, _ = p.Wait()
			return fmt.Errorf("move monitor to its cgroup: %w", err)
		}
	}
	c.children = append(c.children, p)
	return nil
}

// listen binds a socket and moves it into place: a connection reaches the old
// monitor or the new one, and is never refused in between.
func (c *Client) listen() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make monitor socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "monitor socket")
	tmp := socketName + ".new"
	at := int(c.dir.Fd())
	_ = unix.Unlinkat(at, tmp, 0)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", at, tmp)})
	if err == nil {
		err = unix.Fchmodat(at, tmp, 0o600, 0)
	}
	if err == nil {
		err = unix.Listen(fd, 8)
	}
	if err == nil {
		err = unix.Renameat(at, tmp, at, socketName)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("make monitor socket: %w", err)
	}
	return f, nil
}

// greet does the handshake. again is true after an upgrade.
func (c *Client) greet(ctx context.Context, l *link) (again bool, err error) {
	if err := l.conn.SetReadDeadline(time.Now().Add(greetLimit)); err != nil {
		return false, fmt.Errorf("greet monitor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	p, err := c.ask(l, wire.Hello, nil, func(b *wire.Buf) { b.U32(wire.Version) })
	if err != nil {
		return false, err
	}
	defer p.drop()
	version, pid, flags := p.body.U32(), int(p.body.U32()), p.body.U32()
	switch {
	case version > wire.Version:
		return false, fmt.Errorf("greet monitor %d: it speaks protocol %d, this daemon only %d", pid, version, wire.Version)
	case version < wire.Version:
		return true, c.upgrade(l)
	}
	if err := c.agreeOnJournal(l, p, flags, pid); err != nil {
		return false, err
	}
	l.gen = c.gen
	listed, err := c.takeList(l)
	if err != nil {
		return false, err
	}
	if err := c.restore(l, listed); err != nil {
		return false, err
	}
	if err := l.conn.SetReadDeadline(time.Time{}); err != nil {
		return false, fmt.Errorf("greet monitor: %w", err)
	}
	return false, nil
}

// upgrade makes the monitor execute the present binary in place.
func (c *Client) upgrade(l *link) error {
	p, err := c.ask(l, wire.Upgrade, nil, func(b *wire.Buf) { b.Str(c.cfg.Binary) })
	if err != nil && !errors.Is(err, errNoAnswer) {
		return fmt.Errorf("upgrade monitor: %w", err)
	}
	if p != nil {
		p.drop()
	}
	return nil
}

// agreeOnJournal keeps the journal that a running monitor has, or gives ours to a
// new one.
func (c *Client) agreeOnJournal(l *link, p *packet, flags uint32, pid int) error {
	c.mu.Lock()
	c.pid = pid
	c.mu.Unlock()
	if flags&wire.FlagJournal != 0 {
		if c.gen == 0 {
			c.gen = 1
		}
		closeAll(c.journal[0], c.journal[1], c.journal[2])
		c.journal = [3]*os.File{p.take(wire.FileJournal), p.take(wire.FileJournalR), p.take(wire.FileJournalW)}
		return nil
	}
	c.gen++
	if c.journal[0] == nil {
		if err := c.makeJournal(); err != nil {
			return err
		}
	}
	var f parcel
	f.add(wire.FileJournal, c.journal[0])
	f.add(wire.FileJournalR, c.journal[1])
	f.add(wire.FileJournalW, c.journal[2])
	ok, err := c.ask(l, wire.Journal, &f, nil)
	if err != nil {
		return fmt.Errorf("hand journal over: %w", err)
	}
	ok.drop()
	return nil
}

func (c *Client) makeJournal() error {
	fd, err := unix.MemfdCreate("cri-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make journal: %w", err)
	}
	c.journal[0] = os.NewFile(uintptr(fd), "journal")
	// Sparse: only what is touched costs memory.
	if err := unix.Ftruncate(fd, wire.JournalSize); err != nil {
		return fmt.Errorf("make journal: %w", err)
	}
	r, w, err := rawPipe("journal")
	if err != nil {
		return fmt.Errorf("make journal: %w", err)
	}
	c.journal[1], c.journal[2] = r, w
	// Room for 64 KiB in the worst case of one byte in each of a pipe's pages.
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		return fmt.Errorf("make journal: grow pipe: %w", err)
	}
	return nil
}
