package namespace

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// ipcSysctls are the kernel's own per IPC namespace (ipc/ipc_sysctl.c); fs.mqueue
// belongs to it as well.
var ipcSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall",
	"kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced", "kernel/auto_msgmni",
	"kernel/msg_next_id", "kernel/sem_next_id", "kernel/shm_next_id",
}

// sysctlPath turns a name into the path below /proc/sys. As in sysctl(8) and in the
// kubelet, the first separator decides: "net/ipv4/conf/eth0.1/rp_filter" and
// "net.ipv4.conf.eth0/1.rp_filter" are one name.
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

// CheckSysctl refuses a name that is not confined to a namespace of the pod's own;
// the flags say which ones it has.
func CheckSysctl(name string, net, ipc, uts bool) error {
	path := sysctlPath(name)
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "\x00\n ") {
			return fmt.Errorf("sysctl %q: not a name: %w", name, errdef.ErrInvalid)
		}
	}
	var own bool
	var kind Kind
	switch {
	case strings.HasPrefix(path, "net/"):
		own, kind = net, Net
	case isIPC(path):
		own, kind = ipc, IPC
	case path == "kernel/domainname":
		own, kind = uts, UTS
	case path == "kernel/hostname":
		return fmt.Errorf("sysctl %q: the pod's host name is set by its own field: %w", name, errdef.ErrInvalid)
	default:
		return fmt.Errorf("sysctl %q: not namespaced, would change the whole node: %w", name, errdef.ErrInvalid)
	}
	if !own {
		return fmt.Errorf("sysctl %q: the pod uses the node's %s namespace: %w", name, kind, errdef.ErrInvalid)
	}
	return nil
}

// writeSysctls writes on the calling thread's namespaces, sorted by name so that a
// failure is the same each time. The owner is the host's id of the user namespace's
// root: the IPC ones may be written by that user id only, whatever the capabilities
// (ipc_permissions in ipc/ipc_sysctl.c); the net ones ask for the capability.
func writeSysctls(values map[string]string, owner int) error {
	if len(values) == 0 {
		return nil
	}
	root, err := unix.Open("/proc/sys", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/sys: %w", err)
	}
	defer func() { _ = unix.Close(root) }()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(root, &fs); err != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("open /proc/sys: not procfs (type %x): %w", fs.Type, errdef.ErrInvalid)
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		write := func() error { return writeSysctl(root, sysctlPath(name), values[name]) }
		var err error
		if owner != 0 && isIPC(sysctlPath(name)) {
			err = asUser(owner, write)
		} else {
			err = write()
		}
		if err != nil {
			return fmt.Errorf("set sysctl %s to %q: %w", name, values[name], err)
		}
	}
	return nil
}

// dumpable guards the one property of the process that asUser disturbs.
var dumpable sync.Mutex

// asUser runs fn with the thread's effective user id changed, which makes the whole
// process undumpable for that time (commit_creds).
func asUser(uid int, fn func() error) error {
	dumpable.Lock()
	defer dumpable.Unlock()
	before, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("get dumpable: %w", err)
	}
	if err := seteuid(uid); err != nil {
		return err
	}
	err = errors.Join(fn(), seteuid(0))
	if before == 1 { // the other values cannot be set, nor were they disturbed
		err = errors.Join(err, unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
	}
	return err
}

// seteuid changes this thread only; the syscall package would change all of them.
func seteuid(uid int) error {
	keep := ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	return nil
}

func isIPC(path string) bool {
	return strings.HasPrefix(path, "fs/mqueue/") || slices.Contains(ipcSysctls, path)
}

func writeSysctl(root int, path, value string) error {
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err == unix.ENOENT {
		return fmt.Errorf("the kernel does not have it in this namespace: %w", errdef.ErrInvalid)
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	_, err = unix.Write(fd, []byte(value))
	if err == unix.EINVAL || err == unix.ERANGE {
		return fmt.Errorf("%w: %w", err, errdef.ErrInvalid)
	}
	return err
}
