package faulty

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A Fault answers a request in place of the registry.
type Fault func(*Answer)

// An Answer is what the registry would say, for a fault to spoil.
type Answer struct {
	http.ResponseWriter
	Request *http.Request
	Header  http.Header
	Body    []byte
	Status  int

	more    int  // added to the length that is announced
	chunked bool // no length is announced

	registry *Registry
	entry    *Request
}

// Begin writes the header, with the range that was asked for, and gives the rest of the
// body to be written.
func (a *Answer) Begin() []byte {
	rest := a.Body
	if asked, ok := strings.CutPrefix(a.Request.Header.Get("Range"), "bytes="); ok && a.Status == http.StatusOK {
		from, to, _ := strings.Cut(asked, "-")
		n, err := strconv.Atoi(from)
		last := len(rest) - 1
		if m, err := strconv.Atoi(to); err == nil {
			last = min(m, last)
		}
		if err == nil && n <= last {
			rest = rest[n : last+1]
			a.Status = http.StatusPartialContent
			setDefault(a.Header, "Content-Range", fmt.Sprintf("bytes %d-%d/%d", n, last, len(a.Body)))
		}
	}
	a.Header.Del("Transfer-Encoding")
	if a.Header.Set("Content-Length", strconv.Itoa(len(rest)+a.more)); a.chunked {
		a.Header.Del("Content-Length")
	}
	a.Reply(a.Status)
	if a.Request.Method == http.MethodHead {
		return nil
	}
	return rest
}

func setDefault(h http.Header, key, value string) {
	if h.Get(key) == "" {
		h.Set(key, value)
	}
}

// Reply writes the header.
func (a *Answer) Reply(status int) {
	maps.Copy(a.ResponseWriter.Header(), a.Header)
	a.registry.mu.Lock()
	a.entry.Status = status
	a.registry.mu.Unlock()
	a.WriteHeader(status)
}

// Send writes to the body at once.
func (a *Answer) Send(p []byte) bool {
	n, err := a.Write(p)
	a.registry.mu.Lock()
	a.entry.Sent += int64(n)
	a.registry.mu.Unlock()
	return err == nil && http.NewResponseController(a.ResponseWriter).Flush() == nil
}

// All answers well.
func (a *Answer) All() { a.Send(a.Begin()) }

// some sends the first bytes, and gives what is left.
func (a *Answer) some(after int) []byte {
	rest := a.Begin()
	after = min(after, len(rest))
	a.Send(rest[:after])
	return rest[after:]
}

// wait waits, no longer than the request or the registry lives.
func (a *Answer) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-a.Request.Context().Done():
	case <-a.registry.quit:
	}
	return false
}

// connection takes the connection away from the server.
func (a *Answer) connection() net.Conn {
	c, _, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // HTTP/2
	}
	return c
}

// Stall sends so many bytes and then nothing. A body that is shorter is served well.
func Stall(after int) Fault {
	return func(a *Answer) {
		for left := a.some(after); len(left) > 0 && a.wait(time.Hour); {
		}
	}
}

// Trickle sends so many bytes at once and then a few at a time.
func Trickle(after, few int, every time.Duration) Fault {
	return func(a *Answer) {
		rest := a.some(after)
		for len(rest) > 0 && a.wait(every) {
			n := min(few, len(rest))
			if !a.Send(rest[:n]) {
				return
			}
			rest = rest[n:]
		}
	}
}

// Pause waits before it answers well.
func Pause(d time.Duration) Fault {
	return func(a *Answer) {
		if a.wait(d) {
			a.All()
		}
	}
}

// Gate holds the answer back after so many bytes until the channel is closed, and tells
// that it does so, if somebody listens.
func Gate(after int, arrived chan<- struct{}, open <-chan struct{}) Fault {
	return func(a *Answer) {
		rest := a.some(after)
		select {
		case arrived <- struct{}{}:
		default:
		}
		select {
		case <-open:
			a.Send(rest)
		case <-a.Request.Context().Done():
		case <-a.registry.quit:
		}
	}
}

// Reset sends so many bytes and resets the connection; what was not read yet is lost.
func Reset(after int) Fault {
	return func(a *Answer) {
		a.some(after)
		c := a.connection()
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn()
		}
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // a test that needs the reset sees that it is missing
		}
		_ = c.Close() // the same
	}
}

// Truncate sends so many bytes and ends the connection.
func Truncate(after int) Fault {
	return func(a *Answer) {
		a.some(after)
		panic(http.ErrAbortHandler)
	}
}

// Flip sends the body with one byte changed.
func Flip(at int) Fault {
	return func(a *Answer) {
		a.Body = append([]byte(nil), a.Body...)
		if at < len(a.Body) {
			a.Body[at] ^= 1
		}
		a.All()
	}
}

// StatusStall answers with a status and a body that never comes.
func StatusStall(code int, header ...string) Fault {
	return func(a *Answer) {
		a.Header = pairs(append(header, "Content-Length", "100"))
		a.Reply(code)
		a.Send([]byte("{"))
		for a.wait(time.Hour) {
		}
	}
}

// Status answers with a status and headers given as key and value in turn.
func Status(code int, header ...string) Fault {
	return func(a *Answer) {
		a.Header = pairs(header)
		a.Reply(code)
		if a.Request.Method != http.MethodHead {
			_, _ = fmt.Fprintf(a, `{"errors":[{"code":"FAULT","message":"scripted %d"}]}`, code) // the client may be gone
		}
	}
}

func pairs(kv []string) http.Header {
	h := http.Header{}
	for i := 0; i+1 < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

// Header answers well but for headers given as key and value in turn.
func Header(header ...string) Fault {
	return func(a *Answer) {
		maps.Copy(a.Header, pairs(header))
		a.All()
	}
}

// Length announces so many bytes more than there are, or fewer, which are then cut off.
func Length(delta int) Fault {
	return func(a *Answer) {
		a.more = delta
		rest := a.Begin()
		a.Send(rest[:len(rest)+min(delta, 0)])
	}
}

// Longer announces no length and sends a lot more, as long as somebody reads.
func Longer(extra int) Fault {
	return func(a *Answer) {
		a.chunked = true
		if !a.Send(a.Begin()) {
			return
		}
		junk := make([]byte, 64<<10)
		for left := extra; left > 0 && a.Send(junk[:min(left, len(junk))]); left -= len(junk) {
		}
	}
}

// NoRange sends the whole body whatever was asked for, so many bytes of it if not 0.
func NoRange(cut int) Fault {
	return func(a *Answer) {
		a.Request.Header.Del("Range")
		if cut == 0 {
			a.All()
			return
		}
		Truncate(cut)(a)
	}
}

// Unsatisfiable refuses ranges and serves whole bodies.
func Unsatisfiable() Fault {
	return func(a *Answer) {
		if a.Request.Header.Get("Range") != "" {
			Status(http.StatusRequestedRangeNotSatisfiable)(a)
			return
		}
		a.All()
	}
}

// WrongRange claims and sends another range than was asked for.
func WrongRange() Fault {
	return func(a *Answer) {
		if a.Request.Header.Get("Range") != "" {
			a.Request.Header.Set("Range", "bytes=1-")
		}
		a.All()
	}
}

// Page is the login page of a proxy.
func Page() Fault {
	return func(a *Answer) {
		a.Header = pairs([]string{"Content-Type", "text/html; charset=utf-8"})
		a.Body, a.Status = []byte("<html><body>Please log in to the guest network</body></html>"), http.StatusOK
		a.Request.Header.Del("Range")
		a.All()
	}
}

// Redirect sends the client to another server, at the same path below a prefix.
func Redirect(to string) Fault {
	return func(a *Answer) {
		a.Header = pairs([]string{"Location", to + a.Request.URL.Path + "?signature=s3cr3t"})
		a.Reply(http.StatusTemporaryRedirect)
	}
}

// SlowHeader sends a header that never ends, a byte at a time.
func SlowHeader(every time.Duration) Fault {
	return func(a *Answer) {
		c := a.connection()
		defer c.Close()
		next := []byte("HTTP/1.1 200 OK\r\nX-Slow: ")
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			if _, err := c.Write(next); err != nil {
				return
			}
			next = []byte("a")
			select {
			case <-t.C:
			case <-a.registry.quit:
				return
			}
		}
	}
}

// HugeHeader sends a header of so many bytes.
func HugeHeader(n int) Fault {
	return Header("X-Huge", strings.Repeat("a", n))
}

// Garbage is no HTTP at all.
func Garbage() Fault {
	return func(a *Answer) {
		c := a.connection()
		defer c.Close()
		_, _ = c.Write([]byte("SSH-2.0-OpenSSH_9.6\r\n")) // the client may be gone
	}
}
