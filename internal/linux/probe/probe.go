// Package probe finds out what the kernel can do, by doing it.
//
// Each probe works in a temporary directory below the one it is given, which is
// removed. It starts no goroutine that outlives a call.
package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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

// Run probes everything. The directory is where images and containers will live.
// Only an unusable directory is an error; what the daemon cannot do without is its own
// decision.
func Run(ctx context.Context, h *cgroup.Host, dir string) (Features, error) {
	begin := time.Now()
	f := Features{Reasons: map[string]string{}, Cgroup: h.Mode(), CgroupControllers: h.Controllers()}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return f, fmt.Errorf("probe kernel: %w", err)
	}
	f.Kernel = unix.ByteSliceToString(u.Release[:])
	tmp, err := os.MkdirTemp(dir, ".probe-")
	if err != nil {
		return f, fmt.Errorf("probe kernel: %w", err)
	}
	f.all(h, tmp)
	if err := os.RemoveAll(tmp); err != nil {
		return f, fmt.Errorf("probe kernel: %w", err)
	}
	klog.FromContext(ctx).V(4).Info("kernel probed", "took", time.Since(begin))
	return f, nil
}

func (f *Features) all(h *cgroup.Host, tmp string) {
	userns, err := userNamespace(tmp)
	f.UserNamespaces = f.found("user namespaces", err)
	if userns != nil {
		defer func() { _ = userns.Close() }()
	}
	f.CloneIntoCgroup = f.found("clone into cgroup", cloneIntoCgroup(h))
	f.PSI = f.found("pressure stall information", pressure())
	f.Overlay = f.found("overlay", overlay(tmp, mount.Scratch, nil))
	f.LowerdirPlus = f.found("overlay layers by descriptor", overlay(tmp, mount.Detached, nil))
	missing := errors.New("no user namespace")
	f.IDMap = f.found("idmapped mounts", first(userns == nil, missing, func() error { return idmap(tmp, userns) }))
	f.OverlayDetached = f.found("overlay over detached mounts", first(userns == nil, missing, func() error {
		return overlay(tmp, mount.Detached, userns)
	}))
	f.IDMapOverlay = f.OverlayDetached || f.found("overlay of mapped layers", first(userns == nil, missing, func() error {
		return overlay(tmp, mount.Scratch, userns)
	}))
	f.EROFSFile = f.found("EROFS from files", erofs(tmp))
	f.RecursiveReadOnly = f.found("recursive read-only mounts", recursiveReadOnly(tmp))
	f.PidfdInfo = f.found("exit status by pidfd", pidfdInfo())
	f.Seccomp = f.found("seccomp", seccomp())
	f.AppArmor = f.found("AppArmor", apparmor())
	f.NFTables = f.found("nftables", nftables())
}

func first(bad bool, err error, fn func() error) error {
	if bad {
		return err
	}
	return fn()
}

func (f *Features) found(name string, err error) bool {
	if err != nil {
		f.Reasons[name] = err.Error()
	}
	return err == nil
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
