package spec

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// capabilities are the kernel's, in the order of their numbers.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
	"CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE",
	"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
	"CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
	"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
	"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

// defaultCapabilities are the fourteen that all container engines grant, and that
// images were built to expect.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SYS_CHROOT",
	"CAP_MKNOD", "CAP_AUDIT_WRITE", "CAP_SETFCAP",
}

const allCapabilities = "CAP_ALL"

// CapabilityNames are all capabilities that this package knows, by number.
func CapabilityNames() []string { return slices.Clone(capabilities) }

// Effective is the set that c leaves to a container, sorted by number: the bounding
// set. It is also what DefaultSeccomp wants to know.
func (c Capabilities) Effective(privileged bool) ([]string, error) {
	set, _, err := c.sets(privileged)
	return set, err
}

// sets works out the bounding and the ambient set.
func (c Capabilities) sets(privileged bool) (bounding, ambient []string, err error) { //nolint:cyclop // the order of the steps is the rule
	usable := map[string]bool{}
	for _, name := range capabilities {
		usable[name] = c.Available == nil
	}
	for _, name := range c.Available {
		usable[normalCapability(name)] = true
	}
	add, err1 := readCapabilities("capabilities.add", c.Add, usable)
	drop, err2 := readCapabilities("capabilities.drop", c.Drop, nil)
	raise, err3 := readCapabilities("capabilities.add_ambient", c.AddAmbient, usable)
	if err := firstError(err1, err2, err3); err != nil {
		return nil, nil, err
	}
	set := map[string]bool{}
	switch {
	case privileged:
		put(set, capabilities, true)
		drop = nil
	case slices.Contains(drop, allCapabilities):
	case slices.Contains(add, allCapabilities):
		put(set, capabilities, true)
	default:
		put(set, defaultCapabilities, true)
	}
	put(set, add, true)
	put(set, raise, true)
	put(set, drop, false)
	for _, name := range raise {
		if name != allCapabilities && !set[name] {
			return nil, nil, fmt.Errorf("capabilities.add_ambient: %s is dropped as well: %w", name, errdef.ErrInvalid)
		}
	}
	for _, name := range capabilities {
		if !set[name] || !usable[name] {
			continue
		}
		bounding = append(bounding, name)
		if slices.Contains(raise, name) || slices.Contains(raise, allCapabilities) {
			ambient = append(ambient, name)
		}
	}
	return bounding, ambient, nil
}

// processCapabilities gives the five sets. Inheritable holds no more than the ambient
// set needs: inheritable capabilities would let any file with inheritable file
// capabilities raise them (CVE-2022-24769). A user other than root has permitted only
// what is ambient, which is what execve would leave of them anyway; the bounding set
// still lets programs with file capabilities and set-user-id root work.
func processCapabilities(p Process, privileged bool) (*specs.LinuxCapabilities, error) {
	bounding, ambient, err := p.Capabilities.sets(privileged)
	if err != nil {
		return nil, err
	}
	own := bounding
	if p.User.UID != 0 {
		own = ambient
	}
	return &specs.LinuxCapabilities{
		Bounding:    bounding,
		Effective:   slices.Clone(own),
		Permitted:   slices.Clone(own),
		Inheritable: slices.Clone(ambient),
		Ambient:     ambient,
	}, nil
}

// readCapabilities checks names. With usable, names must also be available.
func readCapabilities(field string, names []string, usable map[string]bool) ([]string, error) {
	out := make([]string, 0, len(names))
	for i, name := range names {
		n := normalCapability(name)
		switch {
		case n == allCapabilities:
		case !slices.Contains(capabilities, n):
			return nil, fmt.Errorf("%s[%d]: capability %.40q is not known: %w", field, i, name, errdef.ErrInvalid)
		case usable != nil && !usable[n]:
			return nil, fmt.Errorf("%s[%d]: this node's runtime does not hold %s itself: %w", field, i, n, errdef.ErrInvalid)
		}
		out = append(out, n)
	}
	return out, nil
}

func normalCapability(name string) string {
	n := strings.ToUpper(name)
	if strings.HasPrefix(n, "CAP_") {
		return n
	}
	return "CAP_" + n
}

func put(set map[string]bool, names []string, v bool) {
	for _, n := range names {
		set[n] = v
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
