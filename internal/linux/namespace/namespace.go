// Package namespace makes namespaces without a process in them, pins them by bind
// mounts, and runs functions inside.
//
// It refuses sysctls that are not confined to a namespace of the pod's own. It
// starts no goroutine that outlives a call. What it leaves on disk is one mounted
// file per namespace in the directory given to Pin, until Unpin.
package namespace

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/thread"
)

// Kind is a kind of namespace. Its text is the name of its file in /proc/PID/ns.
type Kind string

// The kinds.
const (
	Net    Kind = "net"
	IPC    Kind = "ipc"
	UTS    Kind = "uts"
	PID    Kind = "pid"
	User   Kind = "user"
	Mount  Kind = "mnt"
	Cgroup Kind = "cgroup"
)

// Flag is the kind's CLONE_NEW constant; 0 for an unknown kind.
func (k Kind) Flag() int {
	switch k {
	case Net:
		return unix.CLONE_NEWNET
	case IPC:
		return unix.CLONE_NEWIPC
	case UTS:
		return unix.CLONE_NEWUTS
	case PID:
		return unix.CLONE_NEWPID
	case User:
		return unix.CLONE_NEWUSER
	case Mount:
		return unix.CLONE_NEWNS
	case Cgroup:
		return unix.CLONE_NEWCGROUP
	}
	return 0
}

// IDMap is one range of a user namespace's ids.
type IDMap struct{ Container, Host, Size uint32 }

// UserMap are the maps of a user namespace.
type UserMap struct{ UIDs, GIDs []IDMap }

// Spec says which namespaces to make and how to set them up.
type Spec struct {
	Net, IPC, UTS bool
	User          *UserMap // nil: none, the others belong to the host's
	Hostname      string   // needs UTS
	Sysctls       map[string]string
}

// Do runs fn on a thread of its own inside the namespace that path refers to: net,
// ipc or uts. The thread ends afterwards, whatever fn did to it.
func Do(path string, k Kind, fn func() error) error {
	return thread.Throwaway(func() error {
		if err := enter(path, k); err != nil {
			return err
		}
		return fn()
	})
}

func enter(path string, k Kind) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("enter %s namespace: open %s: %w", k, path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Setns(fd, k.Flag()); err != nil {
		return fmt.Errorf("enter %s namespace %s: %w", k, path, err)
	}
	return nil
}

// Inode identifies the namespace that path refers to.
func Inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("identify namespace %s: %w", path, err)
	}
	return st.Ino, nil
}
