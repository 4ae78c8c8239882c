package inflate

import (
	"encoding/binary"
	"hash/crc32"
)

// Flags of a member's header, RFC 1952 section 2.3.1.
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagReserved  = 0xe0
)

// maxString bounds name and comment with their final zero, as compress/gzip does.
const maxString = 512

// header reads a member's header. io.EOF says that there is no further member.
func (z *Reader) header() error {
	var h [10]byte
	if err := z.nextN(h[:]); err != nil {
		return err
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 || h[3]&flagReserved != 0 {
		return ErrHeader
	}
	crc := crc32.ChecksumIEEE(h[:])
	for _, field := range []struct {
		flag byte
		skip func(uint32) (uint32, error)
	}{{flagExtra, z.extra}, {flagName, z.zeroEnded}, {flagComment, z.zeroEnded}} {
		if h[3]&field.flag == 0 {
			continue
		}
		var err error
		if crc, err = field.skip(crc); err != nil {
			return noEOF(err)
		}
	}
	if h[3]&flagHeaderCRC != 0 {
		if err := z.nextN(h[:2]); err != nil {
			return noEOF(err)
		}
		if binary.LittleEndian.Uint16(h[:2]) != uint16(crc) {
			return ErrHeader
		}
	}
	z.crc, z.size = 0, 0
	z.start = z.op
	z.phase = atBlock
	return nil
}

// extra skips the extra field and adds it to the header's checksum.
func (z *Reader) extra(crc uint32) (uint32, error) {
	var b [2]byte
	if err := z.nextN(b[:]); err != nil {
		return 0, err
	}
	crc = crc32.Update(crc, crc32.IEEETable, b[:])
	for range binary.LittleEndian.Uint16(b[:]) {
		if err := z.nextN(b[:1]); err != nil {
			return 0, err
		}
		crc = crc32.Update(crc, crc32.IEEETable, b[:1])
	}
	return crc, nil
}

// zeroEnded skips a string and adds it to the header's checksum.
func (z *Reader) zeroEnded(crc uint32) (uint32, error) {
	var b [1]byte
	for range maxString {
		if err := z.nextN(b[:]); err != nil {
			return 0, err
		}
		crc = crc32.Update(crc, crc32.IEEETable, b[:])
		if b[0] == 0 {
			return crc, nil
		}
	}
	return 0, ErrHeader
}

// trailer checks what follows a member's last block.
func (z *Reader) trailer() error {
	var t [8]byte
	z.align()
	if err := z.nextN(t[:]); err != nil {
		return noEOF(err)
	}
	if binary.LittleEndian.Uint32(t[:4]) != z.crc || binary.LittleEndian.Uint32(t[4:]) != z.size {
		return ErrChecksum
	}
	z.phase = atHeader
	return nil
}
