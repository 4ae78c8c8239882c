package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// stateDir holds the state of all runtimes, as a host's /run does.
const stateDir = "/run/bench"

// inside measures, in the new namespaces.
func inside(ctx context.Context, s setting) (err error) {
	if err := s.prepare(); err != nil {
		return err
	}
	served, err := stage.NewCgroup(s.Cgroup + "/registry")
	if err != nil {
		return err
	}
	registry, err := stage.StartRegistry(ctx, served, s.Images, filepath.Join(s.Work, "registry.log"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, registry.Stop()) }()
	b := &bench{setting: s}
	return b.measure(ctx)
}

// prepare makes this mount namespace like a host's after its start, for all runtimes alike.
func (s setting) prepare() error {
	for _, p := range s.Options.Peers {
		name, socket, _ := strings.Cut(p, "=")
		if err := os.WriteFile(s.socket(name), nil, 0o600); err != nil {
			return fmt.Errorf("make place for the socket of %s: %w", name, err)
		}
		if err := unix.Mount(socket, s.socket(name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("find the socket of %s: %w", name, err)
		}
	}
	// Whatever is in the machine's /run and in libcni's cache is none of theirs.
	for _, dir := range []string{"/run", cniCache} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
		}
	}
	if err := os.Mkdir(stateDir, 0o755); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("forward between pods: %w", err)
	}
	return dropHybrid()
}

// dropHybrid unmounts an empty cgroup2 beside the hierarchies of version 1: crun refuses
// to work on such a host. It is the same for all.
func dropHybrid() error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	var one bool
	var two []string
	for _, m := range mounts {
		one = one || m.FSType == "cgroup"
		if m.FSType == "cgroup2" {
			two = append(two, m.Mountpoint)
		}
	}
	if !one {
		return nil
	}
	for _, point := range two {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	return nil
}

// removeLinks takes away what networks leave on purpose: bridges, and with them all that
// is attached to nothing.
func removeLinks() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Attrs().Flags&unix.IFF_LOOPBACK != 0 {
			continue
		}
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
			errs = append(errs, fmt.Errorf("remove link %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}
