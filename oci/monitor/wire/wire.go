// Package wire is what the daemon and the monitor say to each other, byte for byte.
//
// A message is one packet on a SOCK_SEQPACKET socket: a header of 16 bytes, then a
// body of little-endian numbers and length-prefixed strings. Descriptors travel
// beside it (SCM_RIGHTS), in the order of the bits of Header.Files, then
// Header.Extra more. The kernel takes at most 253 with one packet (SCM_MAX_FD), so
// that the first ones of a larger set go ahead in packets of type Fds.
//
// The package is linked into the monitor and therefore imports nothing that would
// make it grow: no fmt, no reflection. It refuses packets that are cut short, and
// names that could leave a directory. It has no goroutines and no files.
package wire

// Version is the protocol spoken here. A daemon upgrades an older monitor in place
// and refuses a newer one.
const Version = 2

// MaxFds is the kernel's limit for one packet.
const MaxFds = 253

// MaxPacket bounds a packet of the monitor, and what a daemon sends before it knows the
// monitor's version. MaxRequest bounds other requests; larger things travel in memfds.
const (
	MaxPacket  = 8192
	MaxRequest = 48 << 10
)

// HeaderLen is the size of an encoded Header.
const HeaderLen = 16

// MaxID bounds the names of containers and exec sessions.
const MaxID = 128

// Type says what a packet is.
type Type uint16

// Requests of the daemon.
const (
	Hello      Type = iota + 1 // version
	Journal                    // journal memfd and pipe, for a monitor without
	Fds                        // the first descriptors of the next packet
	Start                      // id, flags, plan unless it is a file; its inputs as Extra
	Spawn                      // id, flags; a Program in a memfd
	Adopt                      // id, flags, pid
	Reopen                     // id
	Attach                     // id, number
	Detach                     // id, number
	CloseStdin                 // id
	Forget                     // id
	List                       // -
	Restore                    // id, flags, pid, start time
	Recover                    // -: all are restored, finish what was in flight
	Upgrade                    // path of the new program
	Shutdown                   // flags: 1 = although something runs
	Stats                      // id
	Kill                       // id: end a launch that hangs
)

// Answers and reports of the monitor. Reports have sequence number 0.
const (
	OK       Type = iota + 0x80 // -
	Failed                      // step, errno
	HelloOK                     // version, pid, flags
	Started                     // pid, start time
	Item                        // one of List's: id, flags, pid, start time, exit
	Exited                      // report: id, exit
	Detached                    // report: id, number: an attached client was too slow
	StatsOK                     // counters
	Replaced                    // report: another daemon has connected
)

// The descriptors of a packet, in the order in which they travel.
const (
	FilePidfd    uint32 = 1 << iota
	FileLog             // the container's log
	FileLogNext         // in Restore: the log of a Reopen that was not answered
	FileStdout          // read end
	FileStderr          // read end
	FileStdin           // write end
	FileMaster          // of the container's terminal
	FilePlan            // the serialised launch plan, when it is too large for the packet
	FilePTYSock         // where the launch sends its terminal's master to
	FileProgram         // the serialised Program
	FileIn              // standard input of a spawned program
	FileOut             // its standard output
	FileErr             // its standard error
	FileJournal         // journal memfd
	FileJournalR        // the journal's pipe
	FileJournalW
	FileAttachOut
	FileAttachErr
	fileEnd
)

// Files counts the descriptors that a mask names.
func Files(mask uint32) int {
	n := 0
	for ; mask != 0; mask &= mask - 1 {
		n++
	}
	return n
}

// What is known of a container or session; part of Start, Spawn, Restore and Item.
const (
	FlagTTY       uint32 = 1 << iota // its output comes from a terminal
	FlagEphemeral                    // leaves no exit record, and is forgotten once its exit was told
	FlagExited                       // Item: the exit follows
	FlagLaunching                    // Item: exec has not succeeded yet
	FlagOrphan                       // Restore: not our child
)

// FlagJournal in HelloOK: the monitor has a journal and sends it along.
const FlagJournal uint32 = 1

// Steps of a Failed answer that no plan has.
const (
	StepSpawn = 0xfffffff0 // the request itself
	StepDied  = 0xfffffff1 // the child died while it was set up
)

// Header precedes every body.
type Header struct {
	Type  Type
	Seq   uint32
	Files uint32 // mask
	Extra uint32 // how many descriptors follow those of the mask
}

// NumFiles is how many descriptors belong to the packet.
func (h *Header) NumFiles() int { return Files(h.Files) + int(h.Extra) }

// Begin starts an encoded packet in b's storage.
func (h *Header) Begin(b []byte) Buf {
	e := Buf{B: b[:0]}
	e.U32(uint32(h.Type))
	e.U32(h.Seq)
	e.U32(h.Files)
	e.U32(h.Extra)
	return e
}

// Parse takes the header off a packet.
func Parse(p []byte) (Header, Reader, bool) {
	r := Reader{B: p}
	h := Header{Type: Type(r.U32()), Seq: r.U32(), Files: r.U32(), Extra: r.U32()}
	ok := !r.Bad && h.Files < fileEnd && h.Extra <= 1024
	return h, r, ok
}

// Buf appends values.
type Buf struct{ B []byte }

// U32 appends a number.
func (e *Buf) U32(v uint32) { e.B = append(e.B, byte(v), byte(v>>8), byte(v>>16), byte(v>>24)) }

// U64 appends a number.
func (e *Buf) U64(v uint64) { e.U32(uint32(v)); e.U32(uint32(v >> 32)) }

// Str appends a string with its length.
func (e *Buf) Str(s string) { e.U32(uint32(len(s))); e.B = append(e.B, s...) }

// Bytes appends a byte string with its length.
func (e *Buf) Bytes(b []byte) { e.U32(uint32(len(b))); e.B = append(e.B, b...) }

// Strs appends a list of strings.
func (e *Buf) Strs(l []string) {
	e.U32(uint32(len(l)))
	for _, s := range l {
		e.Str(s)
	}
}

// Reader takes values off; Bad is set, and zeros returned, when there are too few.
type Reader struct {
	B   []byte
	Bad bool
}

func (r *Reader) take(n int) []byte {
	if r.Bad || n < 0 || n > len(r.B) {
		r.Bad = true
		return nil
	}
	b := r.B[:n]
	r.B = r.B[n:]
	return b
}

// U32 reads a number.
func (r *Reader) U32() uint32 {
	b := r.take(4)
	if b == nil {
		return 0
	}
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// U64 reads a number.
func (r *Reader) U64() uint64 {
	lo := uint64(r.U32())
	return lo | uint64(r.U32())<<32
}

// Str reads a string.
func (r *Reader) Str() string { return string(r.take(int(r.U32()))) }

// Bytes reads a byte string, which stays part of the packet.
func (r *Reader) Bytes() []byte { return r.take(int(r.U32())) }

// Strs reads a list of strings.
func (r *Reader) Strs() []string {
	n := int(r.U32())
	if n > len(r.B)/4 {
		r.Bad = true
		return nil
	}
	l := make([]string, 0, n)
	for range n {
		l = append(l, r.Str())
	}
	return l
}

// ValidID tells whether id can be a file name in the exits directory.
func ValidID(id string) bool {
	if id == "" || len(id) > MaxID || id[0] == '.' {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}
