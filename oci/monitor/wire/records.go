package wire

// Exit is how a process ended.
type Exit struct {
	Status uint32 // wait status as wait4 gives it, valid when Known
	Known  bool   // false: it ended while nobody was its parent
	At     int64  // nanoseconds of wall clock
	Boot   int64  // nanoseconds since boot, which nobody sets back
}

// Put appends x.
func (x *Exit) Put(e *Buf) {
	e.U32(x.Status)
	known := uint32(0)
	if x.Known {
		known = 1
	}
	e.U32(known)
	e.U64(uint64(x.At))
	e.U64(uint64(x.Boot))
}

// Get reads x.
func (x *Exit) Get(r *Reader) {
	x.Status = r.U32()
	x.Known = r.U32() == 1
	x.At = int64(r.U64())
	x.Boot = int64(r.U64())
}

// recordMagic begins an exit record on disk; the last letter is its version.
const recordMagic = "cri-exit1"

// Record makes the content of an exit record file.
func (x *Exit) Record(b []byte) []byte {
	e := Buf{B: append(b[:0], recordMagic...)}
	x.Put(&e)
	return e.B
}

// ParseRecord reads an exit record file.
func ParseRecord(b []byte) (Exit, bool) {
	var x Exit
	if len(b) < len(recordMagic) || string(b[:len(recordMagic)]) != recordMagic {
		return x, false
	}
	r := Reader{B: b[len(recordMagic):]}
	x.Get(&r)
	return x, !r.Bad
}

// Program is what Spawn runs.
type Program struct {
	Path string
	Args []string
	Env  []string
	Dir  string
}

// Put appends p.
func (p *Program) Put(e *Buf) {
	e.Str(p.Path)
	e.Strs(p.Args)
	e.Strs(p.Env)
	e.Str(p.Dir)
}

// Get reads p.
func (p *Program) Get(r *Reader) {
	p.Path = r.Str()
	p.Args = r.Strs()
	p.Env = r.Strs()
	p.Dir = r.Str()
}

// LogStats counts what a container wrote.
type LogStats struct {
	Bytes     uint64 // written to the log, prefixes included
	LostBytes uint64 // could not be written, over its life
	LostLines uint64
}

// Put appends s.
func (s *LogStats) Put(e *Buf) {
	e.U64(s.Bytes)
	e.U64(s.LostBytes)
	e.U64(s.LostLines)
}

// Get reads s.
func (s *LogStats) Get(r *Reader) {
	s.Bytes = r.U64()
	s.LostBytes = r.U64()
	s.LostLines = r.U64()
}

// JournalSize is how large the journal memfd is. It is sparse: what nobody touches
// costs nothing. Its layout is the monitor's own affair.
const JournalSize = 160 << 20
