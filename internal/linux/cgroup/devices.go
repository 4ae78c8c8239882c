package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func (d DeviceRule) check() error {
	if !strings.ContainsRune("abc", d.Type) || d.Access == "" || strings.Trim(d.Access, "rwm") != "" ||
		d.Major < -1 || d.Minor < -1 {
		return fmt.Errorf("device rule %q %d:%d %q: %w", d.Type, d.Major, d.Minor, cut(d.Access), errdef.ErrInvalid)
	}
	return nil
}

// everything tells whether the rule is about all access to all devices.
func (d DeviceRule) everything() bool {
	return d.Type == 'a' && d.Major < 0 && d.Minor < 0 && d.mask() == accRead|accWrite|accMknod
}

// String is the rule in v1's own syntax. "a" there means everything and takes no
// numbers.
func (d DeviceRule) String() string {
	if d.everything() {
		return "a"
	}
	num := func(n int64) string {
		if n < 0 {
			return "*"
		}
		return strconv.FormatInt(n, 10)
	}
	return string(d.Type) + " " + num(d.Major) + ":" + num(d.Minor) + " " + d.Access
}

func (g *Group) setDevices(rules []DeviceRule) error {
	for _, r := range rules {
		if err := r.check(); err != nil {
			return err
		}
	}
	m, ok := g.of("devices")
	if !ok {
		return fmt.Errorf("set device rules: the node has no devices controller: %w", errdef.ErrInvalid)
	}
	if m.v2 {
		if err := attachDevices(m.path, deviceProgram(rules)); err != nil {
			return fmt.Errorf("set device rules: %w", err)
		}
		return nil
	}
	for _, w := range devicesV1(rules) {
		if err := writeFile(filepath.Join(m.path, w.file), w.value); err != nil {
			return fmt.Errorf("set device rules: %s: %w", w.file, err)
		}
	}
	return nil
}

// devicesV1 gives the writes. As in v2, what no rule names is denied. "a" of a
// partial kind is written for both kinds, since v1 would read it as everything.
func devicesV1(rules []DeviceRule) []setting {
	out := []setting{{file: "devices.deny", value: "a"}}
	for _, r := range rules {
		file := "devices.deny"
		if r.Allow {
			file = "devices.allow"
		}
		if r.Type != 'a' || r.everything() {
			out = append(out, setting{file: file, value: r.String()})
			continue
		}
		for _, t := range "bc" {
			r.Type = t
			out = append(out, setting{file: file, value: r.String()})
		}
	}
	return out
}

// attachDevices puts the program on a v2 directory, in the place of a former one of
// ours if there is one.
func attachDevices(dir string, prog []insn) error {
	d, err := os.Open(dir)
	if err != nil {
		return notFound(err)
	}
	defer func() { _ = d.Close() }()
	old, err := attachedPrograms(int(d.Fd()))
	if err != nil {
		return err
	}
	fd, err := loadProgram(prog)
	if err != nil {
		return err
	}
	defer func() { _ = fd.Close() }()
	if err := attachProgram(int(d.Fd()), int(fd.Fd())); err != nil {
		return err
	}
	// All attached programs must agree, so the new rules hold from here on together
	// with the old ones, and alone after this: never a moment without any.
	var errs []error
	for _, id := range old {
		errs = append(errs, detachProgram(int(d.Fd()), id))
	}
	return errors.Join(errs...)
}
