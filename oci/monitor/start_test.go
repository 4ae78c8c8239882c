package monitor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
)

// program ends a plan with an exec of a shell script.
func program(p *plan.Plan, script string) []byte {
	p.Add(plan.Ins{Op: plan.Ready, Out: plan.NoOut})
	p.Add(plan.Ins{Op: plan.Exec, Out: plan.NoOut, Args: []plan.Arg{
		p.Words(p.Str("/bin/sh")), plan.I(1), p.Table([]string{"sh", "-c", script}), p.Table([]string{"PATH=/bin:/usr/bin"}),
	}})
	return p.Marshal()
}

func prelude(inputs int) *plan.Plan {
	p := plan.New(inputs)
	p.Add(plan.Ins{Op: plan.Prelude, Out: plan.NoOut})
	return p
}

// dup puts a slot on a standard descriptor.
func dup(p *plan.Plan, from, to int) {
	p.Add(plan.Ins{Op: unix.SYS_DUP3, Out: plan.NoOut, Args: []plan.Arg{plan.S(from), plan.I(to), plan.I(0)}})
}

func TestStartPlan(t *testing.T) {
	w := newWorld(t)
	pipes, err := NewPipes(0, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer pipes.CloseContainerEnds()
	log, err := OpenLog(w.logPath("p"))
	if err != nil {
		t.Fatal(err)
	}
	p := prelude(3)
	p.CloneFlags = unix.CLONE_NEWPID
	for i := range 3 {
		dup(p, i, i)
	}
	proc, err := w.c.Start(t.Context(), Start{
		ID: "p", Plan: program(p, "echo pid $$; cat; exit 12"),
		Files: []*os.File{pipes.Stdin, pipes.Stdout, pipes.Stderr},
		Log:   &Log{Path: w.logPath("p"), File: log, Stdout: pipes.StdoutR, Stderr: pipes.StderrR}, Stdin: pipes.StdinW,
	})
	if err != nil {
		t.Fatal(err)
	}
	if proc.PID <= 1 || proc.StartTime == 0 || proc.PIDFD == nil {
		t.Errorf("process: %+v", proc)
	}
	pipes.CloseContainerEnds()
	in, err := w.c.Stdin("p")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	if err := w.c.CloseStdin(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if e := w.wait("p"); e.Code != 12 {
		t.Errorf("exit: %+v", e)
	}
	got := w.log("p")
	if !strings.Contains(got, " stdout F pid 1\n") || !strings.HasSuffix(got, " stdout F hello\n") {
		t.Errorf("log: %q", got)
	}
}

func TestStartFails(t *testing.T) {
	w := newWorld(t)
	p := prelude(0)
	at := p.Add(plan.Ins{Op: unix.SYS_CHDIR, Out: plan.NoOut, Args: []plan.Arg{p.Str("/nonexistent")}})
	_, err := w.c.Start(t.Context(), Start{ID: "f", Plan: program(p, "exit 0"), Ephemeral: true})
	var step *StepFailure
	if !errors.As(err, &step) || int(step.Step) != at || step.Errno != unix.ENOENT {
		t.Errorf("got %v, want step %d with ENOENT", err, at)
	}
	if _, err := w.c.Start(t.Context(), Start{ID: "f", Plan: []byte("rubbish")}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("malformed plan: %v", err)
	}
	if l := w.c.List(); len(l) != 0 {
		t.Errorf("left: %+v", l)
	}
}

// A launch that hangs holds up nobody, and is killed when its caller gives up.
func TestStartHangs(t *testing.T) {
	w := newWorld(t)
	r, wr, err := rawPipe("gate")
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(r, wr)
	p := prelude(1)
	p.Add(plan.Ins{Op: plan.Wait, Out: plan.NoOut, Args: []plan.Arg{plan.S(0)}})
	blob := program(p, "exit 0")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := w.c.Start(ctx, Start{ID: "h", Plan: blob, Files: []*os.File{r}})
		done <- err
	}()
	if e := w.wait(w.shell("exit 4")); e.Code != 4 {
		t.Errorf("meanwhile: %+v", e)
	}
	if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	if _, err := wr.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.c.Start(t.Context(), Start{ID: "h", Plan: blob, Files: []*os.File{r}}); err != nil {
		t.Errorf("again: %v", err)
	}
	w.wait("h")
}

// terminal starts a script on a terminal of its own.
func (w *world) terminal(id, script string) Process {
	w.t.Helper()
	log, err := OpenLog(w.logPath(id))
	if err != nil {
		w.t.Fatal(err)
	}
	p := prelude(1)
	master, slave := p.NewSlot(), p.NewSlot()
	at := int64(unix.AT_FDCWD)
	p.Add(plan.Ins{Op: unix.SYS_SETSID, Out: plan.NoOut})
	p.Add(plan.Ins{Op: unix.SYS_OPENAT, Out: master, Args: []plan.Arg{
		plan.I(at), p.Str("/dev/ptmx"), plan.I(unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC),
	}})
	p.Add(plan.Ins{Op: unix.SYS_IOCTL, Out: plan.NoOut, Args: []plan.Arg{plan.S(master), plan.I(unix.TIOCSPTLCK), p.Bytes(make([]byte, 4))}})
	p.Add(plan.Ins{Op: unix.SYS_IOCTL, Out: slave, Args: []plan.Arg{plan.S(master), plan.I(unix.TIOCGPTPEER), plan.I(unix.O_RDWR | unix.O_NOCTTY)}})
	p.Add(plan.Ins{Op: unix.SYS_IOCTL, Out: plan.NoOut, Args: []plan.Arg{plan.S(slave), plan.I(unix.TIOCSCTTY), plan.I(0)}})
	p.Add(plan.Ins{Op: plan.SendFD, Out: plan.NoOut, Args: []plan.Arg{plan.S(0), plan.S(master)}})
	// The lowest numbers were free, and dup3 onto itself fails.
	p.Add(plan.Ins{Op: unix.SYS_FCNTL, Out: slave, Args: []plan.Arg{plan.S(slave), plan.I(unix.F_DUPFD_CLOEXEC), plan.I(100)}})
	for fd := range 3 {
		dup(p, slave, fd)
	}
	proc, err := w.c.Start(w.t.Context(), Start{
		ID: id, Plan: program(p, script), Files: []*os.File{nil}, PTYAt: 0, TTY: true, Log: &Log{Path: w.logPath(id), File: log},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return proc
}

func TestTerminal(t *testing.T) {
	w := newWorld(t)
	p := w.terminal("t", "stty -echo; stty size; read x; stty size; echo got $x; kill -INT $$; sleep 9")
	if p.Master == nil {
		t.Fatal("no master")
	}
	a, err := w.c.Attach(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	if err := w.c.Resize("t", 132, 43); err != nil {
		t.Fatal(err)
	}
	w.kill() // the terminal survives
	in, err := w.c.Stdin("t")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteString("word\n"); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	sc := bufio.NewScanner(a.Stdout)
	found := false
	for sc.Scan() {
		found = found || strings.Contains(sc.Text(), "got word")
	}
	if !found {
		t.Error("attached: no answer seen")
	}
	e := w.wait("t")
	if e.Known && e.Signal != int(unix.SIGINT) {
		t.Errorf("exit: %+v", e)
	}
	if got := w.log("t"); !strings.Contains(got, " stdout F 43 132\r\n") || !strings.Contains(got, " stdout F got word\r\n") {
		t.Errorf("log: %q", got)
	}
}

// A launch whose monitor dies is not repeated: its inputs may be used up. Its
// process ends when it finds nobody to report to.
func TestStartInterrupted(t *testing.T) {
	w := newWorld(t)
	r, wr, err := rawPipe("gate")
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(r, wr)
	started := filepath.Join(w.dir, "started")
	p := prelude(1)
	p.Add(plan.Ins{Op: unix.SYS_MKDIRAT, Out: plan.NoOut, Args: []plan.Arg{plan.I(int64(unix.AT_FDCWD)), p.Str(started), plan.I(0o700)}})
	p.Add(plan.Ins{Op: plan.Wait, Out: plan.NoOut, Args: []plan.Arg{plan.S(0)}})
	ran := filepath.Join(w.dir, "ran")
	blob := program(p, "touch "+ran)
	done := make(chan error, 1)
	go func() {
		_, err := w.c.Start(t.Context(), Start{ID: "i", Plan: blob, Files: []*os.File{r}})
		done <- err
	}()
	for _, err := os.Stat(started); err != nil; _, err = os.Stat(started) {
		time.Sleep(time.Millisecond)
	}
	w.kill()
	if err := <-done; !errors.Is(err, errdef.ErrRetry) {
		t.Errorf("got %v, want ErrRetry", err)
	}
	closeAll(r) // the child holds the last reading end: its death is our EPIPE
	if _, err := wr.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	fds := []unix.PollFd{{Fd: int32(wr.Fd()), Events: unix.POLLERR}}
	if n, err := unix.Poll(fds, 5000); n != 1 || err != nil {
		t.Fatalf("the child still waits: %v", err)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("the program ran without anybody knowing")
	}
	if len(w.c.List()) != 0 {
		t.Errorf("list: %+v", w.c.List())
	}
}

// The second stage of a launch may be executed and gone before the first one has ended.
// Sessions leave nothing in the monitor, without being forgotten.
func TestSecondStagesThatEndAtOnce(t *testing.T) {
	w := newWorld(t)
	p := prelude(0)
	p.Add(plan.Ins{Op: plan.Clone, Out: plan.NoOut, Args: []plan.Arg{plan.I(0)}})
	blob := program(p, "exit 3")
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 100 {
				id := fmt.Sprintf("e%d-%d", worker, i)
				if _, err := w.c.Start(t.Context(), Start{ID: id, Plan: blob, Ephemeral: true}); err != nil {
					t.Errorf("start %s: %v", id, err)
					return
				}
				<-w.c.Done(id)
				if e, ok := w.c.Exit(id); !ok || !e.Known || e.Code != 3 {
					t.Errorf("exit of %s: got %+v, %v, want code 3", id, e, ok)
				}
				if err := w.c.Forget(t.Context(), id); err != nil {
					t.Errorf("forget %s: %v", id, err)
				}
			}
		})
	}
	wg.Wait()
	if err := w.c.Close(); err != nil {
		t.Fatal(err)
	}
	w.connect()
	if l := w.c.List(); len(l) != 0 {
		t.Errorf("the monitor still holds %v", l)
	}
}

// What the monitor has to say of sessions waits where the daemon does not read: by the time
// it is said they have ended, and each answer still has the session's own descriptor.
func TestSessionsThatEndBeforeTheirAnswer(t *testing.T) {
	w := newWorld(t)
	const sessions = 600
	mark := filepath.Join(w.dir, "mark")
	var blocked sync.Once
	goOn := make(chan struct{})
	w.c.OnExit(func(string, Exit) { blocked.Do(func() { <-goOn }) }) // the reader of the connection
	blob := program(prelude(0), "printf x >>"+mark+"; exit 3")
	var wg sync.WaitGroup
	for i := range sessions {
		id := fmt.Sprint("e", i)
		wg.Go(func() {
			p, err := w.c.Start(t.Context(), Start{ID: id, Plan: blob, Ephemeral: true})
			if err != nil {
				t.Errorf("start %s: %v", id, err)
				return
			}
			info, err := os.ReadFile(fmt.Sprint("/proc/self/fdinfo/", p.PIDFD.Fd()))
			if ended := "Pid:\t-1\n"; err != nil || !strings.Contains(string(info), fmt.Sprintf("Pid:\t%d\n", p.PID)) && !strings.Contains(string(info), ended) {
				t.Errorf("%s: process %d has the descriptor %v %s", id, p.PID, err, info)
			}
			select {
			case <-w.c.Done(id):
			case <-time.After(time.Minute):
				t.Errorf("%s has not ended", id)
				return
			}
			if e, ok := w.c.Exit(id); !ok || !e.Known || e.Code != 3 {
				t.Errorf("exit of %s: got %+v, %v, want code 3", id, e, ok)
			}
			if err := w.c.Forget(t.Context(), id); err != nil {
				t.Errorf("forget %s: %v", id, err)
			}
		})
	}
	for last, size := int64(-1), int64(0); size != last || size == 0; time.Sleep(300 * time.Millisecond) {
		last = size
		if fi, err := os.Stat(mark); err == nil {
			size = fi.Size()
		}
	}
	close(goOn)
	wg.Wait()
}

// What does not fit into a packet goes by a file.
func TestStartLargePlan(t *testing.T) {
	w := newWorld(t)
	for _, size := range []int{1000, planRoom, 1 << 20} {
		p := prelude(0)
		p.Bytes(make([]byte, size))
		id := fmt.Sprint("large", size)
		if _, err := w.c.Start(t.Context(), Start{ID: id, Plan: program(p, "exit 5")}); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if e := w.wait(id); e.Code != 5 {
			t.Errorf("%d bytes: exit %+v, want code 5", size, e)
		}
	}
}

// The monitor's own timers are inexact; those of what it runs are not.
func TestTimersOfContainersAreExact(t *testing.T) {
	w := newWorld(t)
	want, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, start := range map[string]func(id, script string){
		"plan": func(id, script string) {
			log, err := OpenLog(w.logPath(id))
			if err != nil {
				t.Fatal(err)
			}
			pipes, err := NewPipes(0, 0, false)
			if err != nil {
				t.Fatal(err)
			}
			defer pipes.CloseContainerEnds()
			p := prelude(1)
			dup(p, 0, 1)
			_, err = w.c.Start(t.Context(), Start{
				ID: id, Plan: program(p, script), Files: []*os.File{pipes.Stdout},
				Log: &Log{Path: w.logPath(id), File: log, Stdout: pipes.StdoutR, Stderr: pipes.StderrR},
			})
			if err != nil {
				t.Fatal(err)
			}
		},
		"program": func(id, script string) { w.run(id, "/bin/sh", "-c", script) },
	} {
		t.Run(name, func(t *testing.T) {
			start(name, "read x < /proc/self/timerslack_ns; echo $x")
			w.wait(name)
			if got := w.log(name); !strings.HasSuffix(got, fmt.Sprintf(" F %d\n", want)) {
				t.Errorf("timer slack: got %q, want %d", got, want)
			}
		})
	}
}
