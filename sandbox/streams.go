package sandbox

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// copyBuffer is how much is copied at a time at most, the size of a pipe. Most commands
// print little or nothing: a reader begins with firstBuffer.
const (
	firstBuffer = 512
	copyBuffer  = 64 << 10
)

// copyOut copies until from ends, its deadline passes or the client is gone. After the
// client is gone it reads on, so that the command is never blocked by it.
func copyOut(to io.Writer, from io.Reader) {
	if to == nil {
		to = io.Discard
	}
	buf := make([]byte, firstBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				to = io.Discard
			}
		}
		if err != nil {
			return // EOF, EIO of a terminal whose last process has gone, or the deadline
		}
		if n == len(buf) && n < copyBuffer {
			buf = make([]byte, min(8*n, copyBuffer))
		}
	}
}

// copyRest copies what from holds at this moment, and waits for nothing. It follows a
// copyOut that ended by its deadline: Go's Read does not look into a file whose deadline
// has passed, so on a busy machine a copier that came late has read nothing at all.
func copyRest(to io.Writer, from *os.File) {
	conn, err := from.SyscallConn()
	if err != nil {
		return
	}
	var rest []byte
	_ = conn.Control(func(fd uintptr) {
		// What a stray writes from here on does not count, or it could keep us here.
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		if err != nil || n <= 0 {
			return
		}
		rest = make([]byte, n)
		for got := 0; got < n; {
			m, err := unix.Read(int(fd), rest[got:])
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || m <= 0 {
				rest = rest[:got]
				return
			}
			got += m
		}
	})
	if to != nil && len(rest) > 0 {
		_, _ = to.Write(rest) // a client that has gone is no error of the command
	}
}

// feed copies a client's input and calls atEnd when it has ended. The copying goroutine
// ends with the client's stream, which its server closes after the session, or with
// the first write after stop.
func feed(to *os.File, from io.Reader, atEnd func()) (stop func()) {
	var mu sync.Mutex // guards stopped, and keeps a write from following stop
	stopped := false
	go func() {
		buf := make([]byte, copyBuffer)
		for {
			n, err := from.Read(buf)
			mu.Lock()
			if stopped {
				mu.Unlock()
				return
			}
			mu.Unlock()
			if n > 0 {
				if _, werr := to.Write(buf[:n]); werr != nil {
					return
				}
			}
			if err != nil {
				if errors.Is(err, io.EOF) {
					atEnd()
				}
				return
			}
		}
	}()
	return func() {
		mu.Lock()
		stopped = true
		mu.Unlock()
	}
}

// follow hands on the sizes of the client's terminal until stop.
func follow(sizes <-chan TerminalSize, resize func(TerminalSize)) (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case sz, ok := <-sizes:
				if !ok {
					return
				}
				resize(sz)
			case <-quit:
				return
			}
		}
	})
	return func() { close(quit); wg.Wait() }
}
