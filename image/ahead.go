package image

import (
	"io"
	"sync"
)

// A pipeline's stages hand on chunks of this size, at most so many of them ahead of the
// stage that takes them: with two boundaries 2 MiB for each layer in work.
const (
	chunkSize  = 256 << 10
	chunkAhead = 4
)

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// ahead runs the reader below it in a goroutine of its own, a few chunks ahead of the
// reader above. It belongs to one goroutine, which closes it; until then nobody else
// touches the reader below.
type ahead struct {
	full chan chunk
	free chan *[chunkSize]byte
	quit chan struct{}
	done sync.WaitGroup

	now  chunk
	rest []byte
}

type chunk struct {
	buf *[chunkSize]byte
	n   int
	err error // after the n bytes
}

func readAhead(r io.Reader) *ahead {
	a := &ahead{full: make(chan chunk, chunkAhead), free: make(chan *[chunkSize]byte, chunkAhead), quit: make(chan struct{})}
	for range chunkAhead {
		a.free <- chunks.Get().(*[chunkSize]byte)
	}
	a.done.Go(func() { a.fill(r) })
	return a
}

// fill ends with the stream, or when the stage above has closed.
func (a *ahead) fill(r io.Reader) {
	defer close(a.full)
	for {
		var buf *[chunkSize]byte
		select {
		case buf = <-a.free:
		case <-a.quit:
			return
		}
		n, err := fillChunk(r, buf[:])
		a.full <- chunk{buf, n, err} // has room: there are no more chunks than places
		if err != nil {
			return
		}
	}
}

// fillChunk reads until the chunk is full: a wake-up per packet would cost more than the
// work it hands on.
func fillChunk(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// Read implements io.Reader.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		a.giveBack()
		c, ok := <-a.full
		if !ok {
			return 0, io.ErrClosedPipe
		}
		a.now, a.rest = c, c.buf[:c.n]
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

func (a *ahead) giveBack() {
	if a.now.buf != nil {
		a.free <- a.now.buf
		a.now.buf = nil
	}
}

// Close ends the stage and waits for it: the reader below must not wait for ever.
func (a *ahead) Close() {
	a.giveBack()
	close(a.quit)
	a.done.Wait()
	for c := range a.full {
		chunks.Put(c.buf)
	}
	for {
		select {
		case b := <-a.free:
			chunks.Put(b)
		default:
			return
		}
	}
}
