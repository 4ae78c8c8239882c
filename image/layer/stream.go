package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// chunk is how much of a stream goes to its file in one call.
const chunk = 1 << 20

// stream is a layer as it comes in: bounded, and with a memory of why it broke.
type stream struct {
	ctx   context.Context //nolint:containedctx // lives as long as one reading of a stream
	r     io.Reader
	limit int64 // 0 is none
	n     int64
	err   error
}

func (s *stream) Read(p []byte) (int, error) {
	if s.err == nil {
		s.err = s.ctx.Err()
	}
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if s.n += int64(n); s.limit > 0 && s.n > s.limit {
		n, err = 0, fmt.Errorf("layer is larger than %d bytes: %w", s.limit, errdef.ErrExhausted)
	}
	if err != nil && err != io.EOF { //nolint:errorlint // readers return it bare
		s.err = err
	}
	return n, err
}

// blame gives the stream's own error, or says that what it holds is damaged.
func (s *stream) blame(what string, err error) error {
	switch {
	case s.err != nil:
		return fmt.Errorf("%s: %w", what, s.err)
	case errors.Is(err, errdef.ErrInvalid), errors.Is(err, errdef.ErrExhausted):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, err, errdef.ErrInvalid)
}

// tee passes a stream on after writing it to a file in large pieces.
type tee struct {
	src  *stream
	file *os.File
	buf  []byte
	rest []byte // of buf, not passed on yet
	off  int64  // passed on
}

func newTee(src *stream, file *os.File) *tee {
	return &tee{src: src, file: file, buf: make([]byte, chunk)}
}

func (t *tee) fill() error {
	n, err := io.ReadFull(t.src, t.buf)
	if n == 0 {
		return err
	}
	// What came before an error is worth nothing then; the end comes once more.
	if err != nil && t.src.err != nil {
		return t.src.err
	}
	if _, err := t.file.Write(t.buf[:n]); err != nil {
		t.src.err = fmt.Errorf("write layer: %w", err)
		return t.src.err
	}
	t.rest = t.buf[:n]
	return nil
}

func (t *tee) Read(p []byte) (int, error) {
	if len(t.rest) == 0 {
		if err := t.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	t.off += int64(n)
	return n, nil
}

// Seek skips forward, which saves archive/tar from copying what it does not look at. Like
// a file's it goes beyond the end without an error; the next Read tells.
func (t *tee) Seek(n int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || n < 0 {
		return 0, errors.ErrUnsupported
	}
	to := t.off + n
	for n > 0 {
		if len(t.rest) == 0 {
			if err := t.fill(); errors.Is(err, io.EOF) && t.src.err == nil {
				break
			} else if err != nil {
				return 0, err
			}
		}
		skip := min(n, int64(len(t.rest)))
		t.rest = t.rest[skip:]
		n -= skip
	}
	t.off = to
	return to, nil
}

// size is how much has been written.
func (t *tee) size() int64 { return t.src.n }
