package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

var zeros [block]byte

// eachRun reads size bytes and gives those blocks that are not zero, as many at a time as
// lie next to each other in buf, whose length is a multiple of the block.
func eachRun(r io.Reader, size int64, buf []byte, give func(at int64, p []byte) error) error {
	for at := int64(0); at < size; {
		p := buf[:min(size-at, int64(len(buf)))]
		if _, err := io.ReadFull(r, p); errors.Is(err, io.EOF) {
			return fmt.Errorf("read data: %w", io.ErrUnexpectedEOF)
		} else if err != nil {
			return fmt.Errorf("read data: %w", err)
		}
		for from := 0; from < len(p); {
			to := from
			for to < len(p) && !isZero(p[to:min(to+block, len(p))]) {
				to = min(to+block, len(p))
			}
			if to == from { // a block of zeros
				from = min(from+block, len(p))
				continue
			}
			if err := give(at+int64(from), p[from:to]); err != nil {
				return err
			}
			from = to
		}
		at += int64(len(p))
	}
	return nil
}

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// spill appends data to a layer's file, each file's at the start of a block, without
// its blocks of zeros.
type spill struct {
	file *os.File
	end  int64 // a multiple of the block
	buf  []byte
}

func newSpill(file *os.File, end int64) *spill {
	return &spill{file: file, end: roundUp(end), buf: make([]byte, 256<<10)}
}

func roundUp(n int64) int64 { return (n + block - 1) &^ (block - 1) }

// add copies size bytes of r and tells where they are.
func (s *spill) add(r io.Reader, size int64) ([]erofs.Extent, error) {
	var out []erofs.Extent
	err := eachRun(r, size, s.buf, func(at int64, p []byte) error {
		if _, err := s.file.WriteAt(p, s.end); err != nil {
			return &storeError{fmt.Errorf("write layer: %w", err)}
		}
		if last := len(out) - 1; last >= 0 && out[last].Start+out[last].Len == at {
			out[last].Len += int64(len(p))
		} else {
			out = append(out, erofs.Extent{Start: at, Offset: s.end, Len: int64(len(p))})
		}
		s.end += roundUp(int64(len(p)))
		return nil
	})
	return out, err
}

// close makes the file as long as what refers to it needs; it is never empty.
func (s *spill) close() error {
	s.end = max(s.end, block)
	if err := s.file.Truncate(s.end); err != nil {
		return fmt.Errorf("extend layer: %w", err)
	}
	return nil
}

// storeError is what is not the stream's fault.
type storeError struct{ error }

func (e *storeError) Unwrap() error { return e.error }

// dataErr says that the stream's data are damaged, unless keeping them failed.
func dataErr(src *stream, err error) error {
	if _, ok := errors.AsType[*storeError](err); ok || err == nil {
		return err
	}
	return src.blame("read data", err)
}

// kindOf says of a full disk, wherever it was met, that it is no defect of ours.
func kindOf(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", err, errdef.ErrExhausted)
	}
	return err
}
