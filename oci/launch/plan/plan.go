// Package plan is a launch as data: a list of system calls with their arguments,
// which a freshly cloned child carries out before it becomes the container's
// process.
//
// The daemon builds a Plan and marshals it into one blob; the monitor loads the
// blob, which checks every index and offset, and starts it. Between clone and
// execve the child is a copy of one thread of a Go process, so the interpreter
// uses no runtime service: no allocation, no stack growth, no locks, only raw
// system calls on memory that was prepared before.
//
// A child runs on a stack of its own, and this, the interpreter's memory and the plan lie in
// one mapping that is made for the launch. A caller may keep all its other memory from being
// copied for the child (see Isolate): a clone costs as much as there is to copy.
//
// The package is linked into the monitor and therefore imports neither fmt, os,
// reflect nor encoding; its errors are errno numbers and step indexes, which the
// daemon turns into words. It refuses plans of another format version. It starts
// no goroutine and leaves nothing on disk.
package plan

import "syscall"

// Limits of the format.
const (
	MaxSlots  = 512
	MaxInputs = 400
	maxIns    = 1 << 16
	maxData   = 1 << 24
	insSize   = 64
	headSize  = 64
	magic     = 0x4e414c5049524300 // "\0CRIPLAN" in memory order
	version   = 1
)

// Op is what an instruction does: below FirstComposite the number of a system call.
type Op uint16

// The composites do what a flat list of calls cannot express.
const (
	FirstComposite Op = 0xff00 + iota
	// Prelude makes the child undumpable, resets its signals, moves the inputs
	// into one block of close-on-exec descriptors and closes all others. It is
	// the first instruction of every plan.
	Prelude
	// Wait reads one byte from slot a0 and fails with EPIPE at its end.
	Wait
	// Clone makes a sibling by clone3 with CLONE_PARENT and flags a0, which goes
	// on with the plan; both report its pid, and this process ends.
	Clone
	// Poke stores a1 at data address a0; a2 is the width in bytes, 4 or 8.
	Poke
	// SendFD sends descriptor a1 over socket a0.
	SendFD
	// MkPath makes path a1 below root a0 where it is missing and gives an O_PATH
	// descriptor of it. a2 are the Mk flags, a3 the mode of what is made.
	MkPath
	// Mask hides path a1 below root a0, if it exists: a directory by a clone of
	// tree a2, anything else by a clone of descriptor a3.
	Mask
	// ReadOnly puts a read-only clone of path a1 below root a0 over itself, if it
	// exists. a2 is the address of a mount_attr.
	ReadOnly
	// CheckFD fails unless descriptor a0 is what a1 (a Check) with a2, a3 says.
	CheckFD
	// CheckCwd fails with EXDEV unless the working directory is below the root.
	CheckCwd
	// CheckRoot fails with EXDEV unless the mount of descriptor a0 is the root and
	// nothing lies on top of it.
	CheckRoot
	// ChownPipe gives descriptor a0 to user a1 and group a2 if it is a pipe or
	// a socket. Devices are left alone: /dev/null belongs to the host.
	ChownPipe
	// CapSet sets effective a0, permitted a1 and inheritable a2, each less what
	// this process does not have.
	CapSet
	// Skip leaves out the next a2 instructions if slot a0 holds a1, or with a3
	// set, if it does not.
	Skip
	// Ready reports that nothing but the exec is left.
	Ready
	// Exec tries a1 paths of the pointer table a0 with argv a2 and envp a3, as
	// the shell searches PATH.
	Exec
	// DropBounding takes all capabilities but those of the mask a0 from the bounding set.
	DropBounding
	endComposite
)

// Flags of MkPath.
const (
	MkFile    = 1 << iota // the last component is a file, not a directory
	MkNoLinks             // refuse symbolic links on the way and at the end
	MkNoProc              // refuse what lies on procfs
	MkLike                // a file unless descriptor a4 is a directory
)

// Checks of CheckFD.
const (
	CheckCharDev  = 1 + iota // character device a2:a3, else ENODEV
	CheckBlockDev            // block device a2:a3, else ENODEV
	CheckFS                  // filesystem magic a2, else EMEDIUMTYPE
	CheckFIFO                // a FIFO, else ENODEV
)

// Steps of status records that are no failed instruction.
const (
	// StepClone announces the second stage's pid in the errno field. Either stage does.
	StepClone = 0xffffffff
	// StepReady says that only the exec is left: an end of file without it means
	// that the child died while it was being set up.
	StepReady = 0xfffffffe
)

// ArgKind says how an argument is meant.
type ArgKind uint8

// The kinds of arguments.
const (
	Imm  ArgKind = iota // the value itself
	Data                // an offset into Plan.Data
	Slot                // the content of a slot
)

// Arg is an argument of an instruction.
type Arg struct {
	V    uint64
	Kind ArgKind
}

// I is an immediate argument.
func I[T ~int | ~int32 | ~int64 | ~uint32 | ~uint64 | ~uint16](v T) Arg { return Arg{V: uint64(v)} }

// S is the content of a slot.
func S(slot int) Arg { return Arg{V: uint64(slot), Kind: Slot} }

// At is the address of an offset into the plan's data.
func At(off int) Arg { return Arg{V: uint64(off), Kind: Data} }

// NoOut is the Out of an instruction whose result is not kept.
const NoOut = -1

// Ins is one instruction.
type Ins struct {
	Op   Op
	Args []Arg
	// Out is the slot that takes the result, or the negated errno if that is
	// tolerated; NoOut keeps nothing.
	Out int
	// Tolerate are up to four errnos that do not end the launch.
	Tolerate []syscall.Errno
	// TolerateAny lets the launch go on whatever happens.
	TolerateAny bool
}

// Plan is a launch. The zero value is not usable; see New.
type Plan struct {
	// CloneFlags are the namespaces that the first clone makes.
	CloneFlags uint64
	// CgroupInput is the input whose cgroup v2 directory the child is cloned
	// into, or -1.
	CgroupInput int
	// Inputs is the number of descriptors handed over; they are slots 0 to
	// Inputs-1. Start adds the status pipe as slot Inputs.
	Inputs int
	Ins    []Ins
	Data   []byte
	// Relocs are offsets of 8-byte words in Data that hold an offset into Data
	// and become addresses.
	Relocs []uint32

	slots   int
	strings map[string]int
	shapes  map[int]shape // what lies at an offset, for Format
	blobs   map[int]int
}

// shape is a structure of 64-bit words in the data.
type shape struct{ words int }

// New starts a plan with a number of inputs.
func New(inputs int) *Plan {
	return &Plan{
		CgroupInput: -1, Inputs: inputs, slots: inputs + 1,
		strings: map[string]int{}, shapes: map[int]shape{}, blobs: map[int]int{},
	}
}

// Status is the slot of the status pipe.
func (p *Plan) Status() int { return p.Inputs }

// NewSlot reserves a slot.
func (p *Plan) NewSlot() int {
	p.slots++
	return p.slots - 1
}

// Bytes puts b into the data, aligned to 8 bytes, and gives its address.
func (p *Plan) Bytes(b []byte) Arg {
	at := p.put(b)
	p.blobs[int(at.V)] = len(b)
	return at
}

func (p *Plan) put(b []byte) Arg {
	for len(p.Data)%8 != 0 {
		p.Data = append(p.Data, 0)
	}
	off := len(p.Data)
	p.Data = append(p.Data, b...)
	return At(off)
}

// Str puts a NUL-terminated string into the data, once, and gives its address.
func (p *Plan) Str(s string) Arg {
	off, ok := p.strings[s]
	if !ok {
		off = int(p.put(append([]byte(s), 0)).V)
		p.strings[s] = off
	}
	return At(off)
}

// Words puts 64-bit words into the data; Data arguments become addresses.
func (p *Plan) Words(ws ...Arg) Arg {
	b := make([]byte, 0, 8*len(ws))
	for _, w := range ws {
		b = put64(b, w.V)
	}
	at := p.put(b)
	p.shapes[int(at.V)] = shape{len(ws)}
	for i, w := range ws {
		if w.Kind == Data {
			p.Relocs = append(p.Relocs, uint32(int(at.V)+8*i))
		}
	}
	return at
}

// Table puts a NULL-terminated table of strings into the data, as execve wants it.
func (p *Plan) Table(ss []string) Arg {
	ws := make([]Arg, 0, len(ss)+1)
	for _, s := range ss {
		ws = append(ws, p.Str(s))
	}
	return p.Words(append(ws, Arg{})...)
}

// Add appends an instruction and returns its index.
func (p *Plan) Add(in Ins) int {
	p.Ins = append(p.Ins, in)
	return len(p.Ins) - 1
}

// Marshal gives the form in which a plan is handed to the monitor.
func (p *Plan) Marshal() []byte {
	b := make([]byte, 0, headSize+len(p.Ins)*insSize+len(p.Relocs)*4+len(p.Data)+32)
	b = put64(b, magic)
	for _, v := range []int{version, p.Inputs, p.slots, len(p.Ins), len(p.Relocs), len(p.Data) + 1} {
		b = put32(b, uint32(v))
	}
	b = put64(b, p.CloneFlags)
	b = put64(b, uint64(int64(p.CgroupInput)))
	for len(b) < headSize {
		b = append(b, 0)
	}
	for _, in := range p.Ins {
		b = in.marshal(b)
	}
	for _, r := range p.Relocs {
		b = put32(b, r)
	}
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	// The last byte is NUL, so that no string can run past the end.
	return append(append(b, p.Data...), 0)
}

func (in Ins) marshal(b []byte) []byte {
	var data, slot, flags uint64
	for i, a := range in.Args {
		switch a.Kind {
		case Data:
			data |= 1 << i
		case Slot:
			slot |= 1 << i
		case Imm:
		}
	}
	if in.TolerateAny {
		flags = flagAny
	}
	b = put64(b, uint64(in.Op)|data<<16|slot<<24|uint64(uint16(in.Out+1))<<32|flags<<48)
	for i := range 6 {
		var v uint64
		if i < len(in.Args) {
			v = in.Args[i].V
		}
		b = put64(b, v)
	}
	var tol uint64
	for i, e := range in.Tolerate {
		tol |= uint64(uint16(e)) << (16 * i)
	}
	return put64(b, tol)
}

// flagAny marks an instruction whose failure never matters.
const flagAny = 1

func put32(b []byte, v uint32) []byte {
	return append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
}

func put64(b []byte, v uint64) []byte { return put32(put32(b, uint32(v)), uint32(v>>32)) }

func get32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func get64(b []byte) uint64 { return uint64(get32(b)) | uint64(get32(b[4:]))<<32 }
