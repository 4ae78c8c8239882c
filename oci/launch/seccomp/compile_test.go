package seccomp

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/spec"
)

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

func (d data) word(offset uint32) uint32 {
	switch {
	case offset == offNr:
		return d.nr
	case offset == offArch:
		return d.arch
	case offset >= offArgs && offset < offArgs+48 && offset%4 == 0:
		v := d.args[(offset-offArgs)/8]
		if offset%8 == 4 {
			v >>= 32
		}
		return uint32(v)
	}
	panic(fmt.Sprintf("load at %d", offset))
}

// interpret runs a filter as the kernel does, and counts its steps.
func interpret(filter []unix.SockFilter, d data) (action uint32, steps int) {
	var a uint32
	for pc := 0; ; pc++ {
		steps++
		i := filter[pc] // running off the end panics, as the kernel refuses such programs
		jump := func(yes bool) {
			if yes {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = d.word(i.K)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= i.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == i.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(a > i.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= i.K)
		case unix.BPF_RET | unix.BPF_K:
			return i.K, steps
		default:
			panic(fmt.Sprintf("instruction %#x", i.Code))
		}
	}
}

// A meaning is what a profile says, written down as plainly as possible.
type meaning struct {
	p      *specs.LinuxSeccomp
	goarch string
	rules  map[specs.Arch]map[uint32][]specs.LinuxSyscall
	top    map[specs.Arch]uint32 // the highest number that is named
}

func meaningOf(p *specs.LinuxSeccomp, goarch string) meaning {
	m := meaning{p, goarch, map[specs.Arch]map[uint32][]specs.LinuxSyscall{}, map[specs.Arch]uint32{}}
	for arch := range archByName {
		m.rules[arch] = map[uint32][]specs.LinuxSyscall{}
		for _, r := range p.Syscalls {
			for _, name := range r.Names {
				nr, ok := Number(arch, name)
				if !ok {
					continue
				}
				m.rules[arch][nr] = append(m.rules[arch][nr], r)
				if nr&^uint32(0x40000000) < 0xf0000 {
					m.top[arch] = max(m.top[arch], nr)
				}
			}
		}
	}
	return m
}

func (m meaning) of(t testing.TB, d data) uint32 {
	def := mustAction(t, m.p.DefaultAction, m.p.DefaultErrnoRet)
	arch, wide, ok := abi(m.p, m.goarch, d)
	switch {
	case !ok:
		return unix.SECCOMP_RET_KILL_PROCESS
	case d.nr == math.MaxUint32:
		return def
	}
	for _, r := range m.rules[arch][d.nr] {
		if len(r.Args) == 0 {
			return mustAction(t, r.Action, r.ErrnoRet)
		}
	}
	for _, r := range m.rules[arch][d.nr] {
		if holds(r.Args, d, wide) {
			return mustAction(t, r.Action, r.ErrnoRet)
		}
	}
	forbids := m.p.DefaultAction != specs.ActAllow && m.p.DefaultAction != specs.ActLog && m.p.DefaultAction != specs.ActTrace
	amd64 := arch == specs.ArchX86_64 || arch == specs.ArchX32
	if top := m.top[arch]; forbids && top > 0 && d.nr > top && (amd64 || d.nr < 0xf0000) {
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	return def
}

func abi(p *specs.LinuxSeccomp, goarch string, d data) (arch specs.Arch, wide, ok bool) {
	listed := func(a specs.Arch) bool { return slices.Contains(p.Architectures, a) }
	switch {
	case goarch == "amd64" && d.arch == unix.AUDIT_ARCH_X86_64 && (d.nr < 0x40000000 || d.nr == math.MaxUint32):
		return specs.ArchX86_64, true, true
	case goarch == "amd64" && d.arch == unix.AUDIT_ARCH_X86_64:
		return specs.ArchX32, false, listed(specs.ArchX32)
	case goarch == "amd64" && d.arch == unix.AUDIT_ARCH_I386:
		return specs.ArchX86, false, listed(specs.ArchX86)
	case goarch == "arm64" && d.arch == unix.AUDIT_ARCH_AARCH64:
		return specs.ArchAARCH64, true, true
	case goarch == "arm64" && d.arch == unix.AUDIT_ARCH_ARM:
		return specs.ArchARM, false, listed(specs.ArchARM)
	}
	return "", false, false
}

func mustAction(t testing.TB, a specs.LinuxSeccompAction, data *uint) uint32 {
	act, err := action(a, data)
	if err != nil {
		t.Fatal(err)
	}
	return act
}

func holds(args []specs.LinuxSeccompArg, d data, wide bool) bool {
	indexes := map[uint]bool{}
	for _, a := range args {
		indexes[a.Index] = true
	}
	hold := 0
	for _, a := range args {
		v, x, y := d.args[a.Index], a.Value, a.ValueTwo
		if !wide {
			v, x, y = v&math.MaxUint32, x&math.MaxUint32, y&math.MaxUint32
		}
		if compare(a.Op, v, x, y) {
			hold++
		}
	}
	if len(indexes) < len(args) {
		return hold > 0
	}
	return hold == len(args)
}

func compare(op specs.LinuxSeccompOperator, v, x, y uint64) bool {
	switch op { //nolint:exhaustive // masked comparisons are the caller's
	case specs.OpNotEqual:
		return v != x
	case specs.OpEqualTo:
		return v == x
	case specs.OpLessThan:
		return v < x
	case specs.OpLessEqual:
		return v <= x
	case specs.OpGreaterThan:
		return v > x
	case specs.OpGreaterEqual:
		return v >= x
	}
	return v&x == y
}

// numbers are all calls of all tables, their neighbours, and the odd ones.
func numbers() []uint32 {
	out := []uint32{0x3fffffff, 0x40000000, 0x7fffffff, 0x80000000, math.MaxUint32 - 1, math.MaxUint32, 0xeffff, 0xf0000, 0xf0001, 0xf0006, 0xf0007}
	for nr := range uint32(560) {
		out = append(out, nr, 0x40000000|nr)
	}
	return out
}

// interesting are values of arguments at the edges of a profile's conditions.
func interesting(p *specs.LinuxSeccomp) map[uint32][]uint64 {
	out := map[uint32][]uint64{}
	for _, r := range p.Syscalls {
		var vals []uint64
		for _, a := range r.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo, a.Value | a.ValueTwo} {
				vals = append(vals, v, v-1, v+1, ^v, v<<32, v>>32, v|1<<32, v|1<<63, v^1<<31, v&math.MaxUint32)
			}
		}
		for _, name := range r.Names {
			c, _ := find(name)
			for _, nr := range c.nr {
				out[uint32(nr)] = append(out[uint32(nr)], vals...)
			}
		}
	}
	for nr, vals := range out {
		slices.Sort(vals)
		out[nr] = slices.Compact(vals)
	}
	return out
}

var audits = map[string][]uint32{
	"amd64": {unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, 0},
	"arm64": {unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_X86_64, math.MaxUint32},
}

// differ compares the compiled program with the meaning of the profile.
func differ(t *testing.T, p *specs.LinuxSeccomp, goarch string) (cases int) {
	t.Helper()
	prog, err := compile(p, goarch)
	if err != nil {
		t.Fatal(err)
	}
	values, mean := interesting(p), meaningOf(p, goarch)
	check := func(d data) {
		cases++
		got, _ := interpret(prog.Filter, d)
		if want := mean.of(t, d); got != want {
			t.Fatalf("%s: %+v: got %#x, want %#x", goarch, d, got, want)
		}
	}
	for _, audit := range audits[goarch] {
		for _, nr := range numbers() {
			check(data{nr: nr, arch: audit})
			for i, v := range values[nr] {
				for arg := range 6 {
					d := data{nr: nr, arch: audit, args: [6]uint64{7, 7, 7, 7, 7, 7}}
					d.args[arg] = v
					check(d)
					d.args[(arg+1)%6] = values[nr][(i*7+3)%len(values[nr])]
					check(d)
				}
			}
		}
	}
	return cases
}

func TestDefaultProfileCompilesToItsMeaning(t *testing.T) {
	for _, goarch := range []string{"amd64", "arm64"} {
		for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, spec.CapabilityNames()} {
			p := spec.DefaultSeccomp(goarch, caps)
			n := differ(t, p, goarch)
			prog, err := compile(p, goarch)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s with %d capabilities: %d instructions, %d cases", goarch, len(caps), len(prog.Filter), n)
		}
	}
}

func TestRandomProfilesCompileToTheirMeaning(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		p := randomProfile(r)
		for _, goarch := range []string{"amd64", "arm64"} {
			differ(t, p, goarch)
		}
	}
}

func randomProfile(r *rand.Rand) *specs.LinuxSeccomp {
	actions := []specs.LinuxSeccompAction{
		specs.ActAllow, specs.ActErrno, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActTrace, specs.ActLog,
	}
	all := []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM, specs.ArchS390X}
	values := []uint64{0, 1, 40, 0x7e020000, 0xffffffff, 1 << 32, 1<<32 + 40, math.MaxUint64, r.Uint64()}
	p := &specs.LinuxSeccomp{DefaultAction: actions[r.IntN(len(actions))]}
	for _, a := range all {
		if r.IntN(2) == 0 {
			p.Architectures = append(p.Architectures, a)
		}
	}
	for range 1 + r.IntN(60) {
		errno := uint(r.IntN(4096))
		s := specs.LinuxSyscall{Action: actions[r.IntN(len(actions))], ErrnoRet: &errno}
		for range 1 + r.IntN(4) {
			s.Names = append(s.Names, calls[r.IntN(len(calls))].name)
		}
		for range r.IntN(3) {
			s.Args = append(s.Args, specs.LinuxSeccompArg{
				Index: uint(r.IntN(6)), Op: operators[r.IntN(len(operators))],
				Value: values[r.IntN(len(values))], ValueTwo: values[r.IntN(len(values))],
			})
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

// TestLongJumps makes subtrees and checks that are longer than a conditional jump.
func TestLongJumps(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86, specs.ArchX32}}
	for i := range uint64(60) {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{
			Names: []string{"read", "openat2"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 1, Op: specs.OpEqualTo, Value: i * 3}, {Index: 2, Op: specs.OpGreaterThan, Value: i << 30}},
		})
	}
	differ(t, p, "amd64")
}

func TestEveryCallTakesFewSteps(t *testing.T) {
	p := spec.DefaultSeccomp("amd64", nil)
	prog, err := compile(p, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	worst := 0
	for _, nr := range numbers() {
		_, steps := interpret(prog.Filter, data{nr: nr, arch: unix.AUDIT_ARCH_X86_64, args: [6]uint64{44}})
		worst = max(worst, steps)
	}
	// socket goes through seven conditions, all others are found in the tree.
	if worst > 60 {
		t.Errorf("steps of the slowest call: got %d, want at most 60", worst)
	}
	_, steps := interpret(prog.Filter, data{nr: unix.SYS_READ, arch: unix.AUDIT_ARCH_X86_64})
	t.Logf("read: %d steps, slowest: %d", steps, worst)
}

func TestRefusals(t *testing.T) {
	big := uint(5000)
	many := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range uint64(2000) {
		many.Syscalls = append(many.Syscalls, specs.LinuxSyscall{
			Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: specs.OpEqualTo, Value: i}},
		})
	}
	rule := func(s specs.LinuxSyscall) *specs.LinuxSeccomp {
		s.Names = []string{"read"}
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{s}}
	}
	for want, p := range map[string]*specs.LinuxSeccomp{
		"default action":        {},
		"needs an agent":        rule(specs.LinuxSyscall{Action: specs.ActNotify}),
		"listenerPath":          {DefaultAction: specs.ActAllow, ListenerPath: "/run/x"},
		"errnoRet 5000":         rule(specs.LinuxSyscall{Action: specs.ActErrno, ErrnoRet: &big}),
		"no argument 6":         rule(specs.LinuxSyscall{Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}),
		`operator "SCMP_CMP_X"`: rule(specs.LinuxSyscall{Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "SCMP_CMP_X"}}}),
		"architecture":          {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_VAX"}},
		"flag":                  {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}},
		"the kernel takes 4096": many,
	} {
		_, err := Compile(p)
		if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want one that says %q", err, want)
		}
	}
}

func TestUnknownNamesAreReported(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"reed", "read", "s390_sthyi"}, Action: specs.ActErrno}}}
	prog, err := Compile(p)
	if err != nil || !slices.Equal(prog.Unknown, []string{"reed", "s390_sthyi"}) {
		t.Errorf("got %q, %v, want reed and s390_sthyi", prog.Unknown, err)
	}
}

func TestCache(t *testing.T) {
	c := NewCache(2)
	first, err := c.Compile(spec.DefaultSeccomp("amd64", nil))
	if err != nil {
		t.Fatal(err)
	}
	again, _ := c.Compile(spec.DefaultSeccomp("amd64", nil))
	if &first.Filter[0] != &again.Filter[0] {
		t.Error("an equal profile was compiled again")
	}
	other, err := c.Compile(spec.DefaultSeccomp("amd64", []string{"CAP_SYS_ADMIN"}))
	if err != nil || slices.Equal(other.Filter, first.Filter) {
		t.Errorf("another profile gave the same program, %v", err)
	}
	for i := range uint(10) {
		if _, err := c.Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &i}); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.known) > 2 {
		t.Errorf("programs kept: got %d, want at most 2", len(c.known))
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	p := spec.DefaultSeccomp("amd64", nil)
	for b.Loop() {
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompileCached(b *testing.B) {
	p, c := spec.DefaultSeccomp("amd64", nil), NewCache(8)
	for b.Loop() {
		if _, err := c.Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
