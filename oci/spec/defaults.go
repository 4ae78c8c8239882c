package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultMounts are what Linux programs take for granted.
func defaultMounts(c Container) []specs.Mount {
	access := "ro"
	if c.Privileged {
		access = "rw"
	}
	cgroup := access
	if c.Cgroup.Writable {
		cgroup = "rw"
	}
	n := c.Namespaces
	return []specs.Mount{
		ofNamespace(n, n.PID, specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}),
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		ofNamespace(n, n.Network, specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}),
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: ptsOptions(n)},
		shmMount(n),
		ofNamespace(n, n.IPC, specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}}),
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", cgroup}},
	}
}

// ofNamespace turns m into a bind of the host's mount where the kernel would not
// mount it: a filesystem that shows a namespace can be mounted only by who owns
// that namespace, and the node's own are not owned by a user namespace.
func ofNamespace(all Namespaces, shown Namespace, m specs.Mount) specs.Mount {
	if all.User.Mode == Host || shown.Mode != Host {
		return m
	}
	m.Type, m.Source = "bind", m.Destination
	m.Options = append([]string{"rbind", "rslave"}, m.Options...)
	return m
}

// ptsOptions gives terminals to the group tty, which is 5 everywhere, where the user
// namespace has such a group: devpts refuses ids that are not mapped.
func ptsOptions(n Namespaces) []string {
	opts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	const tty = 5
	mapped := n.User.Mode == Host
	for _, m := range n.GIDs {
		mapped = mapped || m.Container <= tty && tty-m.Container < m.Length
	}
	if mapped {
		opts = append(opts, "gid=5")
	}
	return opts
}

// shmMount is the container's own; the pod's shared one comes as a mount of the caller.
func shmMount(n Namespaces) specs.Mount {
	opts := []string{"nosuid", "noexec", "nodev"}
	if n.IPC.Mode == Host {
		return specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: append([]string{"rbind", "rprivate", "rw"}, opts...)}
	}
	return specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append(opts, "mode=1777", "size=65536k")}
}

// rootfsPropagation must let through what some mount wants to exchange with the host.
func rootfsPropagation(mounts []Mount) string {
	out := ""
	for _, m := range mounts {
		switch m.Propagation {
		case Bidirectional:
			return "rshared"
		case HostToContainer:
			out = "rslave"
		case Private:
		}
	}
	return out
}
