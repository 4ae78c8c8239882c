package cgroup

import (
	"fmt"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// With the systemd driver the kubelet names a pod's cgroup by the last slice alone
// or by the whole path; systemd places "a-b.slice" inside "a.slice". See
// systemd.slice(5) and the kubelet's ToSystemd and ParseSystemdToCgroupName.

// Slice gives the systemd slice that a cgroup parent means: the last name of its
// path. "/" and "" are the root slice.
func Slice(parent Path) (string, error) {
	name := parent.Base()
	if parent == "" || name == "/" || name == "." {
		return "-.slice", nil
	}
	if err := checkSlice(name); err != nil {
		return "", err
	}
	return name, nil
}

func checkSlice(name string) error {
	stem, ok := strings.CutSuffix(name, ".slice")
	switch {
	case !ok, stem == "", len(name) > 255:
	case stem == "-":
		return nil
	case strings.ContainsAny(stem, "/ \t\n"), strings.HasPrefix(stem, "-"), strings.HasSuffix(stem, "-"), strings.Contains(stem, "--"):
	default:
		return nil
	}
	return fmt.Errorf("systemd slice %q: not a slice's name: %w", cut(name), errdef.ErrInvalid)
}

// ExpandSlice gives the cgroup path of a slice: "a-b.slice" is in "/a.slice".
func ExpandSlice(slice string) (Path, error) {
	if err := checkSlice(slice); err != nil {
		return "", err
	}
	stem := strings.TrimSuffix(slice, ".slice")
	if stem == "-" {
		return "/", nil
	}
	p, prefix := Path("/"), ""
	for part := range strings.SplitSeq(stem, "-") {
		prefix += part
		p = p.Join(prefix + ".slice")
		prefix += "-"
	}
	return p, nil
}

// CgroupfsToSlice turns a cgroupfs path into the path of slices of the same shape:
// "/kubepods/burstable/pod1" becomes ".../kubepods-burstable-pod1.slice". A dash in
// a name would mean nesting; like the kubelet, we write an underscore.
func CgroupfsToSlice(p Path) (Path, error) {
	if err := p.Valid(); err != nil {
		return "", err
	}
	if p == "/" {
		return "/", nil
	}
	parts := strings.Split(string(p)[1:], "/")
	for i, s := range parts {
		parts[i] = strings.ReplaceAll(s, "-", "_")
	}
	return ExpandSlice(strings.Join(parts, "-") + ".slice")
}

// SliceToCgroupfs is the way back; a name's own underscores become dashes.
func SliceToCgroupfs(p Path) (Path, error) {
	slice, err := Slice(p)
	if err != nil {
		return "", err
	}
	out := Path("/")
	stem := strings.TrimSuffix(slice, ".slice")
	if stem == "-" {
		return out, nil
	}
	for part := range strings.SplitSeq(stem, "-") {
		out = out.Join(strings.ReplaceAll(part, "_", "-"))
	}
	return out, nil
}

// Scope is the name of a container's scope, "cri-ID.scope".
func Scope(prefix, id string) string { return prefix + "-" + id + ".scope" }

// ScopePath is where systemd puts a container's scope below its parent.
func ScopePath(parent Path, scope string) (Path, error) {
	slice, err := Slice(parent)
	if err != nil {
		return "", err
	}
	p, err := ExpandSlice(slice)
	if err != nil {
		return "", err
	}
	return p.Join(scope), nil
}
