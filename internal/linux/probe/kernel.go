package probe

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/fork"
	"github.com/cri-runtime/cri-runtime/internal/linux/pidfd"
)

// cloneArgs is the kernel's struct clone_args.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64
}

// cloneIntoCgroup asks for a child in the cgroup behind a descriptor that cannot be
// open: a kernel that knows the flag says so, and in no case is there a child.
func cloneIntoCgroup(h *cgroup.Host) error {
	if g, err := h.Open("/"); err == nil {
		dir, err := g.Dir()
		if err != nil {
			return err
		}
		if dir == nil {
			return errors.New("no cgroup2 is mounted")
		}
		_ = dir.Close()
	}
	args := cloneArgs{flags: unix.CLONE_INTO_CGROUP, exitSignal: uint64(unix.SIGCHLD), cgroup: 1<<31 - 1}
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno == unix.EBADF {
		return nil
	}
	return fmt.Errorf("clone3: %w", errno)
}

func pressure() error {
	_, err := os.ReadFile("/proc/pressure/cpu")
	return err
}

// pidfdInfo lets a child end and reads its exit status after it was reaped.
func pidfdInfo() error {
	c, err := fork.Start(0)
	if err != nil {
		return err
	}
	p, err := pidfd.Open(c.Pid)
	if err = errors.Join(err, c.End()); err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	i, err := p.Info()
	if err == nil && (!i.Reaped || !i.Status.Exited()) {
		err = errors.New("the kernel gives no exit status")
	}
	return err
}

func seccomp() error {
	action := uint32(0x80000000) // SECCOMP_RET_KILL_PROCESS, 4.14
	const getActionAvail = 2
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, getActionAvail, 0, uintptr(unsafe.Pointer(&action)))
	if errno != 0 {
		return errno
	}
	return nil
}

func apparmor() error {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil {
		return err
	}
	if s := strings.TrimSpace(string(b)); s != "Y" {
		return fmt.Errorf("enabled is %q", s)
	}
	_, err = os.Stat("/sys/kernel/security/apparmor/.replace")
	return err
}

// nftables asks for the ruleset's generation, the smallest of its requests.
func nftables() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	// A kernel that does not answer must not hold up the start.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return err
	}
	type request struct {
		unix.NlMsghdr
		family, version uint8
		resource        uint16
	}
	req := request{NlMsghdr: unix.NlMsghdr{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: unix.NLM_F_REQUEST, Seq: 1}}
	req.Len = uint32(unsafe.Sizeof(req))
	msg := unsafe.Slice((*byte)(unsafe.Pointer(&req)), unsafe.Sizeof(req))
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 {
		return fmt.Errorf("answer of %d bytes", n)
	}
	if (*unix.NlMsghdr)(unsafe.Pointer(&buf[0])).Type == unix.NLMSG_ERROR {
		return unix.Errno(-*(*int32)(unsafe.Pointer(&buf[unix.SizeofNlMsghdr])))
	}
	return nil
}
