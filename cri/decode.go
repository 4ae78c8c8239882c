package cri

import (
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// A field is the path of what is being decoded, for messages: "pod config:
// metadata.name". Every refusal names one.
type field string

func (f field) sub(name string) field { return f + field(name) }

// at is the field of an element of a list.
func (f field) at(name string, i int) field {
	return f + field(name) + field("["+itoa(i)+"]")
}

func (f field) refuse(format string, args ...any) error {
	return invalidf(string(f)+" "+format, args...)
}

// required refuses "".
func (f field) required(s string) error {
	if s == "" {
		return f.refuse("is empty")
	}
	return f.text(s)
}

// text refuses what no name, path or argument can hold: exec and the kernel end
// strings at NUL.
func (f field) text(s string) error {
	if strings.ContainsRune(s, 0) {
		return f.refuse("contains a NUL byte")
	}
	return nil
}

// line refuses what would become a second line or field of a file that we write, or
// that would forge a line of a log.
func (f field) line(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return f.refuse("contains a control character")
	}
	return nil
}

// absolute refuses all but "" and clean-able absolute paths without "..".
func (f field) absolute(p string) error {
	if p == "" {
		return nil
	}
	if !path.IsAbs(p) {
		return f.refuse("%q is not an absolute path", p)
	}
	return f.inside(p)
}

// relative refuses all but "" and relative paths that stay inside.
func (f field) relative(p string) error {
	if path.IsAbs(p) {
		return f.refuse("%q is not a relative path", p)
	}
	return f.inside(p)
}

// inside refuses "..", which would lead somewhere else once joined.
func (f field) inside(p string) error {
	if slices.Contains(strings.Split(p, "/"), "..") {
		return f.refuse(`%q contains ".."`, p)
	}
	return f.text(p)
}

// id refuses what is no id of user or group: 32 bits, of which the last means "none"
// to the kernel. A value beyond would be cut, to root's in the worst case
// (CVE-2024-40635).
func (f field) id(n int64) error {
	if n < 0 || n >= math.MaxUint32 {
		return f.refuse("%d is outside of 0 to %d", n, uint32(math.MaxUint32-1))
	}
	return nil
}

func (f field) optionalID(v *pb.Int64Value) (*int64, error) {
	if v == nil {
		return nil, nil
	}
	n := v.GetValue()
	return &n, f.id(n)
}

func (f field) ids(ns []int64) ([]int64, error) {
	for i, n := range ns {
		if err := f.at("", i).id(n); err != nil {
			return nil, err
		}
	}
	return slices.Clone(ns), nil
}

// texts checks all of a list and copies it.
func (f field) texts(ss []string, check func(field, string) error) ([]string, error) {
	for i, s := range ss {
		if err := check(f.at("", i), s); err != nil {
			return nil, err
		}
	}
	return slices.Clone(ss), nil
}

// idMappings decodes a user-namespace mapping.
func (f field) idMappings(ms []*pb.IDMapping) ([]sandbox.IDMap, error) {
	var out []sandbox.IDMap
	for i, m := range ms {
		d := sandbox.IDMap{Host: m.GetHostId(), Container: m.GetContainerId(), Length: m.GetLength()}
		end := uint64(max(d.Host, d.Container)) + uint64(d.Length)
		if d.Length == 0 || end > math.MaxUint32 {
			return nil, f.at("", i).refuse("maps %d ids from %d to %d, which is none or too many", d.Length, d.Container, d.Host)
		}
		out = append(out, d)
	}
	return out, nil
}

// seconds is a duration that cannot overflow.
func seconds(n int64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second
}

// decodeID checks the id of a call on one object. Its form is the sandbox's business,
// since clients may shorten it.
func decodeID(f field, id string) (sandbox.ID, error) {
	return sandbox.ID(id), f.required(id)
}

func decodePodFilter(f *pb.PodSandboxFilter) (sandbox.PodFilter, error) {
	out := sandbox.PodFilter{ID: sandbox.ID(f.GetId()), Labels: f.GetLabelSelector()}
	if s := f.GetState(); s != nil {
		if !known(s.GetState()) {
			return out, field("filter.state").refuse("%d is unknown", s.GetState())
		}
		state := sandbox.PodState(s.GetState())
		out.State = &state
	}
	return out, nil
}

func decodeContainerFilter(f *pb.ContainerFilter) (sandbox.ContainerFilter, error) {
	out := sandbox.ContainerFilter{
		ID: sandbox.ID(f.GetId()), Pod: sandbox.ID(f.GetPodSandboxId()), Labels: f.GetLabelSelector(),
	}
	if s := f.GetState(); s != nil {
		if !known(s.GetState()) {
			return out, field("filter.state").refuse("%d is unknown", s.GetState())
		}
		state := sandbox.ContainerState(s.GetState())
		out.State = &state
	}
	return out, nil
}

// copyMap keeps a request's map from being shared. Keys and values are kept as sent.
func copyMap(m map[string]string) map[string]string { return maps.Clone(m) }
