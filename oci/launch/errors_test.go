package launch_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/launch"
)

// TestFailuresInWords makes steps fail and reads what an operator would read.
func TestFailuresInWords(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	bind := func(from, to string) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: to, Type: "bind", Source: from, Options: []string{"rbind"}})
		}
	}
	args := func(a ...string) func(*specs.Spec) { return func(s *specs.Spec) { s.Process.Args = a } }
	for name, tc := range map[string]struct {
		change func(*specs.Spec)
		want   string
		code   int // of a StepError, 0: another error
	}{
		"not in PATH":       {args("nosuch"), `exec: "nosuch": executable file not found in $PATH`, 127},
		"no such file":      {args("/bin/nosuch"), `exec: "/bin/nosuch": no such file or directory`, 127},
		"not executable":    {args("/etc/noexec"), `exec: "/etc/noexec": permission denied`, 126},
		"no program":        {args("/etc/garbage"), `exec: "/etc/garbage": exec format error`, 126},
		"a directory":       {args("/etc"), `exec: "/etc": permission denied`, 126},
		"no interpreter":    {args("/etc/badinterp"), `exec: "/etc/badinterp": no such file or directory`, 127},
		"below a file":      {args("/etc/noexec/x"), `exec: "/etc/noexec/x": no such file or directory`, 127},
		"volume source":     {bind(dir+"/nosuch", "/data"), "prepare launch: volume 5 at /data: clone " + dir + "/nosuch: no such file or directory", 0},
		"directory on file": {bind(dir, "/etc/noexec"), "mount volume 5 at /etc/noexec: not a directory", 128},
		"file on directory": {bind(dir+"/file", "/data"), "mount volume 5 at /data: is a directory", 128},
		"through /proc":     {bind(dir, "/lnk/self"), "mount volume 5 at /lnk/self: operation not permitted", 128},
		"working directory": {func(s *specs.Spec) { s.Process.Cwd = "/etc/noexec" }, "make working directory /etc/noexec: not a directory", 128},
		"magic cwd":         {func(s *specs.Spec) { s.Process.Cwd = "/proc/self/fd/7" }, "make working directory /proc/self/fd/7: too many levels of symbolic links", 128},
		"sysctl":            {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.nosuch": "1"} }, "set sysctl net.nosuch: no such file or directory", 128},
		"sysctl value":      {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.shm_rmid_forced": "x"} }, "set sysctl kernel.shm_rmid_forced: invalid argument", 128},
		"tmpfs option":      {tmpfs("size=lots"), "mount tmpfs at /tmp: option size=lots: invalid argument", 128},
		"namespace":         {func(s *specs.Spec) { join(s, specs.NetworkNamespace, dir+"/no") }, "prepare launch: open network namespace " + dir + "/no: no such file or directory", 0},
		"no namespace":      {func(s *specs.Spec) { join(s, specs.NetworkNamespace, dir+"/file") }, "join network namespace " + dir + "/file: invalid argument", 128},
		"another namespace": {func(s *specs.Spec) { join(s, specs.NetworkNamespace, "/proc/self/ns/uts") }, "join network namespace /proc/self/ns/uts: invalid argument", 128},
		"AppArmor":          {func(s *specs.Spec) { s.Process.ApparmorProfile = "nosuch" }, "set AppArmor profile nosuch: ", 128},
		"hostname":          {func(s *specs.Spec) { s.Hostname = strings.Repeat("x", 65) }, "set hostname " + strings.Repeat("x", 65) + ": invalid argument", 128},
	} {
		t.Run(name, func(t *testing.T) {
			s := baseSpec("true")
			tc.change(s)
			root := newRoot(t, 0)
			must(t, os.Symlink("/proc", filepath.Join(root, "lnk")))
			_, code, err := tryRun(t, s, launch.Options{}, root)
			if err == nil {
				t.Fatalf("got exit %d, want %q", code, tc.want)
			}
			if !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("got %q, want %q", err, tc.want)
			}
			if got := stepCode(err); got != tc.code {
				t.Errorf("exit code: got %d, want %d", got, tc.code)
			}
		})
	}
}

func stepCode(err error) int {
	if e, ok := errors.AsType[*launch.StepError](err); ok {
		return e.ExitCode()
	}
	return 0
}

func tmpfs(options ...string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: options})
	}
}

// TestLinksInTheWay puts symbolic links where the runtime mounts and writes.
func TestLinksInTheWay(t *testing.T) {
	needRoot(t)
	outside := t.TempDir()
	for name, tc := range map[string]struct {
		link, target string
		want         error // nil: it works, inside the root
	}{
		"proc":               {"proc", "/etc", syscall.ELOOP},
		"proc to the host":   {"proc", "../../../.." + outside, syscall.ELOOP},
		"dev":                {"dev", "/etc", syscall.ELOOP},
		"sys":                {"sys", "/etc", syscall.ELOOP},
		"volume destination": {"vol", outside, nil},
		"volume by dot dot":  {"vol", "../../../../../../.." + outside, nil},
		"working directory":  {"cwd", outside, nil},
		"masked path":        {"masked", "/etc", nil},
		"loop":               {"vol", "vol", syscall.ELOOP},
	} {
		t.Run(name, func(t *testing.T) {
			s := baseSpec("ls /vol /cwd >/dev/null; ls /masked")
			s.Process.Cwd = "/cwd/sub"
			s.Linux.MaskedPaths = []string{"/masked"}
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol/x", Type: "bind", Source: t.TempDir(), Options: []string{"rbind"}})
			root := newRoot(t, 0)
			must(t, os.Symlink(tc.target, filepath.Join(root, tc.link)))
			out, code, err := tryRun(t, s, launch.Options{}, root)
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, exit %d, want %v", err, code, tc.want)
			}
			if tc.link == "masked" && out != "" {
				t.Errorf("masked directory: got %q, want nothing", out)
			}
			left, err := os.ReadDir(outside)
			must(t, err)
			if len(left) != 0 {
				t.Errorf("made %v outside of the root", left)
			}
		})
	}
}

func TestCompileRefuses(t *testing.T) {
	seven := 7000
	for name, change := range map[string]func(*specs.Spec){
		"process is missing":          func(s *specs.Spec) { s.Process = nil },
		"process.args is empty":       func(s *specs.Spec) { s.Process.Args = nil },
		"is not absolute":             func(s *specs.Spec) { s.Process.Cwd = "relative" },
		"a string holds a NUL byte":   func(s *specs.Spec) { s.Process.Env = []string{"A=b\x00c"} },
		"mount namespace is missing":  func(s *specs.Spec) { s.Linux.Namespaces = nil },
		"linux.namespaces: pid twice": func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[0]) },
		"user without a path": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		},
		"linux.namespaces: time": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		},
		"not supported: hooks": func(s *specs.Spec) { s.Hooks = &specs.Hooks{} },
		"linux.intelRdt, linux.timeOff": func(s *specs.Spec) {
			s.Linux.IntelRdt = &specs.LinuxIntelRdt{}
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {}}
		},
		"process.selinuxLabel":           func(s *specs.Spec) { s.Process.SelinuxLabel = "x" },
		"the compiled filter do not":     func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{} },
		"unknown capability \"CAP_X\"":   func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_X"} },
		"unknown limit \"RLIMIT_X\"":     func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"soft limit above":               func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 2, Hard: 1}} },
		"nothing can be mounted below":   bindTo("/proc/sys"),
		"only procfs can be mounted":     bindTo("/x/../proc"),
		"root cannot be mounted over":    bindTo("/.."),
		"type \"ext4\" is not supported": func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "ext4"}) },
		"\"bogus\" is unknown": func(s *specs.Spec) {
			bindTo("/x")(s)
			m := &s.Mounts[len(s.Mounts)-1]
			m.Options = append(m.Options, "bogus")
		},
		"kernel.panic is not confined": func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.panic": "1"} },
		"../kernel/panic\" is no name": func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net/../kernel/panic": "1"} },
		"oomScoreAdj: 7000":            func(s *specs.Spec) { s.Process.OOMScoreAdj = &seven },
		"rootfsPropagation: \"odd\"":   func(s *specs.Spec) { s.Linux.RootfsPropagation = "odd" },
		"unknown type \"z\"":           func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/z", Type: "z"}} },
		"out of range": func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/z", Type: "c", Major: 1 << 12}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := baseSpec("true")
			change(s)
			_, err := launch.Compile(s, launch.Options{})
			if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v, want an invalid %q", err, name)
			}
		})
	}
}

func bindTo(dest string) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: "/tmp", Options: []string{"rbind"}})
	}
}
