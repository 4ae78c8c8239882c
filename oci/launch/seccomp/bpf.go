package seccomp

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data. Both architectures are little-endian.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func ret(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}

// jump is "if the accumulator is op k go on with yes, else with no", where no stands
// first in memory and ends by itself, or is followed by the rest when it is empty.
// Offsets of conditional jumps have eight bits only, those of plain ones 32.
func jump(op uint16, k uint32, no, yes []unix.SockFilter) []unix.SockFilter {
	cond := unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k}
	out := make([]unix.SockFilter, 0, len(no)+len(yes)+2)
	switch {
	case len(no) == 0 && len(yes) <= 255:
		cond.Jf = uint8(len(yes))
		out = append(out, cond)
	case len(no) == 0:
		cond.Jt = 1
		out = append(out, cond, far(len(yes)))
	case len(no) <= 255:
		cond.Jt = uint8(len(no))
		out = append(out, cond)
	default:
		cond.Jf = 1
		out = append(out, cond, far(len(no)))
	}
	return append(append(out, no...), yes...)
}

func far(n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(n)}
}

// tree finds the span of the number in the accumulator by halving.
func tree(spans []span) []unix.SockFilter {
	if len(spans) == 1 {
		return leaf(spans[0])
	}
	mid := len(spans) / 2
	return jump(unix.BPF_JGE, spans[mid].first, tree(spans[:mid]), tree(spans[mid:]))
}

// leaf tries the checks of a span in order, and ends with its action.
func leaf(s span) []unix.SockFilter {
	var out []unix.SockFilter
	for _, c := range s.checks {
		out = append(out, c.code(s.wide)...)
	}
	return append(out, ret(s.action))
}

// code ends with the check's action when all conditions hold, else falls through.
func (c check) code(wide bool) []unix.SockFilter {
	out := []unix.SockFilter{ret(c.action)}
	for _, cond := range slices.Backward(c.all) {
		out = condition(cond, out, wide)
	}
	return out
}

// condition runs then, which must end by itself or fall through, if a holds;
// otherwise control goes on behind it.
//
// The accumulator has 32 bits, so the halves of an argument are compared one after
// the other. Where arguments have 32 bits the upper half of the profile's value is
// ignored, since profiles write negative numbers with 64 bits.
func condition(a specs.LinuxSeccompArg, then []unix.SockFilter, wide bool) []unix.SockFilter {
	w := word{offset: offArgs + 8*uint32(a.Index), wide: wide}
	lo, hi := uint32(a.Value), uint32(a.Value>>32)
	switch a.Op {
	case specs.OpEqualTo:
		return w.equal(pair{lo, hi}, pair{^uint32(0), ^uint32(0)}, then)
	case specs.OpMaskedEqual:
		return w.equal(pair{uint32(a.ValueTwo), uint32(a.ValueTwo >> 32)}, pair{lo, hi}, then)
	case specs.OpNotEqual:
		return w.notEqual(pair{lo, hi}, then)
	case specs.OpGreaterThan:
		return w.order(pair{lo, hi}, unix.BPF_JGT, true, then)
	case specs.OpGreaterEqual:
		return w.order(pair{lo, hi}, unix.BPF_JGE, true, then)
	case specs.OpLessThan:
		return w.order(pair{lo, hi}, unix.BPF_JGE, false, then)
	default: // specs.OpLessEqual; readProfile has refused all others
		return w.order(pair{lo, hi}, unix.BPF_JGT, false, then)
	}
}

type pair struct{ lo, hi uint32 }

// A word is where an argument is.
type word struct {
	offset uint32
	wide   bool
}

// equal is: if argument & mask == value, then.
func (w word) equal(value, mask pair, then []unix.SockFilter) []unix.SockFilter {
	out := append(masked(w.offset, mask.lo), jump(unix.BPF_JEQ, value.lo, nil, then)...)
	if !w.wide {
		return out
	}
	return append(masked(w.offset+4, mask.hi), jump(unix.BPF_JEQ, value.hi, nil, out)...)
}

func masked(offset, mask uint32) []unix.SockFilter {
	out := []unix.SockFilter{load(offset)}
	if mask != ^uint32(0) {
		out = append(out, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
	}
	return out
}

// notEqual is: if argument != value, then.
func (w word) notEqual(value pair, then []unix.SockFilter) []unix.SockFilter {
	low := append([]unix.SockFilter{load(w.offset)}, unless(unix.BPF_JEQ, value.lo, then)...)
	if !w.wide {
		return low
	}
	// The upper halves differ: skip the comparison of the lower ones.
	skip := len(low) - len(then)
	return append([]unix.SockFilter{load(w.offset + 4), {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value.hi, Jf: uint8(skip)}}, low...)
}

// unless is: if not (accumulator op k), then.
func unless(op uint16, k uint32, then []unix.SockFilter) []unix.SockFilter {
	cond := unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k}
	if len(then) <= 255 {
		cond.Jt = uint8(len(then))
		return append([]unix.SockFilter{cond}, then...)
	}
	cond.Jf = 1
	return append([]unix.SockFilter{cond, far(len(then))}, then...)
}

// order is: if (argument op value) is want, then; op is JGT or JGE.
func (w word) order(value pair, op uint16, want bool, then []unix.SockFilter) []unix.SockFilter {
	var low []unix.SockFilter
	if want {
		low = append([]unix.SockFilter{load(w.offset)}, jump(op, value.lo, nil, then)...)
	} else {
		low = append([]unix.SockFilter{load(w.offset)}, unless(op, value.lo, then)...)
	}
	if !w.wide {
		return low
	}
	// Only equal upper halves leave the decision to the lower ones:
	//   load hi; jgt -> decided greater; jeq -> low, else decided less
	compare := uint8(len(low) - len(then)) // to skip to then
	rest := far(len(low))                  // to skip all
	gt := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, K: value.hi}
	eq := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value.hi}
	if want {
		// 0 load, 1 gt, 2 eq, 3 rest, 4 low...
		gt.Jt = 2 + compare
		eq.Jt = 1
	} else {
		gt.Jt = 1           // to rest
		eq.Jt = 1           // to low
		eq.Jf = 1 + compare // less: to then
	}
	return append([]unix.SockFilter{load(w.offset + 4), gt, eq, rest}, low...)
}
