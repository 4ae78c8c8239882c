package stream

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// A group counts what runs and can be closed. Unlike a sync.WaitGroup it may be
// entered while somebody waits for its end; then it says no. The zero value is open.
type group struct {
	mu     sync.Mutex // guards all below
	n      int
	closed bool
	empty  chan struct{}
}

func (g *group) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.n++
	}
	return !g.closed
}

func (g *group) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n--; g.n == 0 && g.closed {
		close(g.empty)
	}
}

// closeAndWait lets nobody in any more and waits for the rest. It is called once.
func (g *group) closeAndWait() {
	g.mu.Lock()
	g.closed, g.empty = true, make(chan struct{})
	if g.n == 0 {
		close(g.empty)
	}
	g.mu.Unlock()
	<-g.empty
}

// tracked is a response whose connection, once hijacked, ends a session when it breaks
// and is closed when the session ends. net/http forgets hijacked connections: without
// this an exec of a client that went away would last as long as its process.
type tracked struct {
	http.ResponseWriter
	ses    *session
	linger time.Duration
	end    func()       // ends the session
	onEnd  func(func()) // has a function called when the session ends
}

// Hijack hands out the tracked connection.
func (t *tracked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	h, ok := t.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the connection cannot be taken over")
	}
	if !t.ses.workers.enter() {
		return nil, nil, errors.New("the session is over")
	}
	conn, rw, err := h.Hijack()
	if err != nil {
		t.ses.workers.leave()
		return nil, nil, err
	}
	c := &trackedConn{Conn: conn, end: t.end, linger: t.linger}
	c.changed.L = &c.mu
	t.onEnd(c.cut)
	// What net/http had read ahead comes first.
	early, _ := rw.Peek(rw.Reader.Buffered())
	c.buf = make([]byte, max(readAhead, len(early)))
	c.filled = copy(c.buf, early)
	go func() { // ends with the connection, which the end of the session closes
		defer t.ses.workers.leave()
		c.pump()
	}()
	return c, bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c)), nil
}

// readAhead is how much of a client's data is taken while nobody reads it.
const readAhead = 64 << 10

// trackedConn reads ahead, so that it learns of the end of its connection although the
// library above does not read: SPDY stops reading at the client's farewell, and a
// process that ignores its stdin holds up everything behind it. A client that leaves
// more unread data behind than fits here is noticed when its process ends.
type trackedConn struct {
	net.Conn
	end    func()
	linger time.Duration // how long the data of a client that has gone may still be read

	mu      sync.Mutex // guards all below
	changed sync.Cond  // any of it
	buf     []byte     // a ring
	start   int        // where its data begins
	filled  int        // how much it has
	err     error      // what ended the connection
}

// Read takes from what was read ahead.
func (c *trackedConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.filled == 0 && c.err == nil {
		c.changed.Wait()
	}
	if c.filled == 0 {
		return 0, c.err
	}
	n := copy(b, c.buf[c.start:min(c.start+c.filled, len(c.buf))])
	c.start, c.filled = (c.start+n)%len(c.buf), c.filled-n
	c.changed.Broadcast()
	if c.filled == 0 && c.err != nil {
		c.end()
	}
	return n, nil
}

// pump reads until the connection ends, and then ends the session.
func (c *trackedConn) pump() {
	for {
		free := c.room()
		if free == nil {
			return
		}
		n, err := c.Conn.Read(free)
		c.mu.Lock()
		c.filled += n
		if err != nil {
			c.err = io.EOF // how it ended is of no interest: the libraries log the rest as errors
		}
		unread := c.filled > 0
		c.changed.Broadcast()
		c.mu.Unlock()
		if err == nil {
			continue
		}
		if !unread {
			c.end()
			return
		}
		time.AfterFunc(c.linger, c.end)
		return
	}
}

// room waits for a free part of the ring and gives it to the pump alone. It is nil when
// the session is over.
func (c *trackedConn) room() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.filled == len(c.buf) && c.err == nil {
		c.changed.Wait()
	}
	if c.err != nil {
		return nil
	}
	from := (c.start + c.filled) % len(c.buf)
	to := len(c.buf)
	if from < c.start {
		to = c.start
	}
	return c.buf[from:to]
}

// cut closes the connection at the end of its session and wakes who waits on it.
func (c *trackedConn) cut() {
	c.mu.Lock()
	if c.err == nil {
		c.err = io.EOF
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	_ = c.Conn.Close()
}

// Close may be called twice: SPDY's does so and waits a second when that fails.
func (c *trackedConn) Close() error {
	if err := c.Conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
