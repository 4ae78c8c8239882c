package spec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// defaultPath is what programs of an image without a PATH expect.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Build makes the runtime-spec of c. It shares no memory with c.
func Build(c Container) (*specs.Spec, error) {
	process, err := buildProcess(c)
	if err != nil {
		return nil, err
	}
	linux, err := buildLinux(c)
	if err != nil {
		return nil, err
	}
	mounts, err := buildMounts(c)
	if err != nil {
		return nil, err
	}
	linux.RootfsPropagation = rootfsPropagation(c.Mounts)
	s := &specs.Spec{
		Version:     specs.Version,
		Process:     process,
		Root:        &specs.Root{Path: c.Rootfs, Readonly: c.ReadonlyRootfs},
		Mounts:      mounts,
		Annotations: maps.Clone(c.Annotations),
		Linux:       linux,
	}
	if s.Root.Path == "" {
		s.Root.Path = "rootfs"
	}
	// Elsewhere it is the pod's, or the node's, and not ours to change.
	if c.Namespaces.UTS.Mode == New {
		s.Hostname = c.Hostname
	}
	return s, nil
}

func buildProcess(c Container) (*specs.Process, error) {
	p := c.Process
	if err := checkProcess(p); err != nil {
		return nil, err
	}
	caps, err := processCapabilities(p, c.Privileged)
	if err != nil {
		return nil, err
	}
	out := &specs.Process{
		Terminal:        p.Terminal,
		User:            specs.User{UID: p.User.UID, GID: p.User.GID, AdditionalGids: slices.Clone(p.User.Groups)},
		Args:            slices.Clone(p.Args),
		Env:             environment(c),
		Cwd:             path.Clean("/" + p.Cwd),
		Capabilities:    caps,
		NoNewPrivileges: p.NoNewPrivileges,
		ApparmorProfile: p.AppArmorProfile,
		SelinuxLabel:    p.SelinuxLabel,
	}
	if p.OOMScoreAdj != nil {
		adj := *p.OOMScoreAdj
		out.OOMScoreAdj = &adj
	}
	for _, r := range p.Rlimits {
		out.Rlimits = append(out.Rlimits, specs.POSIXRlimit{Type: r.Type, Soft: r.Soft, Hard: r.Hard})
	}
	return out, nil
}

func checkProcess(p Process) error {
	if err := checkArgs(p.Args); err != nil {
		return err
	}
	for _, kv := range p.Env {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" || strings.ContainsRune(kv, 0) {
			// The value may be a secret and stays out of the message.
			return fmt.Errorf("env: variable %.40q has no name, no value or a NUL byte: %w", name, errdef.ErrInvalid)
		}
	}
	if strings.ContainsRune(p.Cwd, 0) {
		return fmt.Errorf("working directory: has a NUL byte: %w", errdef.ErrInvalid)
	}
	if a := p.OOMScoreAdj; a != nil && (*a < -1000 || *a > 1000) {
		return fmt.Errorf("oom_score_adj: %d is not between -1000 and 1000: %w", *a, errdef.ErrInvalid)
	}
	seen := map[string]bool{}
	for _, r := range p.Rlimits {
		if !slices.Contains(rlimits, r.Type) || seen[r.Type] || r.Soft > r.Hard {
			return fmt.Errorf("rlimit %.40q: not known, given twice, or soft above hard: %w", r.Type, errdef.ErrInvalid)
		}
		seen[r.Type] = true
	}
	return nil
}

var rlimits = []string{
	"RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_LOCKS",
	"RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC",
	"RLIMIT_RSS", "RLIMIT_RTPRIO", "RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK",
}

func checkArgs(args []string) error {
	if len(args) == 0 || args[0] == "" {
		return fmt.Errorf("args: no command: %w", errdef.ErrInvalid)
	}
	for i, a := range args {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("args[%d]: has a NUL byte: %w", i, errdef.ErrInvalid)
		}
	}
	return nil
}

// environment adds what every process expects and the request did not say.
func environment(c Container) []string {
	defaults := []string{defaultPath}
	if c.Process.Terminal {
		defaults = append(defaults, "TERM=xterm")
	}
	if c.Hostname != "" {
		defaults = append(defaults, "HOSTNAME="+c.Hostname)
	}
	if c.Process.Home != "" {
		defaults = append(defaults, "HOME="+c.Process.Home)
	}
	return mergeEnv(defaults, c.Process.Env)
}

// BuildProcess makes the process of an exec from that of the container's spec: the
// same user, rights, environment, directory and limits, another command.
func BuildProcess(container *specs.Process, e Exec) (*specs.Process, error) {
	if err := checkArgs(e.Args); err != nil {
		return nil, err
	}
	p := *container // the slices are shared and never written to
	p.Args = slices.Clone(e.Args)
	p.Terminal = e.Terminal
	p.ConsoleSize = nil
	if e.Terminal {
		p.Env = mergeEnv([]string{"TERM=xterm"}, container.Env)
	}
	return &p, nil
}
