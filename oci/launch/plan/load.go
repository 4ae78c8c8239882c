package plan

import (
	"syscall"
	"unsafe"
)

// Loaded is a plan that was checked and can be started. It keeps the memory that
// it was loaded from.
type Loaded struct {
	// Inputs is the number of descriptors that Start wants.
	Inputs int
	// CloneFlags and CgroupInput are the plan's own.
	CloneFlags  uint64
	CgroupInput int

	mapped []byte
	m      *machine
}

// Map loads the plan in a memfd. The mapping is private: what the child writes to
// it is the child's. EINVAL is a malformed plan, EPROTO one of another version.
func Map(fd int) (*Loaded, syscall.Errno) {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, errno(err)
	}
	if st.Size < headSize || st.Size > headSize+maxIns*insSize+2*maxData {
		return nil, syscall.EINVAL
	}
	b, err := syscall.Mmap(fd, 0, int(st.Size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE)
	if err != nil {
		return nil, errno(err)
	}
	l, e := Load(b)
	if e != 0 {
		_ = syscall.Munmap(b)
		return nil, e
	}
	l.mapped = b
	return l, 0
}

// Unmap releases the memory of a plan loaded by Map.
func (l *Loaded) Unmap() {
	if l.mapped != nil {
		_ = syscall.Munmap(l.mapped)
		l.mapped, l.m = nil, nil
	}
}

// header is the fixed part of a marshalled plan.
type header struct{ inputs, slots, ins, relocs, data int }

// Load checks a marshalled plan and prepares it in place. It must be 8-aligned, as
// every allocation and mapping is.
func Load(b []byte) (*Loaded, syscall.Errno) { //nolint:cyclop // a flat list of checks
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
	m := &machine{
		ins: uintptr(unsafe.Pointer(&b[headSize])), count: uintptr(h.ins),
		data: base, size: uintptr(h.data), inputs: uintptr(h.inputs) + 1,
	}
	return &Loaded{Inputs: h.inputs, CloneFlags: get64(b[32:]), CgroupInput: cgroup, mapped: nil, m: m.keep(b)}, 0
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
