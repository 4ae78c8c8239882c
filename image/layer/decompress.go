package layer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/cri-runtime/cri-runtime/image/inflate"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// maxWindow is the largest zstd window accepted: what `zstd --long` writes and the
// reference decoder accepts without being asked. It bounds a decoder's memory.
const maxWindow = 128 << 20

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	skipMagic = []byte{0x2a, 0x4d, 0x18} // zstd skippable frame: 0x184D2A5?, second to fourth byte
)

// Decompress undoes gzip or zstd as the stream's first bytes tell, since media types in
// the field lie. Anything else is passed on as it is.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	src := &source{r: r}
	br := bufio.NewReaderSize(src, 64<<10)
	head, err := br.Peek(4)
	if err != nil && len(head) == 0 && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		z, err := inflate.NewReader(br)
		if err != nil {
			return nil, src.blame(err)
		}
		return &decoder{z, src}, nil
	case bytes.Equal(head, zstdMagic), len(head) == 4 && bytes.Equal(head[1:], skipMagic) && head[0]&0xf0 == 0x50:
		z, err := newZstd(br)
		if err != nil {
			return nil, src.blame(err)
		}
		return &decoder{z, src}, nil
	}
	return io.NopCloser(br), nil
}

// zstdDecoders keeps decoders with their buffers, several MiB each: made anew for each
// layer they were a third of a pull's memory.
var zstdDecoders sync.Pool

// pooledZstd is a decoder that Close gives back.
type pooledZstd struct{ *zstd.Decoder }

func newZstd(r io.Reader) (io.ReadCloser, error) {
	if z, ok := zstdDecoders.Get().(*zstd.Decoder); ok {
		return pooledZstd{z}, z.Reset(r)
	}
	// One goroutine-less decoder per layer beats zstd's own concurrency, and layers run in
	// parallel anyway.
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
	return pooledZstd{z}, err
}

func (z pooledZstd) Close() error {
	err := z.Reset(nil)
	zstdDecoders.Put(z.Decoder)
	return err
}

// source remembers whether it was the transfer that failed.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// blame gives the transfer's own error, or says that the stream is damaged.
func (s *source) blame(err error) error {
	if s.err != nil {
		return s.err
	}
	return fmt.Errorf("decompress layer: %w: %w", err, errdef.ErrInvalid)
}

type decoder struct {
	io.ReadCloser
	src *source
}

func (d *decoder) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // readers return it bare
		err = d.src.blame(err)
	}
	return n, err
}
