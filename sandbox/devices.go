package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/oci/spec"
)

// notDevices are parts of /dev that a privileged container has of its own.
var notDevices = []string{"pts", "shm", "mqueue", "fd", "console", "ptmx", "stdin", "stdout", "stderr", "core", ".udev", ".lxc", "termination-log"}

// describeDevices reads the host's nodes that a container asks for; a privileged one
// gets all there are.
func describeDevices(c ContainerConfig) (spec.Devices, error) {
	var out spec.Devices
	if c.Security.Privileged {
		out.All = true
		nodes, err := hostDevices("/dev")
		if err != nil {
			return out, fmt.Errorf("list the host's devices: %w", err)
		}
		out.Nodes = nodes
	}
	for i, d := range c.Devices {
		nodes, err := requested(d)
		if err != nil {
			return out, fmt.Errorf("container config: devices[%d]: %w", i, err)
		}
		for _, n := range nodes {
			out.Nodes = slices.DeleteFunc(out.Nodes, func(o spec.Device) bool { return o.Path == n.Path })
			out.Nodes = append(out.Nodes, n)
		}
	}
	return out, nil
}

// requested is the node of one request, or all nodes below a directory.
func requested(d Device) ([]spec.Device, error) {
	if strings.Trim(d.Permissions, "rwm") != "" || d.Permissions == "" {
		return nil, fmt.Errorf("permissions %q: %w", d.Permissions, errdef.ErrInvalid)
	}
	real, err := filepath.EvalSymlinks(d.HostPath)
	if err != nil {
		return nil, fmt.Errorf("host_path: %w: %w", err, errdef.ErrInvalid)
	}
	info, err := os.Stat(real)
	if err != nil {
		return nil, fmt.Errorf("host_path: %w", err)
	}
	if info.IsDir() {
		nodes, err := hostDevices(real)
		for i := range nodes {
			rel, _ := filepath.Rel(real, nodes[i].Path)
			nodes[i].Path, nodes[i].Permissions = filepath.Join(d.ContainerPath, rel), d.Permissions
		}
		return nodes, err
	}
	n, err := node(real)
	if err != nil {
		return nil, err
	}
	n.Path, n.Permissions = d.ContainerPath, d.Permissions
	return []spec.Device{n}, nil
}

// node reads a device node of the host.
func node(path string) (spec.Device, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return spec.Device{}, fmt.Errorf("stat %s: %w", path, err)
	}
	d := spec.Device{
		Path: path, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		Mode: fs.FileMode(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid, Permissions: "rwm",
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.Type = "b"
	case unix.S_IFCHR:
		d.Type = "c"
	default:
		return d, fmt.Errorf("%s is not a device: %w", path, errdef.ErrInvalid)
	}
	return d, nil
}

func hostDevices(dir string) ([]spec.Device, error) {
	var out []spec.Device
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it has just gone
		}
		if err != nil {
			return err
		}
		if path != dir && slices.Contains(notDevices, e.Name()) {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		d, err := node(path)
		if err == nil {
			out = append(out, d)
		}
		return nil
	})
	return out, err
}

// injectCDI adds the devices that the Container Device Interface describes.
func injectCDI(rs *specs.Spec, c ContainerConfig) error {
	names := slices.Clone(c.CDIDevices)
	_, fromAnnotations, err := cdi.ParseAnnotations(c.Annotations)
	if err != nil {
		return fmt.Errorf("container config: annotations: CDI devices: %w: %w", err, errdef.ErrInvalid)
	}
	names = append(names, fromAnnotations...)
	names = slices.Compact(sorted(names))
	if len(names) == 0 {
		return nil
	}
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read CDI specs: %w", err)
	}
	if missing, err := cache.InjectDevices(rs, names...); err != nil {
		return fmt.Errorf("container config: CDI_devices %v: %w: %w", missing, err, errdef.ErrInvalid)
	}
	return nil
}

// apply puts resources that were changed after the container was created into its spec.
func (r Resources) apply(rs *specs.Spec) error {
	now, err := r.spec().OCI()
	if err != nil {
		return err
	}
	if rs.Linux == nil {
		rs.Linux = &specs.Linux{}
	}
	if old := rs.Linux.Resources; old != nil {
		now.Devices, now.Pids = old.Devices, old.Pids
	}
	rs.Linux.Resources = now
	return nil
}

// groupResources are what the container's cgroup gets: limits, and the devices that
// its spec allows.
func groupResources(rs *specs.Spec, r Resources) cgroup.Resources {
	out := r.cgroup()
	if rs.Linux == nil || rs.Linux.Resources == nil {
		return out
	}
	for _, d := range rs.Linux.Resources.Devices {
		rule := cgroup.DeviceRule{Allow: d.Allow, Type: 'a', Major: -1, Minor: -1, Access: d.Access}
		if d.Type != "" {
			rule.Type = rune(d.Type[0])
		}
		if d.Major != nil {
			rule.Major = *d.Major
		}
		if d.Minor != nil {
			rule.Minor = *d.Minor
		}
		out.Devices = append(out.Devices, rule)
	}
	out.DevicesSet = len(out.Devices) > 0
	if p := rs.Linux.Resources.Pids; p != nil && p.Limit != nil {
		out.PidsLimit = *p.Limit
	}
	return out
}
