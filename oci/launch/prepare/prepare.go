// Package prepare opens the descriptors that a launch needs: clones of volumes,
// namespaces, cgroup files, sockets.
//
// It runs in the host's mount namespace and changes nothing there: clones are
// detached and vanish with their descriptors. It refuses volumes whose source is a
// symbolic link of procfs. It starts no goroutine and leaves nothing on disk.
package prepare

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/launch"
)

// Inputs are the descriptors that the caller made. Open closes none of them, and
// they must stay open until the launch was started.
type Inputs struct {
	Rootfs                *os.File // detached mount; a launch uses it up, even if it fails
	Stdin, Stdout, Stderr *os.File // nil is /dev/null; unused with a terminal
	Gate                  *os.File // read end of a pipe
	Process               *os.File // pidfd, for exec
	InitProgram           *os.File
	BaseMounts            *os.File // the mount namespace that Options.BaseMounts speaks of
	// UserNS is the user namespace of volumes with an id map. Its map must be
	// the one that the volume asks for.
	UserNS *os.File
}

// Files are the opened descriptors in slot order.
type Files struct {
	List []*os.File
	// PTY is our end of the pty socket, if the launch has a terminal: the master
	// arrives there, with one byte. Who takes it sets it to nil.
	PTY *os.File

	own []*os.File
}

// Open opens what l needs, in order. On failure nothing stays open.
func Open(ctx context.Context, l *launch.Launch, in Inputs) (*Files, error) {
	f := &Files{List: make([]*os.File, 0, len(l.Needs))}
	for _, n := range l.Needs {
		// A volume on a dead network server may take long to open.
		err := context.Cause(ctx)
		if err == nil {
			err = f.open(n, in)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("prepare launch: %w", err), f.Close())
		}
	}
	return f, nil
}

// Close closes what Open opened, not the caller's Inputs.
func (f *Files) Close() error {
	var errs []error
	if f.PTY != nil {
		errs = append(errs, f.PTY.Close())
		f.PTY = nil
	}
	for _, o := range f.own {
		errs = append(errs, o.Close())
	}
	f.own, f.List = nil, nil
	return errors.Join(errs...)
}

func (f *Files) open(n launch.Need, in Inputs) error {
	switch n.Kind {
	case launch.Stdin:
		return f.stdio(in.Stdin)
	case launch.Stdout:
		return f.stdio(in.Stdout)
	case launch.Stderr:
		return f.stdio(in.Stderr)
	case launch.CgroupTasks:
		return f.path(n, "cgroup", unix.O_WRONLY)
	case launch.CgroupDir:
		return f.path(n, "cgroup", unix.O_PATH|unix.O_DIRECTORY)
	case launch.Namespace:
		return f.path(n, string(n.Type)+" namespace", unix.O_RDONLY)
	case launch.Volume:
		return f.volume(n, in.UserNS)
	case launch.DeviceTree:
		return f.deviceTree(n.Devices)
	case launch.PTYSocket:
		return f.socket()
	case launch.Rootfs:
		return f.given(n, in.Rootfs)
	case launch.Gate:
		return f.given(n, in.Gate)
	case launch.Process:
		return f.given(n, in.Process)
	case launch.InitProgram:
		return f.given(n, in.InitProgram)
	case launch.BaseMounts:
		return f.given(n, in.BaseMounts)
	}
	return fmt.Errorf("%s: of no known kind", n)
}

func (f *Files) given(n launch.Need, file *os.File) error {
	if file == nil {
		return fmt.Errorf("%s: not given", n)
	}
	f.List = append(f.List, file)
	return nil
}

// keep appends a descriptor that Close closes.
func (f *Files) keep(fd int, name string) {
	file := os.NewFile(uintptr(fd), name)
	f.own = append(f.own, file)
	f.List = append(f.List, file)
}

func (f *Files) stdio(given *os.File) error {
	if given != nil {
		f.List = append(f.List, given)
		return nil
	}
	return f.path(launch.Need{Path: os.DevNull}, "standard stream", unix.O_RDWR)
}

func (f *Files) path(n launch.Need, what string, flags int) error {
	fd, err := unix.Open(n.Path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s %s: %w", what, n.Path, err)
	}
	f.keep(fd, n.Path)
	return nil
}

func (f *Files) socket() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make pty socket: %w", err)
	}
	f.keep(fds[0], "pty socket, child's end")
	f.PTY = os.NewFile(uintptr(fds[1]), "pty socket")
	return nil
}

// volume clones a source with the flags that it will have in the container.
func (f *Files) volume(n launch.Need, userNS *os.File) error {
	v := n.Volume
	fail := func(what string, err error) error {
		return fmt.Errorf("volume %d at %s: %s %s: %w", v.Mount, v.Destination, what, n.Path, err)
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if v.Recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, n.Path, flags)
	if err != nil {
		return fail("clone", err)
	}
	f.keep(fd, n.Path)
	if len(v.UIDs) != 0 {
		if userNS == nil {
			return fail("map ids of", errors.New("no user namespace was given"))
		}
		a := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userNS.Fd())}
		if err := setAttr(fd, v.IDMapRecurse, a); err != nil {
			return fail("map ids of", err)
		}
	}
	if v.Set|v.Clear != 0 {
		if err := setAttr(fd, false, unix.MountAttr{Attr_set: v.Set, Attr_clr: v.Clear}); err != nil {
			return fail("set flags of", err)
		}
	}
	if v.SetRecursive != 0 {
		if err := setAttr(fd, true, unix.MountAttr{Attr_set: v.SetRecursive}); err != nil {
			return fail("set flags of all below", err)
		}
	}
	if v.Propagation != 0 {
		if err := setAttr(fd, v.PropagationRecursive, unix.MountAttr{Propagation: v.Propagation}); err != nil {
			return fail("set propagation of", err)
		}
	}
	return nil
}

func setAttr(fd int, recursive bool, a unix.MountAttr) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &a)
}
