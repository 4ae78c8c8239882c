package inflate

import "io"

// huffman decodes symbols until the block ends or the output is full: fast while
// there is plenty of both input and room, carefully at the ends.
func (z *Reader) huffman() error {
	for z.op < outFull {
		end, err := z.fast()
		if !end && err == nil && z.op < outFull {
			end, err = z.symbol()
		}
		if err != nil {
			return err
		}
		if end {
			z.endBlock()
			return nil
		}
	}
	return nil
}

// symbol decodes one turn: a literal, a match, or the block's end.
func (z *Reader) symbol() (end bool, err error) {
	if err := z.peek(); err != nil {
		return false, err
	}
	e := z.lit[z.bits&litMask]
	if e&second != 0 {
		e = z.secondLevel(z.lit[:], e)
	}
	if e&literal != 0 {
		z.drop(e)
		if err := z.missing(); err != nil {
			return false, err
		}
		z.out[z.op] = byte(e >> valueShift)
		z.op++
		return false, nil
	}
	if e&special != 0 {
		if end, err = ended(e); err == nil {
			z.drop(e)
			err = z.missing()
		}
		return end, err
	}
	length := value(e, z.bits)
	z.drop(e)
	d := z.dist[z.bits&distMask]
	if d&second != 0 {
		d = z.secondLevel(z.dist[:], d)
	}
	if d&special != 0 {
		return false, ErrCorrupt
	}
	dist := value(d, z.bits)
	z.drop(d)
	if err := z.missing(); err != nil {
		return false, err
	}
	from := z.op - dist
	if from < z.start {
		return false, ErrCorrupt
	}
	for i := range length {
		z.out[z.op+i] = z.out[from+i]
	}
	z.op += length
	return false, nil
}

// secondLevel follows e, which points to a second-level table of t.
func (z *Reader) secondLevel(t []entry, e entry) entry {
	z.drop(e)
	return t[below(e, z.bits)]
}

// drop consumes e's bits. Of a truncated input there may be fewer: see missing.
func (z *Reader) drop(e entry) {
	z.bits >>= e & usedMask
	z.nb -= uint(e & usedMask)
}

// missing says that more bits were consumed than there were.
func (z *Reader) missing() error {
	if int(z.nb) < 0 {
		z.nb = 0
		return io.ErrUnexpectedEOF
	}
	return nil
}
