package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// lxcfsPaths are the only files below /proc that may be covered: read-only figures
// that lxcfs replaces by those of the container. Anything else there decides about
// security (CVE-2019-16884).
var lxcfsPaths = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/net/dev",
	"/proc/slabinfo", "/proc/stat", "/proc/swaps", "/proc/uptime",
}

// buildMounts puts the caller's mounts among the defaults, parents before children
// and otherwise in the order given.
func buildMounts(c Container) ([]specs.Mount, error) {
	own := map[string]bool{}
	var mounts []specs.Mount
	for i, m := range c.Mounts {
		out, err := buildMount(m)
		if err != nil {
			return nil, fmt.Errorf("mounts[%d]: %w", i, err)
		}
		if own[out.Destination] {
			return nil, fmt.Errorf("mounts[%d]: %s is mounted twice: %w", i, out.Destination, errdef.ErrInvalid)
		}
		own[out.Destination] = true
		mounts = append(mounts, out)
	}
	var all []specs.Mount
	for _, m := range defaultMounts(c) {
		// Below a /dev of the caller's there is no place for ours.
		if own[m.Destination] || own["/dev"] && strings.HasPrefix(m.Destination, "/dev/") {
			continue
		}
		all = append(all, m)
	}
	all = append(all, mounts...)
	slices.SortStableFunc(all, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	return all, nil
}

func depth(p string) int { return strings.Count(p, "/") }

func buildMount(m Mount) (specs.Mount, error) {
	dest := path.Clean(m.Destination)
	switch {
	case !strings.HasPrefix(m.Destination, "/") || strings.ContainsRune(m.Destination, 0):
		return specs.Mount{}, fmt.Errorf("container path %.80q is not absolute: %w", m.Destination, errdef.ErrInvalid)
	case dest == "/":
		return specs.Mount{}, fmt.Errorf("a mount cannot replace the root: %w", errdef.ErrInvalid)
	case (dest == "/proc" || strings.HasPrefix(dest, "/proc/")) && !slices.Contains(lxcfsPaths, dest):
		return specs.Mount{}, fmt.Errorf("%.80q: nothing may be mounted over or below /proc: %w", dest, errdef.ErrInvalid)
	}
	out := specs.Mount{
		Destination: dest, Source: m.Source, Type: m.Type,
		UIDMappings: idMappings(m.UIDs), GIDMappings: idMappings(m.GIDs),
	}
	var err error
	switch m.Type {
	case "", "bind":
		out.Type = "bind"
		if !strings.HasPrefix(m.Source, "/") || strings.ContainsRune(m.Source, 0) {
			return specs.Mount{}, fmt.Errorf("%s: host path %.80q is not absolute: %w", dest, m.Source, errdef.ErrInvalid)
		}
		out.Options, err = bindOptions(m)
	case "tmpfs":
		out.Source = "tmpfs"
		out.Options, err = tmpfsOptions(m)
	default:
		err = fmt.Errorf("type %.40q: %w", m.Type, errdef.ErrInvalid)
	}
	if err != nil {
		return specs.Mount{}, fmt.Errorf("%s: %w", dest, err)
	}
	return out, nil
}

// flagOptions are the per-mount options that a caller may ask for.
var flagOptions = []string{
	"noexec", "exec", "nodev", "dev", "nosuid", "suid", "noatime", "atime", "nodiratime",
	"diratime", "relatime", "norelatime", "strictatime", "nostrictatime", "nosymfollow", "symfollow",
}

func bindOptions(m Mount) ([]string, error) {
	opts := []string{"rbind"}
	switch m.Propagation {
	case Private:
		opts = append(opts, "rprivate")
	case HostToContainer:
		opts = append(opts, "rslave")
	case Bidirectional:
		opts = append(opts, "rshared")
	default:
		return nil, fmt.Errorf("propagation %d: %w", m.Propagation, errdef.ErrInvalid)
	}
	switch {
	case m.RecursiveReadOnly && !m.ReadOnly:
		return nil, fmt.Errorf("recursive read-only without read-only: %w", errdef.ErrInvalid)
	case m.RecursiveReadOnly && m.Propagation != Private:
		// Mounts that arrive later would not be read-only.
		return nil, fmt.Errorf("recursive read-only with propagation: %w", errdef.ErrInvalid)
	case m.RecursiveReadOnly:
		opts = append(opts, "rro")
	case m.ReadOnly:
		opts = append(opts, "ro")
	default:
		opts = append(opts, "rw")
	}
	for _, o := range m.Options {
		if !slices.Contains(flagOptions, o) {
			return nil, fmt.Errorf("mount option %.40q is not supported: %w", o, errdef.ErrInvalid)
		}
		opts = append(opts, o)
	}
	return opts, nil
}

func tmpfsOptions(m Mount) ([]string, error) {
	if m.Propagation != Private || m.RecursiveReadOnly || len(m.UIDs) > 0 || len(m.GIDs) > 0 {
		return nil, fmt.Errorf("tmpfs with propagation, recursive read-only or id mappings: %w", errdef.ErrInvalid)
	}
	var opts []string
	if m.ReadOnly {
		opts = append(opts, "ro")
	}
	for _, o := range m.Options {
		key, value, has := strings.Cut(o, "=")
		data := has && value != "" && !strings.ContainsAny(value, ",\x00") &&
			slices.Contains([]string{"size", "mode", "nr_inodes", "nr_blocks", "uid", "gid", "huge"}, key)
		if !data && !slices.Contains(flagOptions, o) {
			return nil, fmt.Errorf("mount option %.40q is not supported: %w", o, errdef.ErrInvalid)
		}
		opts = append(opts, o)
	}
	return opts, nil
}
