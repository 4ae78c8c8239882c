package inflate

import "encoding/binary"

const turnInput = 24 // input that one turn of the fast loop may look at

// fast decodes while one turn can neither run out of input nor of room. It keeps the
// whole state in registers; bits above nb are those of the input that follow.
func (z *Reader) fast() (end bool, err error) {
	last := z.ie - turnInput
	if z.ip > last {
		return false, nil
	}
	ip, op, bits, nb := z.ip, z.op, z.bits, z.nb
	bits |= binary.LittleEndian.Uint64(z.in[ip:]) << (nb & 63)
	ip += int(^nb >> 3 & 7)
	nb |= 56
	e := z.lit[bits&litMask]
	for ip <= last && op < outFull {
		bits |= binary.LittleEndian.Uint64(z.in[ip:]) << (nb & 63)
		ip += int(^nb >> 3 & 7)
		nb |= 56
		if e&literal != 0 {
			z.out[op] = byte(e >> valueShift)
			op++
			bits >>= e & usedMask
			nb -= uint(e)
			e = z.lit[bits&litMask]
			if e&literal != 0 {
				z.out[op] = byte(e >> valueShift)
				op++
				bits >>= e & usedMask
				nb -= uint(e)
				e = z.lit[bits&litMask]
				if e&literal != 0 {
					z.out[op] = byte(e >> valueShift)
					op++
					bits >>= e & usedMask
					nb -= uint(e)
					e = z.lit[bits&litMask]
					continue
				}
			}
		}
		if e&(special|second) != 0 {
			if e&second != 0 {
				bits >>= litBits
				nb -= litBits
				e = z.lit[(uint64(e>>valueShift)+bits&(1<<(e>>codeShift&codeMask)-1))%litSize]
				if e&literal != 0 {
					z.out[op] = byte(e >> valueShift)
					op++
					bits >>= e & usedMask
					nb -= uint(e)
					e = z.lit[bits&litMask]
					continue
				}
			}
			if e&special != 0 {
				bits >>= e & usedMask
				nb -= uint(e)
				end = e>>valueShift == 0
				if !end {
					err = ErrCorrupt
				}
				break
			}
		}
		length := int(e>>valueShift) + int(bits&(1<<(e&usedMask)-1)>>(e>>codeShift&codeMask))
		bits >>= e & usedMask
		nb -= uint(e)

		bits |= binary.LittleEndian.Uint64(z.in[ip:]) << (nb & 63)
		ip += int(^nb >> 3 & 7)
		nb |= 56
		e = z.dist[bits&distMask]
		if e&(special|second) != 0 {
			if e&second != 0 {
				bits >>= distBits
				nb -= distBits
				e = z.dist[(uint64(e>>valueShift)+bits&(1<<(e>>codeShift&codeMask)-1))%distSize]
			}
			if e&special != 0 {
				err = ErrCorrupt
				break
			}
		}
		dist := int(e>>valueShift) + int(bits&(1<<(e&usedMask)-1)>>(e>>codeShift&codeMask))
		bits >>= e & usedMask
		nb -= uint(e)
		e = z.lit[bits&litMask]
		from := op - dist
		if from < z.start {
			err = ErrCorrupt
			break
		}
		to := op + length
		if dist >= 8 {
			for {
				binary.LittleEndian.PutUint64(z.out[op:], binary.LittleEndian.Uint64(z.out[from:]))
				op += 8
				from += 8
				if op >= to {
					break
				}
			}
		} else {
			for ; op < to; op++ {
				z.out[op] = z.out[from]
				from++
			}
		}
		op = to
	}
	nb &= 63
	z.ip, z.op = ip-int(nb>>3), op
	z.nb = nb & 7
	z.bits = bits & (1<<z.nb - 1)
	return end, err
}
