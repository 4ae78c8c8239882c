// Package seccomp compiles the seccomp section of a runtime-spec into a program of
// the kernel's classic BPF.
//
// The program is a tree of ranges over system call numbers, one per architecture, so
// that a call costs about ten comparisons, and compiling a profile takes
// microseconds, not the milliseconds of the C library that others use. Nothing is
// read or written and no goroutine started: the daemon compiles once per profile and
// keeps the result in a Cache.
//
// Where the runtime-spec leaves something open, it means what runc and libseccomp
// make of it, because profiles were tested with these:
//   - the node's own architecture is always covered; a call of an architecture that
//     is not ends the process;
//   - a rule without conditions beats those with conditions for the same call; of the
//     latter the first that matches decides;
//   - conditions of a rule must all hold, unless two of them look at the same
//     argument: then each one is a rule of its own;
//   - names that an architecture does not have are ignored there;
//   - calls newer than any that the profile names get ENOSYS from a profile that
//     forbids by default, so that programs fall back to older calls;
//   - without flags, speculative store bypass stays as the kernel has it.
//
// It refuses SCMP_ACT_NOTIFY, which needs an agent that listens, and programs beyond
// the kernel's limit of 4096 instructions.
package seccomp

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

//go:generate go run ./internal/gen tables.go

// A Program is a filter ready for seccomp(SECCOMP_SET_MODE_FILTER, Flags, ...).
type Program struct {
	Filter []unix.SockFilter
	Flags  uint
	// Unknown are names in the profile that no architecture of ours has; they have
	// no effect. An operator may want to hear of them.
	Unknown []string
}

// Bytes is the filter in memory order: an array of struct sock_filter.
func (p Program) Bytes() []byte {
	b := make([]byte, 0, 8*len(p.Filter))
	for _, i := range p.Filter {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}

// Compile translates a profile for this machine. It never changes the profile.
func Compile(p *specs.LinuxSeccomp) (Program, error) {
	prog, err := compile(p, runtime.GOARCH)
	if err != nil {
		return Program{}, fmt.Errorf("seccomp profile: %w", err)
	}
	return prog, nil
}

func compile(p *specs.LinuxSeccomp, goarch string) (Program, error) {
	prof, err := readProfile(p)
	if err != nil {
		return Program{}, err
	}
	sections, err := architectures(p.Architectures, goarch)
	if err != nil {
		return Program{}, err
	}
	prog := Program{Flags: prof.flags, Unknown: unknown(p)}
	// The architecture decides what the number means, so it is looked at first.
	prog.Filter = append(prog.Filter, load(offArch))
	for _, s := range sections {
		body := append([]unix.SockFilter{load(offNr)}, tree(prof.ranges(s))...)
		prog.Filter = append(prog.Filter, jump(unix.BPF_JEQ, s.audit, nil, body)...)
	}
	prog.Filter = append(prog.Filter, ret(badArch))
	if n := len(prog.Filter); n > unix.BPF_MAXINSNS {
		return Program{}, fmt.Errorf("compiles to %d instructions, the kernel takes %d: %w", n, unix.BPF_MAXINSNS, errdef.ErrInvalid)
	}
	return prog, nil
}

// filterFlags by name. WAIT_KILLABLE_RECV is of use, and allowed by the kernel, with
// a listener only.
var filterFlags = map[specs.LinuxSeccompFlag]uint{
	specs.LinuxSeccompFlagLog:       unix.SECCOMP_FILTER_FLAG_LOG,
	specs.LinuxSeccompFlagSpecAllow: unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
}

func readFlags(names []specs.LinuxSeccompFlag) (uint, error) {
	if names == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var flags uint
	for _, name := range names {
		f, ok := filterFlags[name]
		if !ok {
			return 0, fmt.Errorf("flag %.60q is not supported: %w", name, errdef.ErrInvalid)
		}
		flags |= f
	}
	return flags, nil
}

// unknown lists names that are in none of the tables, sorted.
func unknown(p *specs.LinuxSeccomp) []string {
	var out []string
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			if _, ok := find(name); !ok {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
