package inflate

import "encoding/binary"

// turnInput is how much input one turn of the fast loop may look at.
const turnInput = 24

// fast decodes while one turn can neither run out of input nor of room. The state is
// in local variables, so that the compiler keeps it in registers; bits above nb are
// those of the input that follow, and of nb itself only six bits count.
//
// One filling of the bit buffer gives 56 bits or more: two literals of the first
// level and the longest length (2*11 + 15+5), or the longest distance and the index
// of what follows (15+13 + 11). Looking that up before the match is copied lets the
// processor do both at once. All indices are masked, which spares checking them:
// turnInput and slack see to it that no mask ever changes one.
func (z *Reader) fast() (end bool, err error) { //nolint:cyclop // a call or a closure would cost the registers
	last := z.ie - turnInput
	if z.ip > last {
		return false, nil
	}
	bits, nb, ip := z.refill(z.bits, z.nb, z.ip)
	op := z.op
	e := z.lit[bits&litMask]
	for ip <= last && op < outFull {
		bits, nb, ip = z.refill(bits, nb, ip)
		if e&literal != 0 {
			op, bits, nb = z.put(e, op, bits, nb)
			if e = z.lit[bits&litMask]; e&literal != 0 {
				op, bits, nb = z.put(e, op, bits, nb)
				if e = z.lit[bits&litMask]; e&literal != 0 {
					op, bits, nb = z.put(e, op, bits, nb)
					e = z.lit[bits&litMask]
					continue
				}
			}
		}
		if e&(second|special) != 0 {
			if e&second != 0 {
				bits, nb = bits>>litBits, nb-litBits
				e = z.lit[below(e, bits)%litSize]
				if e&literal != 0 {
					op, bits, nb = z.put(e, op, bits, nb)
					e = z.lit[bits&litMask]
					continue
				}
			}
			if e&special != 0 {
				bits, nb = bits>>(e&usedMask), nb-uint(e)
				end, err = ended(e)
				break
			}
		}
		to := op + value(e, bits)
		bits, nb, ip = z.refill(bits>>(e&usedMask), nb-uint(e), ip)
		e = z.dist[bits&distMask]
		if e&second != 0 {
			bits, nb = bits>>distBits, nb-distBits
			e = z.dist[below(e, bits)%distSize]
		}
		dist := value(e, bits)
		from := op - dist
		if e&special != 0 || from < z.start {
			err = ErrCorrupt
			break
		}
		bits, nb = bits>>(e&usedMask), nb-uint(e)
		e = z.lit[bits&litMask]
		if dist < 16 {
			z.near(op, from, to)
			op = to
			continue
		}
		for ; op < to; op, from = op+16, from+16 {
			*(*[16]byte)(z.out[op&outMask : op&outMask+16]) = *(*[16]byte)(z.out[from&outMask : from&outMask+16])
		}
		op = to
	}
	nb &= 63
	z.ip, z.op = ip-int(nb>>3), op
	z.nb = nb & 7
	z.bits = bits & (1<<z.nb - 1)
	return end, err
}

// refill adds as many whole bytes as fit. Bits of the byte behind them get in as
// well, and are the same when that byte's turn comes.
func (z *Reader) refill(bits uint64, nb uint, ip int) (newBits uint64, newNb uint, newIP int) {
	bits |= binary.LittleEndian.Uint64(z.in[ip&inMask:ip&inMask+8]) << (nb & 63)
	return bits, nb | 56, ip + int(^nb>>3&7)
}

// put writes e's literal.
func (z *Reader) put(e entry, op int, bits uint64, nb uint) (newOp int, newBits uint64, newNb uint) {
	z.out[op&outMask] = byte(e >> valueShift)
	return op + 1, bits >> (e & usedMask), nb - uint(e)
}

// near copies a match that is less than 16 bytes away, writing less than 16 bytes too
// many. What is less than 8 away overlaps even a single word, of which only as much
// as the distance is right, then.
func (z *Reader) near(op, from, to int) {
	step := min(8, op-from)
	if step == 1 {
		word := uint64(z.out[from&outMask]) * 0x0101010101010101
		for ; op < to; op += 8 {
			binary.LittleEndian.PutUint64(z.out[op&outMask:op&outMask+8], word)
		}
		return
	}
	for ; op < to; op, from = op+step, from+step {
		binary.LittleEndian.PutUint64(z.out[op&outMask:op&outMask+8], binary.LittleEndian.Uint64(z.out[from&outMask:from&outMask+8]))
	}
}
