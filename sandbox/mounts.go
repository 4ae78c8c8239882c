package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/oci/spec"
)

// mounts are the request's mounts and, where the request has none, the pod's files.
func (s *Service) mounts(r *containerRecord, pr *podRecord) ([]spec.Mount, error) {
	var out []spec.Mount
	taken := map[string]bool{}
	for i, m := range r.Config.Mounts {
		sm, err := s.mount(r, i, m)
		if err != nil {
			return nil, fmt.Errorf("container config: mounts[%d] at %q: %w", i, m.ContainerPath, err)
		}
		taken[filepath.Clean(m.ContainerPath)] = true
		out = append(out, sm)
	}
	ro := r.Config.Security.ReadonlyRootfs
	own := func(destination, source string, readOnly bool) {
		if !taken[destination] {
			out = append(out, spec.Mount{Destination: destination, Source: source, ReadOnly: readOnly})
		}
	}
	own("/etc/hosts", s.paths.file(pr.ID, fileHosts), ro)
	own("/etc/hostname", s.paths.file(pr.ID, fileHostname), ro)
	own("/etc/resolv.conf", s.paths.file(pr.ID, fileResolv), ro)
	switch r.Config.Security.Namespaces.IPC {
	case ModeNode:
		own("/dev/shm", "/dev/shm", false)
	case ModePod:
		if pr.Namespaces[namespace.IPC] == "" {
			own("/dev/shm", "/dev/shm", false)
		} else {
			own("/dev/shm", s.paths.file(pr.ID, dirShm), false)
		}
	case ModeContainer, ModeTarget: // its own, a default mount of the spec
	}
	return out, nil
}

func (s *Service) mount(r *containerRecord, i int, m Mount) (spec.Mount, error) {
	sm := spec.Mount{
		Destination: m.ContainerPath, ReadOnly: m.ReadOnly, RecursiveReadOnly: m.RecursiveReadOnly,
		Propagation: spec.Propagation(m.Propagation), Options: m.Options, UIDs: specMaps(m.UIDMappings), GIDs: specMaps(m.GIDMappings),
	}
	if m.RecursiveReadOnly && (!m.ReadOnly || m.Propagation != PropagationPrivate) {
		return sm, fmt.Errorf("recursive_read_only needs readonly and private propagation: %w", errdef.ErrInvalid)
	}
	if m.RecursiveReadOnly && !s.Features.RecursiveReadOnly {
		return sm, errdef.WithPrefix(errdef.RROUnsupported, fmt.Errorf("the kernel has no mount_setattr: %w", errdef.ErrInvalid))
	}
	if m.Image != "" {
		sm.ReadOnly, sm.UIDs, sm.GIDs = true, nil, nil
		source, err := s.volumeSource(r.ID, i, m.ImageSubPath)
		sm.Source = source
		return sm, err
	}
	source, err := hostSource(m.HostPath)
	if err != nil {
		return sm, err
	}
	sm.Source = source
	return sm, checkPropagation(source, m.Propagation)
}

// hostSource resolves a host path. A missing one becomes a directory, as both peers
// make it: the kubelet's own checks (hostPath type) come before.
func hostSource(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("host_path %q is not absolute: %w", path, errdef.ErrInvalid)
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return "", fmt.Errorf("make host_path: %w", err)
		}
		real, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", fmt.Errorf("resolve host_path: %w", err)
	}
	return real, nil
}

// checkPropagation refuses what the kernel would silently not do: mounts propagate
// only from sources that are shared, or slaves for one direction.
func checkPropagation(source string, want Propagation) error {
	if want == PropagationPrivate {
		return nil
	}
	have, err := mount.PropagationOf(source)
	if err != nil {
		return fmt.Errorf("propagation of %s: %w", source, err)
	}
	if have == mount.Shared || have == mount.Slave && want == PropagationHostToContainer {
		return nil
	}
	return fmt.Errorf("host_path %s is on a mount that is not shared, which the propagation asked for needs: %w", source, errdef.ErrInvalid)
}

func (p paths) volume(id ID, i int) string {
	return filepath.Join(p.bundle(id), "volumes", strconv.Itoa(i))
}

func viewKey(id ID, i int) string { return string(id) + "-volume-" + strconv.Itoa(i) }

// mountVolumes makes the image volumes of a container: each a read-only overlay of the
// image's layers, mapped for the pod's user namespace.
func (s *Service) mountVolumes(ctx context.Context, c *container, r *containerRecord, pr *podRecord) error {
	r.Mounts = append([]Mount(nil), r.Config.Mounts...)
	for i, m := range r.Config.Mounts {
		if m.Image == "" {
			continue
		}
		img, err := s.Images.Resolve(m.Image)
		if err != nil {
			return fmt.Errorf("volume %d at %s: %w", i, m.ContainerPath, err)
		}
		r.Mounts[i].Image, r.Mounts[i].ImageRef = string(img.ID), imageRef(img)
		r.Views = append(r.Views, viewKey(c.id, i))
	}
	if len(r.Views) == 0 {
		return nil
	}
	// Until here a restarted daemon finds by the container's id alone what to take back.
	if err := s.commit(c, *r); err != nil {
		return err
	}
	r.own()
	for i, m := range r.Mounts {
		if m.Image == "" {
			continue
		}
		rootfs, err := s.Snapshots.View(ctx, viewKey(c.id, i), image.ID(m.Image))
		if err == nil {
			err = s.mountVolume(s.paths.volume(c.id, i), rootfs.Lower, pr)
		}
		if err != nil {
			return fmt.Errorf("volume %d at %s: %w", i, m.ContainerPath, err)
		}
	}
	return nil
}

func (s *Service) mountVolume(at string, layers []string, pr *podRecord) error {
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	o := mount.Overlay{Lower: layers, ReadOnly: true}
	if pr.userns() != nil {
		ns, err := os.Open(pr.Namespaces[namespace.User])
		if err != nil {
			return err
		}
		defer ns.Close()
		o.IDMap = ns
	}
	tree, err := o.Mount()
	if err != nil {
		return err
	}
	defer tree.Close()
	return mount.AttachPath(tree, at)
}

// volumeSource is the path of an image volume or of a path inside it, which is looked
// up inside the image's root: a link in an image leads nowhere else (CVE-2022-23648).
func (s *Service) volumeSource(id ID, i int, sub string) (string, error) {
	at := s.paths.volume(id, i)
	if sub == "" {
		return at, nil
	}
	root, err := os.Open(at)
	if err != nil {
		return "", errdef.WithPrefix(errdef.ImageVolumeMountFailed, err)
	}
	defer root.Close()
	f, err := mount.OpenInRoot(root, sub, unix.O_PATH)
	if err != nil {
		return "", errdef.WithPrefix(errdef.ImageVolumeMountFailed, fmt.Errorf("image_sub_path %q: %w", sub, err))
	}
	defer f.Close()
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// unmountVolumes detaches the image volumes of a container.
func (s *Service) unmountVolumes(r *containerRecord) error {
	for i, m := range r.Config.Mounts {
		if m.Image == "" {
			continue
		}
		err := unix.Unmount(s.paths.volume(r.ID, i), unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount image volume %d: %w", i, err)
		}
	}
	return nil
}
