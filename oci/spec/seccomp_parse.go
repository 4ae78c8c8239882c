package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// seccompFile is a profile on disk: the runtime-spec's fields, and those that Docker
// adds to decide about rules when the profile is used.
type seccompFile struct {
	specs.LinuxSeccomp
	Syscalls []seccompRule    `json:"syscalls"`
	ArchMap  []seccompArchMap `json:"archMap"`
}

type seccompRule struct {
	specs.LinuxSyscall
	Name     string        `json:"name"` // before there was "names"
	Comment  string        `json:"comment"`
	Includes seccompFilter `json:"includes"`
	Excludes seccompFilter `json:"excludes"`
}

// A seccompFilter says where a rule counts: with all of the capabilities, on any of
// the architectures, from a kernel on.
type seccompFilter struct {
	Caps      []string `json:"caps"`
	Arches    []string `json:"arches"`
	MinKernel string   `json:"minKernel"`
}

type seccompArchMap struct {
	Arch specs.Arch   `json:"architecture"`
	Subs []specs.Arch `json:"subArchitectures"`
}

// oldestKernel is what this program runs on at least.
var oldestKernel = [2]int{6, 1}

// maxProfile bounds what is read as a profile; the published ones have 20 KiB.
const maxProfile = 1 << 20

// ParseSeccomp reads a profile in OCI's or Docker's form and decides its conditions
// on architecture, "amd64" or "arm64", and capabilities. Fields that it does not know
// are an error: they would be rules that are not applied.
func ParseSeccomp(profile []byte, arch string, caps []string) (*specs.LinuxSeccomp, error) {
	if len(profile) > maxProfile {
		return nil, fmt.Errorf("seccomp profile: larger than %d bytes: %w", maxProfile, errdef.ErrInvalid)
	}
	d := json.NewDecoder(bytes.NewReader(profile))
	d.DisallowUnknownFields()
	var f seccompFile
	if err := d.Decode(&f); err != nil {
		return nil, fmt.Errorf("seccomp profile: %w: %w", err, errdef.ErrInvalid)
	}
	if d.More() {
		return nil, fmt.Errorf("seccomp profile: more than one document: %w", errdef.ErrInvalid)
	}
	out, err := f.resolve(arch, caps)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	return out, nil
}

func (f *seccompFile) resolve(arch string, caps []string) (*specs.LinuxSeccomp, error) {
	out := f.LinuxSeccomp
	if out.DefaultAction == "" {
		return nil, fmt.Errorf("defaultAction is missing: %w", errdef.ErrInvalid)
	}
	if len(f.ArchMap) > 0 {
		if len(out.Architectures) > 0 {
			return nil, fmt.Errorf("both architectures and archMap are given: %w", errdef.ErrInvalid)
		}
		out.Architectures = fromArchMap(f.ArchMap, arch)
	}
	for i, r := range f.Syscalls {
		use, err := r.applies(arch, caps)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		if r.Name != "" {
			if len(r.Names) > 0 {
				return nil, fmt.Errorf("syscalls[%d]: both name and names are given: %w", i, errdef.ErrInvalid)
			}
			r.Names = []string{r.Name}
		}
		if len(r.Names) == 0 {
			return nil, fmt.Errorf("syscalls[%d]: no names: %w", i, errdef.ErrInvalid)
		}
		if use {
			out.Syscalls = append(out.Syscalls, r.LinuxSyscall)
		}
	}
	return &out, nil
}

func fromArchMap(m []seccompArchMap, arch string) []specs.Arch {
	own := seccompArchitectures(arch)
	for _, e := range m {
		if len(own) > 0 && e.Arch == own[0] {
			return append([]specs.Arch{e.Arch}, e.Subs...)
		}
	}
	return nil
}

func (r seccompRule) applies(arch string, caps []string) (bool, error) {
	in, out := r.Includes, r.Excludes
	newIn, err1 := kernelReached(in.MinKernel)
	newOut, err2 := kernelReached(out.MinKernel)
	if err := firstError(err1, err2); err != nil {
		return false, err
	}
	has := func(name string) bool { return slices.Contains(caps, normalCapability(name)) }
	switch {
	case len(in.Arches) > 0 && !slices.Contains(in.Arches, arch),
		in.MinKernel != "" && !newIn,
		slices.Contains(out.Arches, arch),
		out.MinKernel != "" && newOut,
		slices.ContainsFunc(out.Caps, has):
		return false, nil
	}
	return !slices.ContainsFunc(in.Caps, func(name string) bool { return !has(name) }), nil
}

// kernelReached tells whether every kernel that we run on is at least v. Newer ones
// than that floor would need to be looked up, which this package does not do.
func kernelReached(v string) (bool, error) {
	if v == "" {
		return true, nil
	}
	a, b, _ := strings.Cut(v, ".")
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(b)
	if err := firstError(err1, err2); err != nil {
		return false, fmt.Errorf("minKernel %.20q is not a version: %w", v, errdef.ErrInvalid)
	}
	if major > oldestKernel[0] || major == oldestKernel[0] && minor > oldestKernel[1] {
		return false, fmt.Errorf("minKernel %s: only versions up to %d.%d can be told: %w", v, oldestKernel[0], oldestKernel[1], errdef.ErrInvalid)
	}
	return true, nil
}
