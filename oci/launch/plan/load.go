package plan

import (
	"syscall"
	"unsafe"

	"github.com/cri-runtime/cri-runtime/internal/linux/clone"
)

// Loaded is a plan that was checked and can be started. It lies in a mapping of its own,
// with all that a child needs to run it.
type Loaded struct {
	// Inputs is the number of descriptors that Start wants.
	Inputs int
	// CloneFlags and CgroupInput are the plan's own.
	CloneFlags  uint64
	CgroupInput int

	mapped []byte
	m      *machine
}

// stackSize is much more than the linker lets functions use that cannot grow their stack.
const stackSize = 8 << 10

// planOffset is where the plan lies in the mapping: after two stacks and the machine.
const planOffset = (2*stackSize + int(unsafe.Sizeof(machine{})) + 4095) &^ 4095

// newMapping makes the memory of a launch. It is private: what the child writes to it is the
// child's.
func newMapping(size int) ([]byte, syscall.Errno) {
	b, err := syscall.Mmap(-1, 0, planOffset+size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
	if err != nil {
		return nil, errno(err)
	}
	return b, 0
}

// Map loads the plan in a memfd. EINVAL is a malformed plan, EPROTO one of another version.
func Map(fd int) (*Loaded, syscall.Errno) {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, errno(err)
	}
	if st.Size < headSize || st.Size > headSize+maxIns*insSize+2*maxData {
		return nil, syscall.EINVAL
	}
	b, e := newMapping(int(st.Size))
	if e != 0 {
		return nil, e
	}
	for at := planOffset; at < len(b); {
		n, err := syscall.Pread(fd, b[at:], int64(at-planOffset))
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n == 0 {
			_ = syscall.Munmap(b)
			return nil, syscall.EINVAL
		}
		at += n
	}
	return load(b)
}

// Load loads a marshalled plan.
func Load(p []byte) (*Loaded, syscall.Errno) {
	b, e := newMapping(len(p))
	if e != 0 {
		return nil, e
	}
	copy(b[planOffset:], p)
	return load(b)
}

// load takes a mapping over.
func load(b []byte) (*Loaded, syscall.Errno) {
	l, e := prepare(b)
	if e != 0 {
		_ = syscall.Munmap(b)
		return nil, e
	}
	l.mapped = b
	return l, 0
}

// Unmap releases the plan's memory.
func (l *Loaded) Unmap() {
	if l.mapped != nil {
		_ = syscall.Munmap(l.mapped)
		l.mapped, l.m = nil, nil
	}
}

// header is the fixed part of a marshalled plan.
type header struct{ inputs, slots, ins, relocs, data int }

// prepare checks the plan in a mapping and makes it ready in place.
func prepare(mapped []byte) (*Loaded, syscall.Errno) { //nolint:cyclop // a flat list of checks
	b := mapped[planOffset:]
	if len(b) < headSize || get64(b) != magic {
		return nil, syscall.EINVAL
	}
	if get32(b[8:]) != version {
		return nil, syscall.EPROTO
	}
	h := header{int(get32(b[12:])), int(get32(b[16:])), int(get32(b[20:])), int(get32(b[24:])), int(get32(b[28:]))}
	if h.inputs > MaxInputs || h.slots > MaxSlots || h.inputs >= h.slots || h.ins == 0 || h.ins > maxIns ||
		h.relocs > maxData || h.data > maxData || h.data < 1 {
		return nil, syscall.EINVAL
	}
	insEnd := headSize + h.ins*insSize
	relEnd := (insEnd + h.relocs*4 + 7) &^ 7
	if len(b) < relEnd+h.data || b[relEnd+h.data-1] != 0 {
		return nil, syscall.EINVAL
	}
	cgroup := int(int64(get64(b[40:])))
	if cgroup < -1 || cgroup >= h.inputs {
		return nil, syscall.EINVAL
	}
	for i := range h.ins {
		if !h.valid(b[headSize+i*insSize:], i) {
			return nil, syscall.EINVAL
		}
	}
	data := b[relEnd : relEnd+h.data]
	base := uintptr(unsafe.Pointer(&data[0]))
	for i := range h.relocs {
		off := int(get32(b[insEnd+4*i:]))
		if off%8 != 0 || off+8 > h.data || get64(data[off:]) >= uint64(h.data) {
			return nil, syscall.EINVAL
		}
	}
	for i := range h.relocs {
		w := data[get32(b[insEnd+4*i:]):]
		copy(w[:8], put64(nil, get64(w)+uint64(base)))
	}
	m := (*machine)(unsafe.Pointer(&mapped[2*stackSize]))
	m.stack, m.stack2 = clone.Top(mapped[:stackSize]), clone.Top(mapped[:2*stackSize])
	m.ins, m.count = uintptr(unsafe.Pointer(&b[headSize])), uintptr(h.ins)
	m.data, m.size, m.inputs = base, uintptr(h.data), uintptr(h.inputs)+1
	return &Loaded{Inputs: h.inputs, CloneFlags: get64(b[32:]), CgroupInput: cgroup, m: m}, 0
}

// valid checks what can be checked of an instruction before it runs.
func (h header) valid(in []byte, index int) bool { //nolint:cyclop // a flat list of checks
	w := get64(in)
	op := Op(w)
	if op >= FirstComposite && (op == FirstComposite || op >= endComposite) {
		return false
	}
	if (op == Prelude) != (index == 0) {
		return false
	}
	if out := int(uint16(w >> 32)); out > h.slots {
		return false
	}
	for k := range 6 {
		v := get64(in[8+8*k:])
		isData, isSlot := w>>(16+k)&1 != 0, w>>(24+k)&1 != 0
		if isData && (isSlot || v >= uint64(h.data)) || isSlot && v >= uint64(h.slots) {
			return false
		}
	}
	switch op {
	case Skip:
		return w>>26&1 == 0 && w>>18&1 == 0 && get64(in[24:]) < uint64(h.ins-index)
	case Poke:
		at, n := get64(in[8:]), get64(in[24:])
		return w>>16&1 != 0 && (n == 4 || n == 8) && at+n <= uint64(h.data)
	case Exec:
		at, n := get64(in[8:]), get64(in[16:])
		return w>>16&1 != 0 && w>>17&1 == 0 && w>>25&1 == 0 && n > 0 && n < maxData && at+8*n <= uint64(h.data)
	case MkPath, Mask, ReadOnly:
		return w>>17&1 != 0
	default:
		return true
	}
}

func errno(err error) syscall.Errno {
	if e, ok := err.(syscall.Errno); ok { //nolint:errorlint // package syscall returns bare numbers
		return e
	}
	return syscall.EINVAL
}
