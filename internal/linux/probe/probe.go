// Package probe finds out what the kernel can do, by doing it.
//
// Each probe works in a temporary directory below the one it is given, which is
// removed. What was found is remembered for as long as the machine runs: see Memory. It
// starts no goroutine that outlives a call.
package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
)

// Features are what was found, once, at start.
type Features struct {
	Kernel            string
	Cgroup            cgroup.Mode
	CgroupControllers []string
	CloneIntoCgroup   bool // 5.7, and a cgroup2 mount
	PSI               bool
	Overlay           bool // any overlay on the state directory's filesystem
	LowerdirPlus      bool // overlay layers by descriptor, 6.7
	OverlayDetached   bool // overlay over detached mounts, 6.15
	IDMap             bool // idmapped mounts of the state directory's filesystem
	IDMapOverlay      bool // an overlay of mapped layers, in one way or another
	EROFSFile         bool // EROFS mounted from a file, 6.12
	RecursiveReadOnly bool // mount_setattr, 5.12
	UserNamespaces    bool
	PidfdInfo         bool // exit status by pidfd, 6.15
	Seccomp           bool
	AppArmor          bool
	NFTables          bool
	// Reasons say why a feature is missing, by its name in String.
	Reasons map[string]string
}

// Run probes everything that m does not know yet. Its directory is where images and
// containers will live. Only an unusable directory is an error; what the daemon cannot do
// without is its own decision.
func Run(ctx context.Context, h *cgroup.Host, m *Memory) (Features, error) {
	begin := time.Now()
	f := Features{Reasons: map[string]string{}, Cgroup: h.Mode(), CgroupControllers: h.Controllers(), Kernel: m.now.Kernel}
	p := prober{memory: m, features: &f}
	p.all(h)
	if err := p.end(); err != nil {
		return f, fmt.Errorf("probe kernel: %w", err)
	}
	m.Save(ctx)
	klog.FromContext(ctx).V(4).Info("kernel probed", "took", time.Since(begin))
	return f, nil
}

// prober makes what probes need when the first of them asks.
type prober struct {
	memory   *Memory
	features *Features
	dir      string   // temporary
	userns   *os.File // that maps 0 to somebody else
	failed   error    // what made the directory unusable
}

func (p *prober) all(h *cgroup.Host) {
	f := p.features
	f.UserNamespaces = p.found("user namespaces", p.inUserns(func(string, *os.File) error { return nil }))
	f.CloneIntoCgroup = p.found("clone into cgroup", func() error { return cloneIntoCgroup(h) })
	f.PSI = p.found("pressure stall information", pressure)
	f.Overlay = p.found("overlay", p.in(func(tmp string) error { return overlay(tmp, mount.Scratch, nil) }))
	f.LowerdirPlus = p.found("overlay layers by descriptor", p.in(func(tmp string) error { return overlay(tmp, mount.Detached, nil) }))
	f.IDMap = p.found("idmapped mounts", p.inUserns(idmap))
	f.OverlayDetached = p.found("overlay over detached mounts", p.inUserns(func(tmp string, userns *os.File) error {
		return overlay(tmp, mount.Detached, userns)
	}))
	f.IDMapOverlay = f.OverlayDetached || p.found("overlay of mapped layers", p.inUserns(func(tmp string, userns *os.File) error {
		return overlay(tmp, mount.Scratch, userns)
	}))
	f.EROFSFile = p.found("EROFS from files", p.in(erofs))
	f.RecursiveReadOnly = p.found("recursive read-only mounts", p.in(recursiveReadOnly))
	f.PidfdInfo = p.found("exit status by pidfd", pidfdInfo)
	f.Seccomp = p.found("seccomp", seccomp)
	f.AppArmor = p.found("AppArmor", apparmor)
	f.NFTables = p.found("nftables", nftables)
}

func (p *prober) found(name string, try func() error) bool {
	err := p.memory.Try(name, try)
	if err != nil {
		p.features.Reasons[name] = err.Error()
	}
	return err == nil
}

// in is a probe that needs a directory.
func (p *prober) in(try func(tmp string) error) func() error {
	return func() error {
		if p.dir == "" && p.failed == nil {
			p.dir, p.failed = os.MkdirTemp(p.memory.dir, ".probe-")
		}
		if p.failed != nil {
			return p.failed
		}
		return try(p.dir)
	}
}

// inUserns is a probe that needs a user namespace.
func (p *prober) inUserns(try func(tmp string, userns *os.File) error) func() error {
	return p.in(func(tmp string) (err error) {
		if p.userns == nil {
			if p.userns, err = userNamespace(tmp); err != nil {
				return fmt.Errorf("make a user namespace: %w", err)
			}
		}
		return try(tmp, p.userns)
	})
}

func (p *prober) end() error {
	if p.userns != nil {
		_ = p.userns.Close()
	}
	if p.dir == "" {
		return p.failed
	}
	return os.RemoveAll(p.dir)
}

// Lines describe what was found for the log at start, one fact each.
func (f Features) Lines() []string {
	out := []string{
		"kernel " + f.Kernel,
		"cgroup " + f.Cgroup.String() + ": " + strings.Join(f.CgroupControllers, " "),
	}
	var have, lack []string
	for _, x := range []struct {
		name string
		have bool
	}{
		{"clone into cgroup", f.CloneIntoCgroup}, {"pressure stall information", f.PSI}, {"overlay", f.Overlay},
		{"overlay layers by descriptor", f.LowerdirPlus}, {"overlay over detached mounts", f.OverlayDetached},
		{"idmapped mounts", f.IDMap}, {"overlay of mapped layers", f.IDMapOverlay}, {"EROFS from files", f.EROFSFile},
		{"recursive read-only mounts", f.RecursiveReadOnly}, {"user namespaces", f.UserNamespaces},
		{"exit status by pidfd", f.PidfdInfo}, {"seccomp", f.Seccomp}, {"AppArmor", f.AppArmor}, {"nftables", f.NFTables},
	} {
		if x.have {
			have = append(have, x.name)
		} else {
			lack = append(lack, "without "+x.name+": "+f.Reasons[x.name])
		}
	}
	return append(append(out, "with "+strings.Join(have, ", ")), lack...)
}

// String is all Lines.
func (f Features) String() string { return strings.Join(f.Lines(), "\n") }

func userNamespace(tmp string) (*os.File, error) {
	dir := filepath.Join(tmp, "ns")
	ids := []namespace.IDMap{{Container: 0, Host: 1 << 20, Size: 65536}}
	got, err := namespace.Pin(dir, namespace.Spec{User: &namespace.UserMap{UIDs: ids, GIDs: ids}})
	if err != nil {
		return nil, err
	}
	f, err := os.Open(got[namespace.User])
	return f, errors.Join(err, namespace.Unpin(dir))
}
