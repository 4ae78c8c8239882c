package seccomp

import (
	"fmt"
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// maxErrno is the kernel's MAX_ERRNO: a larger value would not look like an error.
const maxErrno = 4095

const (
	badArch = unix.SECCOMP_RET_KILL_PROCESS
	enosys  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// A profile is a checked specs.LinuxSeccomp.
type profile struct {
	standard uint32 // the default action
	rules    []rule
	flags    uint
	// newer says that calls above all that are named get ENOSYS.
	newer bool
}

// A rule applies to calls when any of the alternatives holds. No alternative means
// that it always applies.
type rule struct {
	names        []string
	action       uint32
	alternatives [][]specs.LinuxSeccompArg
}

func readProfile(p *specs.LinuxSeccomp) (profile, error) {
	var out profile
	var err error
	if out.flags, err = readFlags(p.Flags); err != nil {
		return profile{}, err
	}
	if p.ListenerPath != "" || p.ListenerMetadata != "" {
		return profile{}, fmt.Errorf("listenerPath: notification is not supported: %w", errdef.ErrInvalid)
	}
	if out.standard, err = action(p.DefaultAction, p.DefaultErrnoRet); err != nil {
		return profile{}, fmt.Errorf("default action: %w", err)
	}
	switch out.standard & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_TRACE:
	default:
		out.newer = out.standard != enosys
	}
	for i, s := range p.Syscalls {
		r := rule{names: s.Names}
		if r.action, err = action(s.Action, s.ErrnoRet); err == nil {
			r.alternatives, err = conditions(s.Args)
		}
		if err != nil {
			return profile{}, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		out.rules = append(out.rules, r)
	}
	return out, nil
}

func action(a specs.LinuxSeccompAction, data *uint) (uint32, error) {
	ret := uint(unix.EPERM)
	if data != nil {
		ret = *data
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		if ret > maxErrno {
			return 0, fmt.Errorf("errnoRet %d is above %d: %w", ret, maxErrno, errdef.ErrInvalid)
		}
		return unix.SECCOMP_RET_ERRNO | uint32(ret), nil
	case specs.ActTrace:
		if ret > math.MaxUint16 {
			return 0, fmt.Errorf("errnoRet %d is above %d: %w", ret, math.MaxUint16, errdef.ErrInvalid)
		}
		return unix.SECCOMP_RET_TRACE | uint32(ret), nil
	case specs.ActNotify:
		return 0, fmt.Errorf("action %s needs an agent and is not supported: %w", a, errdef.ErrInvalid)
	}
	return 0, fmt.Errorf("action %.40q is not known: %w", a, errdef.ErrInvalid)
}

var operators = []specs.LinuxSeccompOperator{
	specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
	specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
}

func conditions(args []specs.LinuxSeccompArg) ([][]specs.LinuxSeccompArg, error) {
	if len(args) == 0 {
		return nil, nil
	}
	seen := map[uint]bool{}
	twice := false
	for i, a := range args {
		if a.Index > 5 {
			return nil, fmt.Errorf("args[%d]: there is no argument %d: %w", i, a.Index, errdef.ErrInvalid)
		}
		if !slices.Contains(operators, a.Op) {
			return nil, fmt.Errorf("args[%d]: operator %.40q is not known: %w", i, a.Op, errdef.ErrInvalid)
		}
		twice = twice || seen[a.Index]
		seen[a.Index] = true
	}
	if !twice {
		return [][]specs.LinuxSeccompArg{args}, nil
	}
	// libseccomp once refused two conditions on one argument, and runc made rules of
	// their own out of them: that is what such profiles mean ever since.
	var out [][]specs.LinuxSeccompArg
	for _, a := range args {
		out = append(out, []specs.LinuxSeccompArg{a})
	}
	return out, nil
}

// A span is a range of call numbers that are treated alike. It goes on to the next
// one's first number.
type span struct {
	first  uint32
	action uint32
	checks []check // tried first, in order
	wide   bool
}

// A check returns its action when all conditions hold.
type check struct {
	action uint32
	all    []specs.LinuxSeccompArg
}

func (s span) same(o span) bool {
	return len(s.checks) == 0 && len(o.checks) == 0 && s.action == o.action
}

// armPrivate is where the numbers of arm's private calls begin. They are no part of
// the sequence in which new calls are numbered.
const armPrivate = 0xf0000

// ranges describes what a section does with each number, from 0 on, sorted.
func (p profile) ranges(s section) []span {
	byNr := map[uint32]*span{}
	always := map[uint32]bool{}
	for _, r := range p.rules {
		for _, name := range r.names {
			for _, a := range s.archs {
				if nr, ok := number(name, a); ok {
					p.put(byNr, always, nr, r)
				}
			}
		}
	}
	points := map[uint32]span{}
	p.fill(points, byNr, s)
	for nr, sp := range byNr {
		points[nr] = *sp
	}
	out := make([]span, 0, len(points))
	for nr, sp := range points {
		// x32 has long registers but short arguments, and libseccomp compares these.
		sp.first, sp.wide = nr, s.wide && (!s.x32 || nr < x32Bit)
		out = append(out, sp)
	}
	slices.SortFunc(out, func(a, b span) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	return slices.CompactFunc(out, span.same)
}

// put notes a rule for one number. The first rule without conditions is final.
func (p profile) put(byNr map[uint32]*span, always map[uint32]bool, nr uint32, r rule) {
	if always[nr] {
		return
	}
	if byNr[nr] == nil {
		byNr[nr] = &span{action: p.standard}
	}
	if len(r.alternatives) == 0 {
		always[nr] = true
		*byNr[nr] = span{action: r.action}
		return
	}
	for _, all := range r.alternatives {
		byNr[nr].checks = append(byNr[nr].checks, check{r.action, all})
	}
}

// fill sets what happens between the numbers that have rules.
func (p profile) fill(points map[uint32]span, byNr map[uint32]*span, s section) {
	points[0] = span{action: p.standard}
	var last [2]uint32 // the greatest number of each ABI, that of x32 second
	for nr := range byNr {
		points[nr+1] = span{action: p.standard}
		abi := 0
		if s.x32 && nr >= x32Bit {
			abi = 1
		}
		if nr&(x32Bit-1) < armPrivate {
			last[abi] = max(last[abi], nr)
		}
	}
	if p.newer && last[0] > 0 {
		points[last[0]+1] = span{action: enosys}
		if !s.x32 {
			points[armPrivate] = span{action: p.standard}
		}
	}
	if !s.x32 {
		return
	}
	switch {
	case len(s.archs) == 1:
		points[x32Bit] = span{action: badArch}
	default:
		points[x32Bit] = span{action: p.standard}
		if p.newer && last[1] > 0 {
			points[last[1]+1] = span{action: enosys}
		}
	}
	// -1 is what a tracer makes of a call that it wants skipped.
	points[math.MaxUint32] = span{action: p.standard}
}
