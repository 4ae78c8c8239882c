package spec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// This file is the RuntimeDefault seccomp profile.
//
// It is our own. It was made from the kernel's system call tables for amd64 with
// i386 and x32, and arm64 with 32-bit arm, as of kernel 7.0: every call in them is
// in one of the lists below, allowed, allowed with some capability, or denied with a
// reason, and a test fails when the tables grow a call that nobody has sorted yet.
// The lists were then compared with the published default profile of Docker's, which
// containerd's follows: what that allows is allowed here, since images are built and
// tested against it. A call that is not allowed gets EPERM. A call newer than all of
// these gets ENOSYS, by which the C libraries know to fall back to an older one.
//
// What is denied is either not namespaced (a container would act on the node), or a
// way into parts of the kernel with a history of holes that programs in containers
// do without.

// callGroup is a list of calls with what they are for, or why they are denied.
type callGroup struct{ why, calls string }

var allowedCalls = []callGroup{
	{"files by path", `access chdir chmod chown chown32 creat faccessat faccessat2 fchmodat fchmodat2 fchownat futimesat
		getcwd lchown lchown32 link linkat lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat
		fstatat64 open openat openat2 readlink readlinkat rename renameat renameat2 rmdir stat stat64 statfs statfs64
		statx symlink symlinkat truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes
		listmount statmount file_getattr file_setattr`},
	{"extended attributes", `fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat
		llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat`},
	{"open files", `_llseek arm_fadvise64_64 arm_sync_file_range cachestat close close_range copy_file_range dup dup2 dup3
		fadvise64 fadvise64_64 fallocate fchdir fchmod fchown fchown32 fcntl fcntl64 fdatasync flock fstat fstat64
		fstatfs fstatfs64 fsync ftruncate ftruncate64 getdents getdents64 ioctl lseek pipe pipe2 pread64 preadv preadv2
		pwrite64 pwritev pwritev2 read readahead readv sendfile sendfile64 splice sync sync_file_range sync_file_range2
		syncfs tee vmsplice write writev`},
	{"asynchronous input and output, the old kind", `io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64
		io_setup io_submit`},
	{"waiting for events", `_newselect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
		epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
		poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4`},
	{"memory", `brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2
		mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages`},
	{"processes and threads", `execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv
		futex_wake get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getrusage getsid gettid kill
		pause pidfd_open pidfd_send_signal prctl process_mrelease process_vm_readv process_vm_writev ptrace
		restart_syscall rseq rseq_slice_yield set_robust_list set_thread_area set_tid_address setpgid setsid tgkill
		times tkill vfork wait4 waitid waitpid uretprobe uprobe`},
	{"signals", `rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
		rt_sigtimedwait_time64 rt_tgsigqueueinfo sgetmask sigaction sigaltstack signal sigpending sigprocmask sigreturn
		sigsuspend ssetmask`},
	{"scheduling; the kernel checks what needs a capability", `getpriority ioprio_get ioprio_set nice sched_get_priority_max
		sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
		sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
		setpriority`},
	{"users, groups, capabilities, limits; likewise", `capget capset getegid getegid32 geteuid geteuid32 getgid getgid32
		getgroups getgroups32 getresgid getresgid32 getresuid getresuid32 getrlimit getuid getuid32 prlimit64 setfsgid
		setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32
		setresuid setresuid32 setreuid setreuid32 setrlimit setuid setuid32 ugetrlimit`},
	{"confining oneself", `landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp`},
	{"time and timers; setting the clock by adjtimex needs a capability", `adjtimex alarm clock_adjtime clock_adjtime64
		clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer
		gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
		timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64`},
	// socketcall hides its arguments in memory, where a filter cannot look: 32-bit x86
	// programs can reach the families that are denied below. They could not do without.
	{"sockets but their creation", `accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
		recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair`},
	{"System V and POSIX queues, semaphores, memory: in the IPC namespace", `ipc mq_getsetattr mq_notify mq_open mq_timedreceive
		mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget
		semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget`},
	{"about the machine", `getrandom sysinfo uname`},
	{"of one architecture", `arch_prctl breakpoint cacheflush get_tls modify_ldt set_tls`},
}

// capabilityCalls are allowed to containers that have one of the capabilities: the
// kernel demands it anyway, and who was given it was meant to use it.
var capabilityCalls = []struct{ capabilities, calls string }{
	{"CAP_SYS_ADMIN", `bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
		lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree open_tree_attr perf_event_open
		pivot_root quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare`},
	{"CAP_BPF", `bpf`},
	{"CAP_PERFMON", `perf_event_open`},
	{"CAP_SYSLOG", `syslog`},
	{"CAP_DAC_READ_SEARCH", `open_by_handle_at`},
	{"CAP_SYS_BOOT", `reboot`},
	{"CAP_SYS_CHROOT", `chroot`},
	{"CAP_SYS_MODULE", `delete_module finit_module init_module`},
	{"CAP_SYS_NICE", `get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node`},
	{"CAP_SYS_PACCT", `acct`},
	{"CAP_SYS_PTRACE", `kcmp pidfd_getfd process_madvise`},
	{"CAP_SYS_RAWIO", `ioperm iopl`},
	{"CAP_SYS_TIME", `clock_settime clock_settime64 settimeofday stime`},
	{"CAP_SYS_TTY_CONFIG", `vhangup`},
}

// deniedCalls are in no rule. They are listed so that the lists are known to be complete.
var deniedCalls = []callGroup{
	{"replaces the running kernel", `kexec_file_load kexec_load`},
	{"the node's swap", `swapoff swapon`},
	{"keyrings are not namespaced, and outlive the container", `add_key keyctl request_key`},
	{"a large surface that does its work past this filter", `io_uring_enter io_uring_register io_uring_setup`},
	{"stops the kernel in the middle of copying, which makes races exploitable", `userfaultfd`},
	{"shows namespaces beyond the container's", `listns`},
	{"real mode", `vm86 vm86old`},
	{"raw access to devices", `pciconfig_iobase pciconfig_read pciconfig_write`},
	{"parts of the kernel that are gone or never were", `_sysctl afs_syscall bdflush break create_module ftime get_kernel_syms
		getpmsg gtty idle lock mpx nfsservctl prof profil putpmsg query_module security stty tuxcall ulimit uselib
		usr26 usr32 vserver`},
	{"replaced before this century", `oldfstat oldlstat oldolduname oldstat olduname readdir sysfs ustat`},
}

// callsWithArguments are in rules of their own.
var callsWithArguments = []string{"clone", "clone3", "personality", "socket"}

const (
	eperm  = uint(1)
	enosys = uint(38)
)

// DefaultSeccomp is the RuntimeDefault profile for a container with the
// capabilities caps on the architecture arch, "amd64" or "arm64".
func DefaultSeccomp(arch string, caps []string) *specs.LinuxSeccomp {
	errno := eperm
	var allowed []string
	for _, g := range allowedCalls {
		allowed = append(allowed, strings.Fields(g.calls)...)
	}
	for _, g := range capabilityCalls {
		if slices.Contains(caps, g.capabilities) {
			allowed = append(allowed, strings.Fields(g.calls)...)
		}
	}
	slices.Sort(allowed)
	p := &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: &errno,
		Architectures:   seccompArchitectures(arch),
		Syscalls:        []specs.LinuxSyscall{{Names: slices.Compact(allowed), Action: specs.ActAllow}},
	}
	if !slices.Contains(caps, "CAP_SYS_ADMIN") {
		p.Syscalls = append(p.Syscalls, cloneRules()...)
	}
	p.Syscalls = append(p.Syscalls, personalityRules()...)
	p.Syscalls = append(p.Syscalls, socketRules()...)
	return p
}

// seccompArchitectures are those whose programs a kernel for arch runs.
func seccompArchitectures(arch string) []specs.Arch {
	switch arch {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	}
	return nil
}

// cloneRules allow processes and threads, but no new namespaces: with a user
// namespace of its own a container reaches code that otherwise only root does. The
// flags of clone3 are in memory, out of a filter's sight, so that C libraries are
// made to fall back to clone.
func cloneRules() []specs.LinuxSyscall {
	const newNamespaces = 0x00020000 | // CLONE_NEWNS
		0x02000000 | 0x04000000 | 0x08000000 | // CLONE_NEWCGROUP, NEWUTS, NEWIPC
		0x10000000 | 0x20000000 | 0x40000000 // CLONE_NEWUSER, NEWPID, NEWNET
	errno := enosys
	return []specs.LinuxSyscall{
		{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: newNamespaces, ValueTwo: 0, Op: specs.OpMaskedEqual}}},
		{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &errno},
	}
}

// personalityRules allow to ask, and what setarch does for old programs; not the
// flags that switch off address space randomisation or make page zero readable.
func personalityRules() []specs.LinuxSyscall {
	const (
		linux32 = 0x0008
		uname26 = 0x0020000
		query   = 0xffffffff
	)
	var out []specs.LinuxSyscall
	for _, v := range []uint64{0, linux32, uname26, uname26 | linux32, query} {
		out = append(out, specs.LinuxSyscall{
			Names: []string{"personality"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: v, Op: specs.OpEqualTo}},
		})
	}
	return out
}

// socketRules allow all families of addresses but two. AF_VSOCK (40) is not
// namespaced: it reaches the hypervisor from any container. AF_ALG (38) is a large
// interface to kernel code that no network program needs. The family is an int:
// the kernel drops the upper half of the register, and so do the masks here, lest
// 1<<32 + 40 passes for something else.
func socketRules() []specs.LinuxSyscall {
	var out []specs.LinuxSyscall
	for _, r := range []struct{ mask, value uint64 }{
		{0xffffffe0, 0}, // 0 to 31
		{0xfffffffc, 32}, {0xfffffffe, 36}, {0xffffffff, 39},
		{0xffffffff, 41}, {0xfffffffe, 42}, {0xfffffffc, 44}, // to 47; the kernel's last is 45
	} {
		out = append(out, specs.LinuxSyscall{
			Names: []string{"socket"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: r.mask, ValueTwo: r.value, Op: specs.OpMaskedEqual}},
		})
	}
	return out
}
