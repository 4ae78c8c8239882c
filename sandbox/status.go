package sandbox

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
)

// Status says whether pods can be run, and what the runtimes can do.
func (s *Service) Status(_ context.Context, verbose bool) NodeStatus {
	st := NodeStatus{
		Runtime: Condition{OK: true}, Network: Condition{OK: true},
		SupplementalGroupsPolicy: true, MountOptions: true, UserNamespacesHostNetwork: false,
	}
	if err := s.Network.Ready(); err != nil {
		st.Network = Condition{Reason: "NetworkPluginNotReady", Message: err.Error()}
	}
	names := slices.Sorted(maps.Keys(s.Runtimes))
	for _, name := range append([]string{""}, names...) {
		rt, err := s.runtime(name)
		if err != nil {
			continue
		}
		f := rt.Features()
		st.Handlers = append(st.Handlers, Handler{
			Name: name, RecursiveReadOnly: f.RecursiveReadOnly && s.Features.RecursiveReadOnly,
			UserNamespaces: f.UserNamespaces && s.Features.UserNamespaces && s.Features.IDMap,
		})
	}
	if verbose {
		st.Info = maps.Clone(s.Info)
	}
	return st
}

// CgroupDriver is the driver that the kubelet must use too.
func (s *Service) CgroupDriver() CgroupDriver {
	if s.Driver == cgroup.Systemd {
		return DriverSystemd
	}
	return DriverCgroupfs
}

// UpdateRuntimeConfig tells the network the node's pod ranges.
func (s *Service) UpdateRuntimeConfig(_ context.Context, podCIDRs []netip.Prefix) error {
	return s.Network.UpdatePodCIDR(podCIDRs)
}

// Subscribe gives all events from now on, until the returned function is called. The
// channel is closed for a subscriber that falls too far behind.
func (s *Service) Subscribe() (<-chan Event, func()) { return s.events.subscribe() }
