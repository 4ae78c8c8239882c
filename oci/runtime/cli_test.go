package runtime

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
	"github.com/cri-runtime/cri-runtime/oci/spec"
)

// each runs a test with every program, runc first: crun's tests need the cgroup2 mount
// away, for good.
func each(t *testing.T, test func(t *testing.T, n *node)) {
	t.Helper()
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) { test(t, newNode(t, name, program(t, name))) })
	}
}

// TestCLI is one function, so that nothing runs with runc after crun has begun.
func TestCLI(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		for _, sub := range []struct {
			name string
			test func(t *testing.T, n *node)
		}{
			{"streams and exit code", testStreams}, {"terminal", testTerminal},
			{"refusals", testRefusals}, {"exec", testExec}, {"exec ends as a whole", testExecTree},
			{"many execs", testBurst}, {"new daemon", testRecover},
		} {
			t.Run(sub.name, func(t *testing.T) {
				inner := *n
				inner.t = t
				sub.test(t, &inner)
				n.client, n.cli = inner.client, inner.cli
			})
		}
	})
}

func testStreams(t *testing.T, n *node) {
	c := n.start("streams", n.spec("streams", false, "/bin/sh", "-c", "echo out; echo err >&2; read x; echo got $x; pwd; exit 7"))
	if pids, err := c.group.Pids(); err != nil || !slices.Equal(pids, []int{c.proc.PID}) {
		t.Errorf("processes in its cgroup: got %v, %v, want %d", pids, err, c.proc.PID)
	}
	in, err := n.client.Stdin(c.id)
	must(t, err)
	_, err = in.WriteString("it\n")
	must(t, errors.Join(err, in.Close()))
	if e := n.wait(c.id); e.Code != 7 {
		t.Errorf("exit code: got %d, want 7", e.Code)
	}
	got := c.lines()
	slices.Sort(got) // the two streams are not in order
	if want := []string{"stderr err", "stdout /tmp", "stdout got it", "stdout out"}; !slices.Equal(got, want) {
		t.Errorf("log: got %q, want %q", got, want)
	}
}

func testTerminal(t *testing.T, n *node) {
	c := n.start("terminal", n.spec("terminal", true, "/bin/sh", "-c", "tty; kill -9 $$"))
	if e := n.wait(c.id); e.Signal != 0 && e.Signal != int(unix.SIGKILL) { // an init is immune to itself
		t.Errorf("end: got %+v", e)
	}
	if got := c.lines(); len(got) == 0 || !strings.HasPrefix(got[0], "stdout /dev/") {
		t.Errorf("log: got %q, want the terminal's name", got)
	}
}

// testRefusals: what the container's own program is to blame for is told apart from
// everything else, and nothing is left of either.
func testRefusals(t *testing.T, n *node) {
	for name, tc := range map[string]struct {
		args []string
		code int32 // 0: not an ExecError
	}{
		"not in PATH":    {[]string{"no-such-program"}, 127},
		"no such path":   {[]string{"/bin/no-such-program"}, 127},
		"not executable": {[]string{"/etc/noexec"}, 126},
		"directory":      {[]string{"/etc"}, 126},
		"bad mount":      {[]string{"/bin/true"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inner := *n
			inner.t = t
			s := inner.spec("refused", false, tc.args...)
			if tc.code == 0 {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/no/such/volume", Options: []string{"rbind"}})
			}
			_, st := inner.prepare("refused", s)
			_, err := inner.cli.Start(t.Context(), st)
			var failed *ExecError
			if errors.As(err, &failed); err == nil || (failed != nil) != (tc.code != 0) || failed != nil && failed.Code != tc.code {
				t.Errorf("got %v, want exit code %d", err, tc.code)
			}
			if tc.code == 0 && !strings.Contains(err.Error(), "/no/such/volume") {
				t.Errorf("got %v, want the volume's name in it", err)
			}
			if _, err := os.Stat(inner.cli.bundle("refused")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("bundle: got %v, want it gone", err)
			}
		})
	}
}

func testExec(t *testing.T, n *node) {
	c := n.start("exec", n.spec("exec", false, "/bin/sleep", "1000"))
	for name, tc := range map[string]struct {
		args   []string
		code   int32
		output string
	}{
		"output and code": {[]string{"sh", "-c", "echo hi; exit 42"}, 42, "hi\n"},
		"signal":          {[]string{"sh", "-c", "kill -9 $$"}, 137, ""},
		"255 is a code":   {[]string{"sh", "-c", "exit 255"}, 255, ""},
		"score":           {[]string{"cat", "/proc/self/oom_score_adj"}, 0, strconv.Itoa(score(n)) + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			inner := *c
			node := *n
			inner.n, node.t = &node, t
			x, err := inner.exec(false, tc.args...)
			must(t, err)
			if e := node.wait(x.proc.ID); e.Code != tc.code {
				t.Errorf("code: got %d, want %d", e.Code, tc.code)
			}
			if <-x.done; x.out.String() != tc.output {
				t.Errorf("output: got %q, want %q", x.out.String(), tc.output)
			}
		})
	}
	for program, code := range map[string]int32{"no-such-program": 127, "/bin/nothing": 127, "/etc/noexec": 126} {
		_, err := c.exec(false, program)
		if failed, ok := errors.AsType[*ExecError](err); !ok || failed.Code != code {
			t.Errorf("%s: got %v, want exit code %d", program, err, code)
		}
	}
	x, err := c.exec(true, "sh", "-c", "stty size; tty")
	must(t, err)
	if e := n.wait(x.proc.ID); e.Code != 0 {
		t.Errorf("terminal: code %d", e.Code)
	}
	if <-x.done; !strings.Contains(x.out.String(), "/dev/") {
		t.Errorf("terminal: got %q, want its name", x.out.String())
	}
}

// score is what a container's process gets who asks for -500.
func score(n *node) int {
	if n.cli.resource {
		return -500
	}
	return max(-500, ownOOMScoreAdj())
}

// testExecTree: killing the session's cgroup ends all that it has started and nothing else.
func testExecTree(t *testing.T, n *node) {
	c := n.start("tree", n.spec("tree", false, "/bin/sleep", "1000"))
	script, want := "(sleep 999; true) & sleep 997", 3
	if n.cli.can.subCgroup(c.group) != "" { // else an orphan may have been made before the move
		script, want = "(setsid sleep 998 & true); "+script, 4
	}
	x, err := c.exec(false, "sh", "-c", script)
	must(t, err)
	deadline := time.Now().Add(10 * time.Second)
	for pids := []int(nil); len(pids) < want; time.Sleep(5 * time.Millisecond) {
		if pids, err = x.group.Pids(); err != nil || time.Now().After(deadline) {
			t.Fatalf("processes of the session: got %v, %v, want %d of them", pids, err, want)
		}
	}
	must(t, x.group.Kill(t.Context()))
	if e := n.wait(x.proc.ID); e.Signal != int(unix.SIGKILL) {
		t.Errorf("end of the command: got %+v, want SIGKILL", e)
	}
	if pids, err := c.group.Pids(); err != nil || !slices.Equal(pids, []int{c.proc.PID}) {
		t.Errorf("left in the container: got %v, %v, want %d", pids, err, c.proc.PID)
	}
}

// testBurst: commands that end at once, many at a time, keep their exit codes.
func testBurst(t *testing.T, n *node) {
	c := n.start("burst", n.spec("burst", false, "/bin/sleep", "1000"))
	process, err := spec.BuildProcess(c.spec.Process, spec.Exec{Args: []string{"sh", "-c", "exit 9"}})
	must(t, err)
	one := func(id string) (code int32, err error) {
		g, err := c.group.Exec(id)
		if err != nil {
			return 0, err
		}
		defer g.Close()
		defer func() { err = errors.Join(err, g.Remove(context.Background())) }()
		if _, err := n.cli.Exec(t.Context(), Exec{ID: id, Container: c.id, PID: c.proc.PID, Spec: c.spec, Process: process, Group: g}); err != nil {
			return 0, err
		}
		<-n.client.Done(id)
		e, _ := n.client.Exit(id)
		return e.Code, n.client.Forget(t.Context(), id)
	}
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			if code, err := one("exec-" + strconv.Itoa(i)); err != nil || code != 9 {
				t.Errorf("exec %d: got code %d, %v, want 9", i, code, err)
			}
		})
	}
	all.Wait()
}

// testRecover cuts the daemon off at the two places where a container is half started.
func testRecover(t *testing.T, n *node) {
	ctx := t.Context()
	half := func(id string, adopt bool) *container {
		c, st := n.prepare(id, n.spec(id, false, "/bin/sh", "-c", "echo ran; sleep 1000"))
		config, err := n.cli.adapt(st.Spec)
		must(t, err)
		must(t, n.cli.makeBundle(st, config))
		pid, _, err := n.cli.create(ctx, st)
		must(t, err)
		if !adopt {
			dropLog(st)
			c.proc.PID = pid
			return c
		}
		c.proc, err = n.client.Adopt(ctx, monitor.Adopt{ID: id, PID: pid, Log: st.Log, Stdin: st.StdinKeep})
		must(t, err)
		t.Cleanup(c.remove)
		return c
	}
	adopted, lost := half("adopted", true), half("lost", false)
	must(t, n.client.Close())
	n.connect()
	n.restart()
	if state, err := n.cli.state(ctx, "adopted"); err != nil || state != specs.StateRunning {
		t.Errorf("the adopted one: got %s, %v, want it running", state, err)
	}
	if _, err := n.cli.state(ctx, "lost"); err == nil {
		t.Error("the lost one is still known")
	}
	if pids, err := lost.group.Pids(); err != nil || len(pids) > 0 {
		t.Errorf("processes of the lost one: got %v, %v, want none", pids, err)
	}
	for deadline := time.Now().Add(10 * time.Second); len(adopted.lines()) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the adopted one writes nothing to its log")
		}
	}
	if got := adopted.lines(); got[0] != "stdout ran" {
		t.Errorf("log of the adopted one: got %q", got)
	}
}

// TestCLIHanging: a program that hangs in create is killed when the caller gives up.
func TestCLIHanging(t *testing.T) {
	script := filepath.Join(t.TempDir(), "hang")
	must(t, os.WriteFile(script, []byte(`#!/bin/sh
case " $* " in
*" create "*) exec sleep 1000 ;;
*" state "*) exit 1 ;;
*--version*) echo "spec: 1.0.0" ;;
*features*) exit 1 ;;
esac
`), 0o755))
	n := newNode(t, "hang", script)
	s := n.spec("hanging", false, "/bin/true")
	_, st := n.prepare("hanging", s)
	gaveUp := errors.New("the caller gave up")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, gaveUp)
	defer cancel()
	begun := time.Now()
	if _, err := n.cli.Start(ctx, st); !errors.Is(err, gaveUp) || time.Since(begun) > 10*time.Second {
		t.Errorf("got %v after %v, want it to give up", err, time.Since(begun))
	}
}

func TestExecCode(t *testing.T) {
	for text, want := range map[string]int32{
		`runc create failed: unable to start container process: error during container init: exec: "foo": executable file not found in $PATH`: 127,
		`exec failed: unable to start container process: exec: "/bin/nope": stat /bin/nope: no such file or directory`:                        127,
		`runc create failed: unable to start container process: error during container init: exec: "/etc": permission denied`:                 126,
		`runc create failed: unable to start container process: error during container init: exec: "/etc": is a directory`:                    126,
		"executable file `foo` not found in $PATH: No such file or directory":                                                                 127,
		"open executable: Permission denied": 126,
		`runc create failed: error mounting "/no/such" to rootfs at "/data": stat /no/such: no such file or directory`: 0,
		"": 0,
	} {
		if got := execCode(text); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
}

// TestAdaptUnknown: of a program that says nothing of itself, nothing new is asked.
func TestAdaptUnknown(t *testing.T) {
	c := &CLI{CLIConfig: CLIConfig{Name: "old"}, can: abilities{spec: "1.0.0"}, resource: true}
	base := specs.Spec{Version: "1.3.0", Linux: &specs.Linux{}, Process: &specs.Process{}}
	out, err := c.adapt(&base)
	if err != nil || out.Version != "1.0.0" || out.Root.Path != dirRootfs || base.Version != "1.3.0" {
		t.Errorf("plain: got %+v, %v", out, err)
	}
	ids := []specs.LinuxIDMapping{{HostID: 1000, Size: 1}}
	for name, s := range map[string]specs.Spec{
		"rro":    {Linux: &specs.Linux{}, Mounts: []specs.Mount{{Options: []string{"rro"}}}},
		"idmap":  {Linux: &specs.Linux{}, Mounts: []specs.Mount{{UIDMappings: ids}}},
		"userns": {Linux: &specs.Linux{UIDMappings: ids}},
	} {
		if _, err := c.adapt(&s); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want it refused", name, err)
		}
	}
}

func TestOlder(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want bool
	}{{"1.0.0", "1.3.0", true}, {"1.3.0", "1.3.0", false}, {"1.2.1", "1.10.0", true}, {"1.0.2-dev", "1.0.3", true}, {"", "1.0.0", false}} {
		if got := older(tc.a, tc.b); got != tc.want {
			t.Errorf("%s before %s: got %v", tc.a, tc.b, got)
		}
	}
}
