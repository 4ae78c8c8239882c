package inflate

import "math/bits"

const (
	maxLits  = 286 // two more have codes in fixed blocks and may not occur
	maxDists = 30

	litBits  = 11
	litMask  = 1<<litBits - 1
	distBits = 9
	distMask = 1<<distBits - 1
	preBits  = 7
	preMask  = 1<<preBits - 1

	// A second-level table has at most as many entries as the codes of its prefix
	// need, and is full: all of them together have fewer than two for each symbol
	// times the depth below the first level.
	litSize  = 2 << litBits
	distSize = 4 << distBits
)

// An entry says what the next bits of the input mean:
//
//	bits 0-5    bits to consume, extra bits included
//	bit  6      the value is a literal
//	bit  7      the value is 0 for the end of a block, 1 for what is no code at all
//	bits 8-11   of the bits to consume, those before the extra bits
//	bit  12     the value is a second-level table's offset, bits 8-11 its index bits
//	bits 16-31  literal, or the smallest length or distance that extra bits add to
type entry = uint32

const (
	usedMask   = 1<<6 - 1
	literal    = 1 << 6
	special    = 1 << 7
	codeShift  = 8
	codeMask   = 15
	second     = 1 << 12
	valueShift = 16

	invalid = special | 1<<valueShift
)

// tables hold the codes of one block.
type tables struct {
	lit     [litSize]entry
	dist    [distSize]entry
	pre     [1 << preBits]entry // of code lengths; symbols are as literals
	isFixed bool
}

// litEntries and distEntries are the entries of each symbol, without code lengths.
var (
	litEntries  = makeLits()
	distEntries = makeDists()
)

func makeLits() (t [288]entry) {
	for i := range 256 {
		t[i] = literal | entry(i)<<valueShift
	}
	t[256] = special
	base := entry(3)
	for i := 257; i < 285; i++ {
		extra := entry(max(0, (i-257)/4-1))
		t[i] = base<<valueShift | extra
		base += 1 << extra
	}
	t[285] = maxMatch << valueShift
	t[286], t[287] = invalid, invalid
	return t
}

func makeDists() (t [32]entry) {
	base := entry(1)
	for i := range maxDists {
		extra := entry(max(0, i/2-1))
		t[i] = base<<valueShift | extra
		base += 1 << extra
	}
	t[30], t[31] = invalid, invalid
	return t
}

// fixed prepares the codes of RFC 1951 section 3.2.6.
func (z *Reader) fixed() {
	if z.isFixed {
		return
	}
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	z.buildLit(lens[:])
	for i := range 32 {
		lens[i] = 5
	}
	z.buildDist(lens[:32])
	z.isFixed = true
}

func (z *Reader) buildPre(lens []uint8) bool {
	z.isFixed = false
	return build(z.pre[:], preBits, lens, litEntries[:])
}

func (z *Reader) buildDist(lens []uint8) bool {
	return build(z.dist[:], distBits, lens, distEntries[:])
}

func (z *Reader) buildLit(lens []uint8) bool {
	return build(z.lit[:], litBits, lens, litEntries[:])
}

// build makes the table of a canonical code from the lengths of its codes. It wants
// the code complete; only a single code of one bit and no code at all will do, too.
func build(t []entry, first uint, lens []uint8, of []entry) bool {
	var count [16]int
	for _, n := range lens {
		count[n]++
	}
	count[0] = 0
	codes, left := 0, 1<<15
	var offset [16]int
	for n := 1; n < 16; n++ {
		offset[n] = codes
		codes += count[n]
		left -= count[n] << (15 - n)
	}
	switch {
	case left == 0:
	case codes == 0, codes == 1 && count[1] == 1:
		for i := range t[:1<<first] {
			t[i] = invalid
		}
	default:
		return false
	}
	var sorted [288]uint16
	for sym, n := range lens {
		if n != 0 {
			sorted[offset[n]] = uint16(sym)
			offset[n]++
		}
	}
	if left != 0 {
		for i := 0; codes == 1 && i < 1<<first; i += 2 {
			t[i] = withCode(of[sorted[0]], 1)
		}
		return true
	}
	fillTable(t, first, &count, sorted[:codes], of)
	return true
}

// withCode adds the length of a symbol's code to its entry.
func withCode(e entry, n uint) entry {
	return e + entry(n) + entry(n)<<codeShift
}

// fillTable walks the complete code in order of its codes, each reversed as the
// input has them. The table doubles with each bit of length; what is longer than
// the first level's index goes to second levels, which are made as prefixes come up.
func fillTable(t []entry, first uint, count *[16]int, sorted []uint16, of []entry) {
	code, size, n := uint(0), 1, uint(0)
	sub, subBits, end := 0, uint(0), 1<<first
	prefix := ^uint(0)
	for _, sym := range sorted {
		for n == 0 || count[n] == 0 {
			n++
			if n <= first {
				copy(t[size:2*size], t[:size])
				size *= 2
			}
		}
		if n <= first {
			t[code] = withCode(of[sym], n)
		} else {
			if p := code & (1<<first - 1); p != prefix {
				prefix = p
				subBits = depth(count, n, first)
				sub, end = end, end+1<<subBits
				t[p] = second | entry(sub)<<valueShift | entry(subBits)<<codeShift | entry(first)
			}
			for i := code >> first; i < 1<<subBits; i += 1 << (n - first) {
				t[sub+int(i)] = withCode(of[sym], n-first)
			}
		}
		count[n]--
		// The next code: reversed, adding one carries from the top bit down.
		if gap := ^code & (1<<n - 1); gap != 0 {
			top := uint(1) << (bits.Len(gap) - 1)
			code = code&(top-1) | top
		}
	}
	if n < first {
		for ; n < first; n++ {
			copy(t[size:2*size], t[:size])
			size *= 2
		}
	}
}

// depth is the number of index bits of the second-level table that begins with a
// code of n bits: of a complete code, as many as its prefix needs to be full.
func depth(count *[16]int, n, first uint) uint {
	d := n - first
	for room := 1<<d - count[n]; room > 0; {
		d++
		room = room<<1 - count[first+d]
	}
	return d
}

// below is the index of the second-level entry that e and the bits behind it lead to.
func below(e entry, bits uint64) uint64 {
	return uint64(e>>valueShift) + bits&(1<<(e>>codeShift&codeMask)-1)
}

// value is the length or distance of e with its extra bits.
func value(e entry, bits uint64) int {
	return int(e>>valueShift) + int(bits&(1<<(e&usedMask)-1)>>(e>>codeShift&codeMask))
}

// ended tells what the special entry e means.
func ended(e entry) (bool, error) {
	if e>>valueShift != 0 {
		return false, ErrCorrupt
	}
	return true, nil
}
