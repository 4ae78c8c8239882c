package inflate

import (
	"errors"
	"io"
)

// kept is how much input before ip survives fill: what the bit buffer may give back.
const kept = 8

// fill gets more input behind what is there.
func (z *Reader) fill() error {
	if z.srcErr != nil {
		return z.srcErr
	}
	from := max(0, z.ip-kept)
	z.ie = copy(z.in[:], z.in[from:z.ie])
	z.ip -= from
	for range 100 {
		n, err := z.src.Read(z.in[z.ie:inSize])
		if n < 0 || n > inSize-z.ie {
			return errors.New("gzip: underlying reader gave an impossible count")
		}
		z.ie += n
		if n > 0 {
			z.srcErr = err
			return nil
		}
		if err != nil {
			z.srcErr = err
			return err
		}
	}
	return io.ErrNoProgress
}

// noEOF makes an end of input where more must come an error.
func noEOF(err error) error {
	if err == io.EOF { //nolint:errorlint // readers return it bare
		return io.ErrUnexpectedEOF
	}
	return err
}

// take gives the next n bits, at most 32.
func (z *Reader) take(n uint) (uint, error) {
	for z.nb < n {
		if z.ip == z.ie {
			if err := z.fill(); err != nil {
				return 0, noEOF(err)
			}
		}
		z.bits |= uint64(z.in[z.ip]) << z.nb
		z.ip++
		z.nb += 8
	}
	v := uint(z.bits & (1<<n - 1))
	z.bits >>= n
	z.nb -= n
	return v, nil
}

// peek fills the bit buffer with at least 48 bits, the longest pair of length and
// distance, or with all that is left before the end of the input: bits behind are 0.
func (z *Reader) peek() error {
	for z.nb < 48 {
		if z.ip == z.ie {
			if err := z.fill(); err == io.EOF { //nolint:errorlint // readers return it bare
				return nil
			} else if err != nil {
				return err
			}
		}
		z.bits |= uint64(z.in[z.ip]) << z.nb
		z.ip++
		z.nb += 8
	}
	return nil
}

// align drops bits up to the next byte and gives whole bytes back to the input.
func (z *Reader) align() {
	z.ip -= int(z.nb >> 3)
	z.bits, z.nb = 0, 0
}

// next gives the next byte of an aligned input.
func (z *Reader) next() (byte, error) {
	if z.ip == z.ie {
		if err := z.fill(); err != nil {
			return 0, err
		}
	}
	c := z.in[z.ip]
	z.ip++
	return c, nil
}

// nextN fills p from an aligned input. Only an input that ends before the first byte
// is io.EOF.
func (z *Reader) nextN(p []byte) error {
	for i := range p {
		c, err := z.next()
		if err != nil {
			if i > 0 {
				err = noEOF(err)
			}
			return err
		}
		p[i] = c
	}
	return nil
}
