package launch_test

import (
	"encoding/binary"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/launch"
)

// killer is a filter that kills for some system calls and allows all others.
func killer(calls ...uint32) []byte {
	var b []byte
	ins := func(code uint16, jt, jf byte, k uint32) {
		b = binary.NativeEndian.AppendUint16(b, code)
		b = append(b, jt, jf)
		b = binary.NativeEndian.AppendUint32(b, k)
	}
	ins(0x20, 0, 0, 0)
	for i, nr := range calls {
		ins(0x15, byte(len(calls)-i), 0, nr)
	}
	ins(0x06, 0, 0, 0x7fff0000)
	ins(0x06, 0, 0, 0x80000000)
	return b
}

// TestSeccompOrder: with no_new_privs the filter comes after everything that it
// might forbid, without it before the rights to install it are gone.
func TestSeccompOrder(t *testing.T) {
	needRoot(t)
	for name, tc := range map[string]struct {
		nnp   bool
		calls []uint32
		want  string // of the error; empty: it works
	}{
		"late filter may forbid set-up": {true, []uint32{
			unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_CAPSET, unix.SYS_SETGROUPS, unix.SYS_CLOSE_RANGE, unix.SYS_OPENAT2,
		}, ""},
		"early filter is there for user":  {false, []uint32{unix.SYS_REBOOT}, ""},
		"early filter forbids set-up":     {false, []uint32{unix.SYS_SETRESUID}, "child died during set-up, exit code 159"},
		"late filter forbids the program": {true, []uint32{unix.SYS_EXECVE}, "exit 159"},
	} {
		t.Run(name, func(t *testing.T) {
			s := baseSpec("grep Seccomp: /proc/self/status; id -u")
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Process.NoNewPrivileges = tc.nnp
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
			out, code, err := tryRun(t, s, launch.Options{Seccomp: killer(tc.calls...)}, newRoot(t, 1000))
			switch {
			case tc.want == "exit 159":
				// After Ready an end of the pipe cannot be told from an exec,
				// but the exit code can.
				if err != nil || code != 128+int(unix.SIGSYS) {
					t.Errorf("got %v, exit %d", err, code)
				}
			case tc.want != "":
				if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
					t.Errorf("got %v, exit %d, want %q", err, code, tc.want)
				}
			case err != nil || code != 0 || out != "Seccomp:\t2\n1000\n":
				t.Errorf("got %v, exit %d, %q", err, code, out)
			}
		})
	}
}
