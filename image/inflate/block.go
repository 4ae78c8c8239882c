package inflate

import "io"

// The three types of blocks, RFC 1951 section 3.2.3.
const (
	typeStored = iota
	typeFixed
	typeDynamic
)

// block reads a block's header and, for dynamic codes, its code lengths.
func (z *Reader) block() error {
	h, err := z.take(3)
	if err != nil {
		return err
	}
	z.final = h&1 == 1
	switch h >> 1 {
	case typeStored:
		return z.storedHeader()
	case typeFixed:
		z.phase = inHuffman
		z.fixed()
		return nil
	case typeDynamic:
		z.phase = inHuffman
		return z.dynamic()
	default:
		return ErrCorrupt
	}
}

// endBlock goes on behind a block's end.
func (z *Reader) endBlock() {
	z.phase = atBlock
	if z.final {
		z.phase = atTrailer
	}
}

func (z *Reader) storedHeader() error {
	z.align()
	n, err := z.take(32)
	if err != nil {
		return err
	}
	if n&0xffff != n>>16^0xffff {
		return ErrCorrupt
	}
	z.stored = int(n & 0xffff)
	z.phase = inStored
	return nil
}

// copyStored copies what is there of a stored block's bytes, or gets more of them.
func (z *Reader) copyStored() error {
	if z.stored == 0 {
		z.endBlock()
		return nil
	}
	if z.ip == z.ie {
		return noEOF(z.fill())
	}
	n := copy(z.out[z.op:outFull], z.in[z.ip:min(z.ie, z.ip+z.stored)])
	z.op += n
	z.ip += n
	z.stored -= n
	return nil
}

// lengthOrder is the order in which the lengths of the code of code lengths come.
var lengthOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamic reads a block's own codes, RFC 1951 section 3.2.7.
func (z *Reader) dynamic() error {
	h, err := z.take(14)
	if err != nil {
		return err
	}
	lits, dists, pre := int(h&31)+257, int(h>>5&31)+1, int(h>>10)+4
	if lits > maxLits || dists > maxDists {
		return ErrCorrupt
	}
	var lens [maxLits + maxDists]uint8
	for _, sym := range lengthOrder[:pre] {
		n, err := z.take(3)
		if err != nil {
			return err
		}
		lens[sym] = uint8(n)
	}
	if !z.buildPre(lens[:len(lengthOrder)]) {
		return ErrCorrupt
	}
	clear(lens[:len(lengthOrder)])
	if err := z.codeLengths(lens[:lits+dists]); err != nil {
		return err
	}
	if !z.buildLit(lens[:lits]) || !z.buildDist(lens[lits:lits+dists]) {
		return ErrCorrupt
	}
	return nil
}

// codeLengths reads the run-length coded lengths of both codes, as one sequence: a
// run may begin in one and end in the other.
func (z *Reader) codeLengths(lens []uint8) error {
	for i := 0; i < len(lens); {
		if err := z.peek(); err != nil {
			return err
		}
		e := z.pre[z.bits&preMask]
		sym, used := uint8(e>>valueShift), uint(e&usedMask)
		var value uint8
		run, extra := 1, uint(0)
		switch {
		case e&literal == 0:
			return ErrCorrupt
		case sym < 16:
			value = sym
		case sym == 16:
			if i == 0 {
				return ErrCorrupt
			}
			value, run, extra = lens[i-1], 3, 2
		case sym == 17:
			run, extra = 3, 3
		default:
			run, extra = 11, 7
		}
		if used+extra > z.nb {
			return io.ErrUnexpectedEOF
		}
		run += int(z.bits >> used & (1<<extra - 1))
		z.bits >>= used + extra
		z.nb -= used + extra
		if i+run > len(lens) {
			return ErrCorrupt
		}
		for range run {
			lens[i] = value
			i++
		}
	}
	return nil
}
