package sandbox

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mountPoints are what each container gets mounts on; directories end in a slash.
var mountPoints = []string{"proc/", "sys/", "dev/", "etc/", "etc/hosts", "etc/hostname", "etc/resolv.conf"}

// makeBase makes the directory that is the lowest layer of each container's root. It has
// nothing but the mount points that every container needs: where an image lacks them,
// they would be made in its writable layer, each a new inode on the disk and deleted
// with the container.
func (s *Service) makeBase() error {
	dir := s.paths.base()
	var st unix.Statfs_t
	if err := unix.Statfs(s.State, &st); err != nil {
		return fmt.Errorf("look at the state directory: %w", err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		return nil // it may be an overlay: the kernel stacks two, no more
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make mount points: %w", err)
	}
	for _, name := range mountPoints {
		path := filepath.Join(dir, name)
		if name[len(name)-1] == '/' {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return fmt.Errorf("make mount points: %w", err)
			}
			continue
		}
		f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o644)
		if err != nil {
			return fmt.Errorf("make mount points: %w", err)
		}
		f.Close()
	}
	s.base = dir
	return nil
}

// maxLower is how many lower directories an overlay can have (OVL_MAX_STACK).
const maxLower = 500

// withBase adds the mount points to the layers of a root. tmpfs cannot be mapped into a
// user namespace before Linux 6.3: there a pod with one goes without.
func (s *Service) withBase(lower []string, pr *podRecord) []string {
	if s.base == "" || pr.userns() != nil || len(lower) >= maxLower {
		return lower
	}
	return append(lower, s.base)
}
