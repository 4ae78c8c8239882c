package cri

import (
	"slices"
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// decodeContainer decodes what CreateContainer asks for.
func decodeContainer(c *pb.ContainerConfig) (sandbox.ContainerConfig, error) {
	const f = field("container config: ")
	var out sandbox.ContainerConfig
	if c == nil {
		return out, field("config").refuse("is missing")
	}
	if c.GetWindows() != nil {
		return out, f.sub("windows").refuse("is set, this is a Linux node")
	}
	out = sandbox.ContainerConfig{
		Metadata:           sandbox.ContainerMetadata{Name: c.GetMetadata().GetName(), Attempt: c.GetMetadata().GetAttempt()},
		Image:              c.GetImage().GetImage(),
		UserSpecifiedImage: c.GetImage().GetUserSpecifiedImage(),
		ImageAnnotations:   copyMap(c.GetImage().GetAnnotations()),
		WorkingDir:         c.GetWorkingDir(),
		Labels:             copyMap(c.GetLabels()),
		Annotations:        copyMap(c.GetAnnotations()),
		LogPath:            c.GetLogPath(),
		Stdin:              c.GetStdin(),
		StdinOnce:          c.GetStdinOnce(),
		TTY:                c.GetTty(),
	}
	for _, check := range []func() error{
		func() error { return f.sub("metadata.name").required(out.Metadata.Name) },
		func() error { return f.sub("metadata.name").line(out.Metadata.Name) },
		func() error { return f.sub("image.image").required(out.Image) },
		func() error { return f.sub("working_dir").absolute(out.WorkingDir) },
		func() error { return f.sub("log_path").relative(out.LogPath) },
		func() error { return decodeProcess(f, c, &out) },
		func() error { return decodeFiles(f, c, &out) },
		func() (err error) {
			out.Resources, err = decodeResources(f.sub("linux.resources."), c.GetLinux().GetResources())
			return err
		},
		func() (err error) {
			out.Security, err = decodeContainerSecurity(f.sub("linux.security_context."), c.GetLinux().GetSecurityContext())
			return err
		},
	} {
		if err := check(); err != nil {
			return out, err
		}
	}
	return out, nil
}

// decodeProcess decodes command, environment and stop signal.
func decodeProcess(f field, c *pb.ContainerConfig, out *sandbox.ContainerConfig) (err error) {
	if out.Command, err = f.sub("command").texts(c.GetCommand(), field.text); err != nil {
		return err
	}
	if out.Args, err = f.sub("args").texts(c.GetArgs(), field.text); err != nil {
		return err
	}
	if out.StopSignal, err = decodeSignal(f.sub("stop_signal"), c.GetStopSignal()); err != nil {
		return err
	}
	for i, e := range c.GetEnvs() {
		f := f.at("envs", i)
		if e.GetKey() == "" {
			return f.sub(".key").refuse("is empty")
		}
		// The value is never part of a message: it may be a secret.
		if strings.ContainsAny(e.GetKey(), "=\x00") {
			return f.sub(".key").refuse("%q contains '=' or a NUL byte", e.GetKey())
		}
		if slices.Contains(e.GetValue(), 0) {
			return f.sub(".value").refuse("of %s contains a NUL byte", e.GetKey())
		}
		out.Envs = append(out.Envs, sandbox.KeyValue{Key: e.GetKey(), Value: slices.Clone(e.GetValue())})
	}
	return nil
}

// decodeFiles decodes mounts and devices.
func decodeFiles(f field, c *pb.ContainerConfig, out *sandbox.ContainerConfig) error {
	for i, m := range c.GetMounts() {
		d, err := decodeMount(f.at("mounts", i).sub("."), m)
		if err != nil {
			return err
		}
		out.Mounts = append(out.Mounts, d)
	}
	for i, d := range c.GetDevices() {
		f := f.at("devices", i).sub(".")
		v := sandbox.Device{ContainerPath: d.GetContainerPath(), HostPath: d.GetHostPath(), Permissions: d.GetPermissions()}
		if v.HostPath == "" || v.ContainerPath == "" {
			return f.sub("host_path").refuse("and container_path must both be set")
		}
		if err := f.sub("host_path").absolute(v.HostPath); err != nil {
			return err
		}
		if err := f.sub("container_path").absolute(v.ContainerPath); err != nil {
			return err
		}
		if strings.Trim(v.Permissions, "rwm") != "" {
			return f.sub("permissions").refuse("%q has other letters than r, w and m", v.Permissions)
		}
		out.Devices = append(out.Devices, v)
	}
	for i, d := range c.GetCDIDevices() {
		if err := f.at("CDI_devices", i).sub(".name").required(d.GetName()); err != nil {
			return err
		}
		out.CDIDevices = append(out.CDIDevices, d.GetName())
	}
	return nil
}

// mountOptions may be asked for. They only take something away from a bind mount or
// give back what it has anyway; "rw", "bind" or "rshared" would contradict fields.
var mountOptions = []string{
	"noexec", "exec", "nodev", "dev", "nosuid", "suid", "noatime", "atime", "nodiratime", "diratime",
	"relatime", "norelatime", "strictatime", "nostrictatime", "nosymfollow", "symfollow",
}

func decodeMount(f field, m *pb.Mount) (sandbox.Mount, error) {
	out := sandbox.Mount{
		ContainerPath:     m.GetContainerPath(),
		HostPath:          m.GetHostPath(),
		ReadOnly:          m.GetReadonly(),
		RecursiveReadOnly: m.GetRecursiveReadOnly(),
		SELinuxRelabel:    m.GetSelinuxRelabel(),
		Propagation:       sandbox.Propagation(m.GetPropagation()),
		Image:             m.GetImage().GetImage(),
		ImageRef:          m.GetImage().GetImageRef(),
		ImageUserRef:      m.GetImage().GetUserSpecifiedImage(),
		ImageSubPath:      m.GetImageSubPath(),
	}
	if err := f.sub("container_path").required(out.ContainerPath); err != nil {
		return out, err
	}
	if !strings.HasPrefix(out.ContainerPath, "/") { // ".." ends at the container's own root
		return out, f.sub("container_path").refuse("%q is not an absolute path", out.ContainerPath)
	}
	if err := decodeMountSource(f, out); err != nil {
		return out, err
	}
	if !known(m.GetPropagation()) {
		return out, f.sub("propagation").refuse("%d is unknown", m.GetPropagation())
	}
	if out.RecursiveReadOnly && (!out.ReadOnly || out.Propagation != sandbox.PropagationPrivate) {
		return out, f.sub("recursive_read_only").refuse("needs readonly and private propagation")
	}
	for i, o := range m.GetMountOptions() {
		if !slices.Contains(mountOptions, o) {
			return out, f.at("mount_options", i).refuse("%q is not one of %s", o, strings.Join(mountOptions, ", "))
		}
	}
	out.Options = slices.Clone(m.GetMountOptions())
	var err error
	if out.UIDMappings, err = f.sub("uidMappings").idMappings(m.GetUidMappings()); err != nil {
		return out, err
	}
	out.GIDMappings, err = f.sub("gidMappings").idMappings(m.GetGidMappings())
	return out, err
}

// decodeMountSource demands either a host path or an image. An ImageSpec that names no
// image is one that says nothing.
func decodeMountSource(f field, d sandbox.Mount) error {
	if d.Image == "" {
		if d.ImageSubPath != "" || d.ImageRef != "" || d.ImageUserRef != "" {
			return f.sub("image.image").refuse("is empty, but the mount says more about an image")
		}
		if err := f.sub("host_path").required(d.HostPath); err != nil {
			return err
		}
		// ".." is left to the kernel: the kubelet may pass what a pod's author wrote,
		// and a host path can name anything anyway.
		if !strings.HasPrefix(d.HostPath, "/") {
			return f.sub("host_path").refuse("%q is not an absolute path", d.HostPath)
		}
		return nil
	}
	if d.HostPath != "" {
		return f.sub("host_path").refuse("and image are both set")
	}
	if err := f.sub("image.image").text(d.Image); err != nil {
		return err
	}
	return f.sub("image_sub_path").relative(d.ImageSubPath)
}
