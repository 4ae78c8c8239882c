// Package inflate reads gzip streams (RFC 1952) of DEFLATE blocks (RFC 1951), made
// for the throughput of large layers.
//
// A Reader decodes through buffers of its own: a large one for input, and one for
// output in front of which the 32 KiB window that matches may point into is kept,
// so that decoded bytes are handed out from where they were decoded to. Members
// follow each other as one stream; CRC-32 and length of each are checked. The
// package refuses everything that compress/gzip refuses, and reserved header flags
// as well; it offers no header fields, dictionaries or single-member mode.
//
// It starts no goroutine and leaves nothing on disk. A Reader reads ahead of what it
// has decoded, also beyond the last member's end. One goroutine at a time may use it.
package inflate

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// What a stream can suffer from besides ending early, which is io.ErrUnexpectedEOF.
var (
	// ErrHeader says that no member's header is where one must be.
	ErrHeader = fmt.Errorf("gzip header: %w", errdef.ErrInvalid)
	// ErrChecksum says that CRC-32 or length of a member is not what its end says.
	ErrChecksum = fmt.Errorf("gzip checksum: %w", errdef.ErrInvalid)
	// ErrCorrupt says that a block is not DEFLATE.
	ErrCorrupt = fmt.Errorf("deflate block: %w", errdef.ErrInvalid)
)

const (
	// Sizes are powers of two, so that indices can be masked.
	inSize     = 64 << 10
	outSize    = 128 << 10
	inMask     = inSize - 1
	outMask    = outSize - 1
	windowSize = 32 << 10
	maxMatch   = 258
	// slack is what one turn of the fast loop may write from its start: literals, a
	// match, and what wide copies write beyond its end.
	slack = 3 + maxMatch + 16
	// outFull is where decoding stops until the output so far has been taken.
	outFull = outSize - slack
)

// phase is what the input holds next.
type phase uint8

const (
	atHeader phase = iota + 1
	atBlock
	inStored
	inHuffman
	atTrailer
)

// A Reader gives the decompressed bytes of a gzip stream.
type Reader struct {
	src    io.Reader
	srcErr error // what src said together with its last bytes

	in     [inSize + 8]byte // the 8 more are never filled: masked indices may read them
	ip, ie int              // in[ip:ie] has not been looked at

	bits uint64 // what has been taken from in, least significant bit first
	nb   uint   // how many bits of it count

	out    [outSize + 16]byte
	op     int // out[:op] has been decoded
	rd     int // out[:rd] has been handed out
	summed int // out[:summed] is part of crc
	start  int // out[start:] belongs to this member: no match reaches before it

	phase  phase
	final  bool   // this block is its member's last
	stored int    // bytes left of a stored block
	crc    uint32 // of this member
	size   uint32 // of this member, modulo 2^32
	err    error  // handed out once all output is

	tables
}

var pool = sync.Pool{New: func() any { return new(Reader) }}

// NewReader reads the first member's header from r. An r without a byte gives io.EOF.
// Close the Reader after use.
func NewReader(r io.Reader) (*Reader, error) {
	z := pool.Get().(*Reader)
	z.reset(r)
	if err := z.header(); err != nil {
		z.release()
		return nil, err
	}
	return z, nil
}

func (z *Reader) reset(r io.Reader) {
	z.src, z.srcErr, z.err = r, nil, nil
	z.ip, z.ie, z.bits, z.nb = 0, 0, 0, 0
	z.op, z.rd, z.summed, z.start = 0, 0, 0, 0
	z.phase = atHeader
}

func (z *Reader) release() {
	z.src = nil
	z.err = errClosed
	pool.Put(z)
}

var errClosed = errors.New("gzip reader is closed")

// Read gives decompressed bytes.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := z.more(); err != nil {
		return 0, err
	}
	n := copy(p, z.out[z.rd:z.op])
	z.rd += n
	return n, nil
}

// WriteTo gives w the decompressed bytes, in large pieces and without copying them.
func (z *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		if err := z.more(); err == io.EOF { //nolint:errorlint // more returns it bare
			return total, nil
		} else if err != nil {
			return total, err
		}
		n, err := w.Write(z.out[z.rd:z.op])
		z.rd += n
		total += int64(n)
		if err != nil {
			return total, err
		}
		if z.rd < z.op {
			return total, io.ErrShortWrite
		}
	}
}

// Close gives the buffers back. It does not close the underlying reader.
func (z *Reader) Close() error {
	if z.err != errClosed { //nolint:errorlint // only release sets it
		z.release()
	}
	return nil
}

// more decodes until there is output to hand out, as much as fits if no error comes
// before. Errors come after all output before them.
func (z *Reader) more() error {
	if z.rd < z.op {
		return nil
	}
	if z.err != nil {
		return z.err
	}
	z.slide()
	for z.err == nil && z.op < outFull {
		z.err = z.step()
		z.sum()
	}
	if z.rd == z.op {
		return z.err
	}
	return nil
}

// slide keeps the window and makes room behind it.
func (z *Reader) slide() {
	if z.op <= windowSize {
		return
	}
	by := z.op - windowSize
	copy(z.out[:windowSize], z.out[by:z.op])
	z.op, z.rd, z.summed = windowSize, windowSize, windowSize
	z.start = max(0, z.start-by)
}

// sum adds what has been decoded since to the member's checksum.
func (z *Reader) sum() {
	z.crc = crc32.Update(z.crc, crc32.IEEETable, z.out[z.summed:z.op])
	z.size += uint32(z.op - z.summed)
	z.summed = z.op
}

// step does one phase, or what of it fits into the output.
func (z *Reader) step() error {
	switch z.phase {
	case atHeader:
		return z.header()
	case atBlock:
		return z.block()
	case inStored:
		return z.copyStored()
	case inHuffman:
		return z.huffman()
	default:
		return z.trailer()
	}
}
