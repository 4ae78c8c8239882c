package main

import (
	"bytes"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// The journal makes the way of a byte from a container's pipe into its log
// survive kill -9 of this process at any instruction, without loss or repetition.
// It is a memfd and a pipe, of which the daemon holds duplicates. One transaction
// is in flight at a time:
//
//	splicing    The bytes move from the container's pipe into the journal's by
//	            splice(2). That happens under both pipes' locks, in the kernel: a
//	            buffer is in one pipe or the other. We are the journal pipe's only
//	            writer, so its fill (FIONREAD) tells afterwards what was moved.
//	reading     n bytes are in the journal's pipe, and are read into the memfd.
//	            read(2) takes a buffer off a pipe only after it was copied; n less
//	            the pipe's fill is therefore what the memfd holds in full, and
//	            what remains is read again from there on.
//	formatting  All n are in the memfd. Entries are made from them and from the
//	            stream's unfinished line; neither is touched: it can be repeated.
//	writing     The entries and the log's size before the write are in the memfd.
//	            We are the log's only writer and it is opened O_APPEND: its size
//	            now tells how much of a write (which a signal may cut short
//	            between two pages) was done, and the rest is written.
//	applying    The new unfinished line and the counters are put in place. The
//	            record holds values, not differences: it can be repeated.
//
// A step's data is stored before the word that names the step, by an atomic store,
// which the compiler does not move. A killed process has executed all instructions
// before the one it was killed at, so the next one to map the memfd sees them in
// order. The copying into attached clients is outside of this.
const (
	idle = iota
	splicing
	reading
	formatting
	writing
	applying
)

const (
	inSize      = 64 << 10
	outSize     = 160 << 10
	inStart     = 4096
	outStart    = inStart + inSize
	tableStart  = 256 << 10
	maxStreams  = 8192
	entrySize   = 64
	slotStart   = 1 << 20
	journalUsed = slotStart + maxStreams*maxLine
	// keepSlots are the lines whose memory is not given back when they end.
	keepSlots = 16

	journalMagic = 0x31_4c_4e_4a_49_52_43_00 // "\0CRIJNL1"

	finalBit = 1 << 7 // of the word: the line's end will not come
)

// record is the transaction in flight, at the start of the memfd.
type record struct {
	magic  uint64
	high   uint32 // entries from here on were never used; reading them would cost memory
	_      uint32
	word   atomic.Uint64 // step | finalBit | inOff<<16 | n<<40
	stream uint32        // index of its entry

	// Made by formatting.
	outLen, inNext uint32
	markerLen      uint32 // of the loss entry that out begins with
	prefixLen      uint32
	more           uint32 // 1: another round of formatting follows
	base           uint32 // where in the slot the unfinished line goes on
	slot           uint32
	size           int64 // of the log before the write
	dev, ino       uint64

	// Made by writing.
	next counters
}

type counters struct{ bytes, lostBytes, lostLines, pendBytes, pendLines uint64 }

// entry is what the journal keeps of a stream.
type entry struct {
	key  [2]uint64
	part uint64 // unfinished line: slot<<32 | length
	counters
}

// journal is the mapped memfd and its pipe.
type journal struct {
	fd, r, w  int
	m         []byte
	rec       *record
	table     *[maxStreams]entry
	free      []uint16                // entries below high without a stream
	used      [maxStreams / 64]uint64 // slots that hold an unfinished line
	recovered bool
	stamp     stamp
	format    format
}

// mapJournal maps what the daemon has handed over.
func mapJournal(fd, r, w int) (*journal, unix.Errno) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errno(err)
	}
	if st.Size != wire.JournalSize {
		return nil, unix.EINVAL
	}
	m, err := unix.Mmap(fd, 0, journalUsed, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errno(err)
	}
	// Containers' processes shall not even for a moment have it.
	if err := unix.Madvise(m, unix.MADV_DONTFORK); err != nil {
		return nil, errno(err)
	}
	j := &journal{fd: fd, r: r, w: w, m: m}
	j.rec = (*record)(unsafe.Pointer(&m[0]))
	j.table = (*[maxStreams]entry)(unsafe.Pointer(&m[tableStart]))
	j.format.out = m[outStart : outStart : outStart+outSize]
	if j.rec.magic == 0 {
		j.rec.magic = journalMagic
	}
	if j.rec.magic != journalMagic {
		_ = unix.Munmap(m)
		return nil, unix.EPROTO
	}
	j.rec.high = min(j.rec.high, maxStreams)
	for i := range j.rec.high {
		if p := j.table[i].part; uint32(p) != 0 && p>>32 < maxStreams {
			j.used[p>>38] |= 1 << (p >> 32 & 63)
		}
		if j.table[i].key == [2]uint64{} {
			j.free = append(j.free, uint16(i))
		}
	}
	return j, 0
}

func (j *journal) in() []byte { return j.m[inStart : inStart+inSize] }

func (j *journal) step(step uint64, inOff, n int) {
	final := j.rec.word.Load() & finalBit
	j.rec.word.Store(step | final | uint64(inOff)<<16 | uint64(n)<<40)
}

func (j *journal) state() (step uint64, final bool, inOff, n int) {
	w := j.rec.word.Load()
	return w & 0x7f, w&finalBit != 0, int(w >> 16 & 0xffffff), int(w >> 40 & 0xffffff)
}

// streamKey names a stream across monitors: FNV-1a, twice with different starts.
func streamKey(id string, stream int) [2]uint64 {
	k := [2]uint64{0xcbf29ce484222325, 0x9ae16a3b2f90404f}
	for i := range k {
		for n := range len(id) {
			k[i] = (k[i] ^ uint64(id[n])) * 0x100000001b3
		}
		k[i] = (k[i] ^ uint64(stream+1)) * 0x100000001b3
	}
	return k
}

// find looks for an entry that an earlier monitor made; -1 when there is none.
func (j *journal) find(key [2]uint64) int {
	for i := range j.rec.high {
		if j.table[i].key == key {
			return int(i)
		}
	}
	return -1
}

// open makes an entry for a stream; -1 when the table is full.
func (j *journal) open(key [2]uint64) int {
	i := int(j.rec.high)
	if n := len(j.free); n > 0 {
		i = int(j.free[n-1])
		j.free = j.free[:n-1]
	} else if i == maxStreams {
		return -1
	}
	j.table[i] = entry{key: key}
	j.rec.high = max(j.rec.high, uint32(i)+1)
	return i
}

// close frees an entry.
func (j *journal) close(i int) {
	j.release(j.table[i].part)
	j.table[i] = entry{}
	j.free = append(j.free, uint16(i))
}

// slot is the memory of an unfinished line.
func (j *journal) slot(n uint32) []byte {
	at := slotStart + int(n)*maxLine
	return j.m[at : at+maxLine : at+maxLine]
}

// claim takes the lowest free slot: so few are ever touched.
func (j *journal) claim() uint32 {
	for w, bits := range j.used {
		if bits == ^uint64(0) {
			continue
		}
		b := 0
		for bits>>b&1 != 0 {
			b++
		}
		return uint32(w*64 + b)
	}
	return 0 // unreachable: there is a slot for each entry
}

func (j *journal) release(part uint64) {
	if uint32(part) == 0 {
		return
	}
	n := part >> 32
	j.used[n/64] &^= 1 << (n % 64)
	if n >= keepSlots {
		_ = unix.Madvise(j.slot(uint32(n)), unix.MADV_REMOVE)
	}
}

// pump moves up to 64 KiB from a stream into its log. It returns the number of
// bytes, 0 at the end of the stream, or an error of the stream such as EAGAIN.
func (j *journal) pump(s *stream) (int, unix.Errno) {
	j.rec.stream = uint32(s.entry)
	j.rec.word.Store(splicing)
	n, e := splice(s.fd, j.w, inSize)
	if e != 0 || n <= 0 {
		j.rec.word.Store(idle)
		return 0, e
	}
	j.step(reading, 0, n)
	if e := j.fill(0, n); e != 0 {
		return 0, e
	}
	s.c.copyToAttached(s.which, j.in()[:n])
	j.step(formatting, 0, n)
	j.finish(s, false)
	return n, 0
}

// flush ends a stream's unfinished line.
func (j *journal) flush(s *stream) {
	if uint32(j.table[s.entry].part) == 0 {
		return
	}
	j.rec.stream = uint32(s.entry)
	j.rec.word.Store(finalBit | formatting)
	j.finish(s, false)
}

// fill reads bytes have to n from the journal's pipe.
func (j *journal) fill(have, n int) unix.Errno {
	for have < n {
		m, e := read(j.r, j.in()[have:n])
		if e == unix.EINTR {
			continue
		}
		if e != 0 || m == 0 {
			return unix.EIO
		}
		have += m
	}
	return 0
}

// finish carries a transaction through from wherever it stands. resumed says that
// it was another process that took it there.
func (j *journal) finish(s *stream, resumed bool) {
	for ; ; resumed = false {
		switch step, final, off, n := j.state(); step {
		case formatting:
			j.doFormat(s, off, n, final)
		case writing:
			j.doWrite(s, off, n, resumed)
		case applying:
			j.doApply(n)
		default:
			return
		}
	}
}

func (j *journal) doFormat(s *stream, off, n int, final bool) {
	e, f := &j.table[s.entry], &j.format
	f.out = f.out[:0]
	j.stamp.set(time.Now().UnixNano())
	f.prefix.set(&j.stamp, s.name())
	if e.pendLines > 0 {
		f.loss(e.pendBytes, e.pendLines)
	}
	r := j.rec
	r.markerLen = uint32(len(f.out))
	r.prefixLen = uint32(f.prefix.n)
	var part []byte
	if l := uint32(e.part); l > 0 {
		part = j.slot(uint32(e.part >> 32))[:l]
	}
	used, full := f.lines(part, j.in()[off:n], final)
	r.inNext = uint32(off + used)
	r.more = 0
	if full {
		r.more = 1
	}
	r.base, r.slot = 0, uint32(e.part>>32)
	if len(f.out) == int(r.markerLen) { // no entry: the line only grew
		f.out = f.out[:0]
		r.base = uint32(len(part))
	}
	if len(part) == 0 {
		r.slot = j.claim()
	}
	r.outLen = uint32(len(f.out))
	r.next = e.counters
	if r.outLen == 0 {
		j.step(applying, off, n)
		return
	}
	r.size, r.dev, r.ino = s.c.log.stat()
	j.step(writing, off, n)
}

// doWrite writes the entries, and notes what could not be written.
func (j *journal) doWrite(s *stream, off, n int, resumed bool) {
	r := j.rec
	out := j.m[outStart : outStart+int(r.outLen)]
	next := j.table[r.stream].counters
	log := s.c.logFor(r.dev, r.ino)
	done := len(out)
	if log != nil {
		done = 0
		if resumed {
			done = log.done(out, r.size)
		}
		done = log.append(out, done, r.size)
	}
	next.bytes += uint64(done)
	if done >= int(r.markerLen) {
		next.pendBytes, next.pendLines = 0, 0
	}
	if lost := out[max(done, int(r.markerLen)):]; len(lost) > 0 {
		lines := uint64(bytes.Count(lost, []byte{'\n'}))
		size := uint64(len(lost)) - lines*uint64(r.prefixLen+1)
		next.pendBytes += size
		next.pendLines += lines
		next.lostBytes += size
		next.lostLines += lines
	}
	r.next = next
	j.step(applying, off, n)
}

func (j *journal) doApply(n int) {
	r := j.rec
	e := &j.table[r.stream]
	e.counters = r.next
	if r.more == 1 {
		j.release(e.part)
		e.part = 0
		j.step(formatting, int(r.inNext), n)
		return
	}
	tail := j.in()[r.inNext:n]
	length := int(r.base) + len(tail)
	if length == 0 {
		j.release(e.part)
		e.part = 0
	} else {
		copy(j.slot(r.slot)[r.base:], tail)
		j.used[r.slot/64] |= 1 << (r.slot % 64)
		e.part = uint64(r.slot)<<32 | uint64(length)
	}
	j.rec.word.Store(idle)
}

// recover finishes what the last monitor was at. s is the stream of the record, or
// nil when nobody has it any more.
func (j *journal) recover(s *stream) {
	step, _, _, n := j.state()
	fill := pending(j.r)
	if s == nil || step == idle {
		_ = j.fill(0, min(fill, inSize))
		j.rec.word.Store(idle)
		return
	}
	switch step {
	case splicing:
		if fill == 0 {
			j.rec.word.Store(idle)
			return
		}
		n = fill
		j.step(reading, 0, n)
		fallthrough
	case reading:
		if j.fill(n-fill, n) != 0 {
			j.rec.word.Store(idle)
			return
		}
		j.step(formatting, 0, n)
	}
	j.finish(s, true)
}
