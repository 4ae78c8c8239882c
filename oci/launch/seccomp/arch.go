package seccomp

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// archID is a column of the table of calls.
type archID int

const (
	amd64 archID = iota
	i386
	x32
	arm64
	arm
	archCount
)

// A call is a name with its numbers; -1 where an architecture does not have it.
type call struct {
	name string
	nr   [archCount]int32
}

// Number is the number of a call by the name that profiles use, on the architecture
// of an OCI profile, and false where there is no such call.
func Number(arch specs.Arch, name string) (uint32, bool) {
	id, ok := archByName[arch]
	if !ok {
		return 0, false
	}
	return number(name, id)
}

// Names are all calls of the table, sorted.
func Names() []string {
	out := make([]string, 0, len(calls))
	for _, c := range calls {
		out = append(out, c.name)
	}
	return out
}

func find(name string) (call, bool) {
	i, ok := slices.BinarySearchFunc(calls, name, func(c call, n string) int { return strings.Compare(c.name, n) })
	if !ok {
		return call{}, false
	}
	return calls[i], true
}

func number(name string, arch archID) (uint32, bool) {
	c, ok := find(name)
	if !ok || c.nr[arch] < 0 {
		return 0, false
	}
	return uint32(c.nr[arch]), true
}

var archByName = map[specs.Arch]archID{
	specs.ArchX86_64: amd64, specs.ArchX86: i386, specs.ArchX32: x32,
	specs.ArchAARCH64: arm64, specs.ArchARM: arm,
}

// foreign are architectures whose programs run on none of ours: a profile may list
// them, they need no code.
var foreign = []specs.Arch{
	specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64,
	specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390,
	specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64, specs.ArchLOONGARCH64,
	specs.ArchM68K, specs.ArchSH, specs.ArchSHEB,
}

// A section is what seccomp_data.arch tells apart: amd64 and x32 share one value.
type section struct {
	audit uint32
	archs []archID
	wide  bool // arguments have 64 bits, but for x32
	x32   bool // numbers from x32Bit on are another ABI's
}

const x32Bit = 0x40000000

// architectures gives the sections of a program, that of the node first, since it
// makes nearly all calls.
func architectures(names []specs.Arch, goarch string) ([]section, error) {
	want := map[archID]bool{}
	for _, name := range names {
		id, ok := archByName[name]
		if !ok && !slices.Contains(foreign, name) {
			return nil, fmt.Errorf("architecture %.40q is not known: %w", name, errdef.ErrInvalid)
		}
		if ok {
			want[id] = true
		}
	}
	switch goarch {
	case "amd64":
		s := section{audit: unix.AUDIT_ARCH_X86_64, archs: []archID{amd64}, wide: true, x32: true}
		if want[x32] {
			s.archs = append(s.archs, x32)
		}
		return withCompat(s, want, i386, unix.AUDIT_ARCH_I386), nil
	case "arm64":
		s := section{audit: unix.AUDIT_ARCH_AARCH64, archs: []archID{arm64}, wide: true}
		return withCompat(s, want, arm, unix.AUDIT_ARCH_ARM), nil
	}
	return nil, fmt.Errorf("no system call table for %s", goarch)
}

func withCompat(native section, want map[archID]bool, id archID, audit uint32) []section {
	if !want[id] {
		return []section{native}
	}
	return []section{native, {audit: audit, archs: []archID{id}}}
}
