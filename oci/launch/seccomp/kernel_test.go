package seccomp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/spec"
)

// childEnv says what the re-executed test binary tries under a filter.
const childEnv = "SECCOMP_TEST_TRY"

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		if err := child(what); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child confines its thread and makes the calls, each "number:argument", printing
// what the kernel says.
func child(what string) error {
	profile, list, _ := strings.Cut(what, " ")
	p := spec.DefaultSeccomp(runtime.GOARCH, nil)
	if profile == "kill" {
		p = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"getppid"}, Action: specs.ActKillProcess}}}
	}
	prog, err := Compile(p)
	if err != nil {
		return err
	}
	var calls [][2]uint64
	for f := range strings.FieldsSeq(list) {
		nr, arg, _ := strings.Cut(f, ":")
		n, err1 := strconv.ParseUint(nr, 0, 32)
		a, err2 := strconv.ParseUint(arg, 0, 64)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		calls = append(calls, [2]uint64{n, a})
	}
	runtime.LockOSThread()
	if err := install(prog); err != nil {
		return err
	}
	for _, c := range calls {
		_, _, errno := unix.RawSyscall6(uintptr(c[0]), uintptr(c[1]), 0, 0, 0, 0, 0)
		fmt.Println(int(errno))
	}
	return nil
}

func install(prog Program) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	b := prog.Bytes()
	fprog := unix.SockFprog{Len: uint16(len(b) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&b[0]))}
	const setModeFilter = 1
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, setModeFilter, uintptr(prog.Flags), uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(b)
	if errno != 0 {
		return fmt.Errorf("install filter: %w", errno)
	}
	return nil
}

func try(t *testing.T, what string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	out, err := cmd.Output()
	return string(out), err
}

// TestKernelObeysDefaultProfile lets the kernel run what was compiled.
func TestKernelObeysDefaultProfile(t *testing.T) {
	personality, _ := number("personality", map[string]archID{"amd64": amd64, "arm64": arm64}[runtime.GOARCH])
	for _, c := range []struct {
		name    string
		nr, arg uint64
		want    syscall.Errno
	}{
		{"getpid", unix.SYS_GETPID, 0, 0},
		{"keyctl", unix.SYS_KEYCTL, 0, unix.EPERM},
		{"unshare", unix.SYS_UNSHARE, unix.CLONE_NEWUSER, unix.EPERM},
		{"clone in a new user namespace", unix.SYS_CLONE, unix.CLONE_NEWUSER | uint64(unix.SIGCHLD), unix.EPERM},
		{"clone3", unix.SYS_CLONE3, 0, unix.ENOSYS},
		{"a call of the future", 600, 0, unix.ENOSYS},
		{"AF_VSOCK", unix.SYS_SOCKET, unix.AF_VSOCK, unix.EPERM},
		{"AF_VSOCK in disguise", unix.SYS_SOCKET, 1<<32 | unix.AF_VSOCK, unix.EPERM},
		{"AF_ALG", unix.SYS_SOCKET, unix.AF_ALG, unix.EPERM},
		{"AF_UNIX of no type", unix.SYS_SOCKET, unix.AF_UNIX, unix.ESOCKTNOSUPPORT},
		{"asking for the personality", uint64(personality), 0xffffffff, 0},
		{"switching off randomisation", uint64(personality), 0x0040000, unix.EPERM},
		{"io_uring", unix.SYS_IO_URING_SETUP, 0, unix.EPERM},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := try(t, fmt.Sprintf("default %d:%d", c.nr, c.arg))
			if want := fmt.Sprintln(int(c.want)); err != nil || out != want {
				t.Errorf("got %q, %v, want %q", out, err, want)
			}
		})
	}
}

func TestKernelKills(t *testing.T) {
	_, err := try(t, fmt.Sprintf("kill %d:0", unix.SYS_GETPPID))
	exit := new(exec.ExitError)
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGSYS {
		t.Errorf("got %v, want an end by SIGSYS", err)
	}
}

// TestTablesAgreeWithHeaders compares with the distribution's kernel headers, which
// may be older but never different.
func TestTablesAgreeWithHeaders(t *testing.T) {
	define := regexp.MustCompile(`(?m)^#define __NR_(\w+) (?:(\d+)|\(__X32_SYSCALL_BIT \+ (\d+)\))$`)
	for file, arch := range map[string]archID{"unistd_64.h": amd64, "unistd_32.h": i386, "unistd_x32.h": x32} {
		b, err := os.ReadFile(filepath.Join("/usr/include/x86_64-linux-gnu/asm", file))
		if err != nil {
			t.Skip("no kernel headers for amd64")
		}
		found := define.FindAllStringSubmatch(string(b), -1)
		if len(found) < 300 {
			t.Errorf("%s: only %d calls found", file, len(found))
		}
		listed := map[string]bool{}
		for _, m := range found {
			listed[m[1]] = true
			want, _ := strconv.Atoi(m[2] + m[3])
			if m[3] != "" {
				want |= x32Bit
			}
			if got, ok := number(m[1], arch); !ok || got != uint32(want) {
				t.Errorf("%s: %s: got %d, %v, want %d", file, m[1], got, ok, want)
			}
		}
		for _, c := range calls {
			if nr := c.nr[arch]; nr >= 0 && nr&(x32Bit-1) < 335 && !listed[c.name] {
				t.Errorf("%s: has no %s, the table says %d", file, c.name, nr)
			}
		}
	}
}
