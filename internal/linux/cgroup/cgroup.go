// Package cgroup makes, limits, measures, empties and removes control groups in
// cgroup v2, v1 and hybrid set-ups.
//
// It writes to the kernel's files itself: a launch touches few of them, and each
// has a fixed order and meaning, which settings.go holds as data. It never moves
// a process; a child joins by CLONE_INTO_CGROUP or by writing to files that were
// opened for it, because moving by pid takes a global lock and waits for an RCU
// grace period. It refuses to work outside the hierarchies' mount points. It
// starts no goroutine that outlives a call. What it leaves is the directories in
// the cgroup filesystems, until Remove.
package cgroup

import (
	"fmt"
	"path"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Mode says where the controllers are.
type Mode int

// The modes. A hybrid host, with controllers in v1 hierarchies and a unified tree
// beside them, counts as Legacy.
const (
	Legacy Mode = iota + 1
	Unified
)

// String names the mode as the kernel's documents do.
func (m Mode) String() string {
	switch m {
	case Legacy:
		return "v1"
	case Unified:
		return "v2"
	}
	return "unknown"
}

// Driver says who makes the directories.
type Driver int

// The drivers. With Systemd a cgroup is a scope that systemd makes when it is
// given the first process; see systemd.go for the names.
const (
	Cgroupfs Driver = iota + 1
	Systemd
)

// String is the driver's name in configuration files.
func (d Driver) String() string {
	switch d {
	case Cgroupfs:
		return "cgroupfs"
	case Systemd:
		return "systemd"
	}
	return "unknown"
}

// Path names a cgroup, "/parent/child", relative to every hierarchy's mount.
type Path string

// Join appends names to the path and cleans it.
func (p Path) Join(names ...string) Path {
	return Path(path.Join(append([]string{"/", string(p)}, names...)...))
}

// Parent is the path without its last name.
func (p Path) Parent() Path { return Path(path.Dir(string(p))) }

// Base is the last name of the path.
func (p Path) Base() string { return path.Base(string(p)) }

// Valid refuses what could leave the tree or confuse the kernel's text formats.
func (p Path) Valid() error {
	s := string(p)
	if !strings.HasPrefix(s, "/") {
		return fmt.Errorf("cgroup path %q: does not begin with a slash: %w", cut(s), errdef.ErrInvalid)
	}
	if len(s) > 4000 {
		return fmt.Errorf("cgroup path %q: longer than 4000 bytes: %w", cut(s), errdef.ErrInvalid)
	}
	for name := range strings.SplitSeq(s[1:], "/") {
		switch {
		case s == "/":
		case name == "", name == ".", name == "..":
			return fmt.Errorf("cgroup path %q: has the part %q: %w", cut(s), name, errdef.ErrInvalid)
		case len(name) > 255:
			return fmt.Errorf("cgroup path %q: has a part longer than 255 bytes: %w", cut(s), errdef.ErrInvalid)
		case strings.ContainsAny(name, "\n\x00"):
			return fmt.Errorf("cgroup path %q: has a line break: %w", cut(s), errdef.ErrInvalid)
		}
	}
	return nil
}

// cut shortens foreign text for messages.
func cut(s string) string {
	if len(s) > 120 {
		return s[:120] + "..."
	}
	return s
}

// Resources are the limits of a cgroup. Zero values mean "leave as it is".
type Resources struct {
	CPUShares uint64 // v1 units, 2 to 262144; converted to a weight on v2
	CPUQuota  int64  // microseconds per period, -1 unlimited
	CPUPeriod uint64 // microseconds
	// CpusetCPUs and CpusetMems are lists such as "0-2,4".
	CpusetCPUs, CpusetMems string
	// MemoryLimit is in bytes, -1 unlimited. MemorySwapLimit counts memory and
	// swap together, as v1 and CRI do.
	MemoryLimit, MemorySwapLimit int64
	PidsLimit                    int64 // -1 unlimited
	Hugepages                    []Hugepage
	Unified                      map[string]string // v2 files written as they are
	Devices                      []DeviceRule      // later rules override earlier ones
	DevicesSet                   bool              // false leaves the devices alone
}

// Hugepage limits one page size, written as the kernel does: "2MB", "1GB".
type Hugepage struct {
	Size  string
	Limit uint64
}

// DeviceRule allows or denies access to devices.
type DeviceRule struct {
	Allow        bool
	Type         rune   // 'a' all, 'b' block, 'c' character
	Major, Minor int64  // -1 is any
	Access       string // some of "rwm"
}
