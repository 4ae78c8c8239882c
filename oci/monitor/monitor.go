// Package monitor is the daemon's side of cri-monitor: it starts processes, waits
// for them, hands on their logs and terminals, and survives the monitor's death.
//
// The monitor is the real parent of every container and holds their pipes, so that
// the daemon may die at any time. The Client holds a duplicate of each descriptor
// of the monitor, so that the monitor may die too: the client notices, starts
// another and hands everything back. Requests wait meanwhile; log lines that were
// in flight are in the journal that both hold (see cmd/cri-monitor).
//
// It refuses a monitor that speaks a newer protocol. An exit code that nobody can
// know is reported as unknown and never invented. One goroutine reads what the
// monitor says; Close ends it and leaves the monitor running. In Config.StateDir it
// leaves monitor.sock, monitor.log and exits/, one small file for each process that
// has ended and was not forgotten.
package monitor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// Config says where the monitor lives.
type Config struct {
	// StateDir is a directory of its own on tmpfs; made with mode 0700.
	StateDir string
	// Binary is the path of cri-monitor.
	Binary string
	// CgroupDirs are cgroup directories that a new monitor is moved to, one per
	// hierarchy. It must not share the daemon's: systemd would kill it with it.
	CgroupDirs []string
}

// A Start asks for a process made by a launch plan.
type Start struct {
	ID   string
	Plan []byte // as plan.Plan.Marshal gives it
	// Files are the plan's inputs in slot order; they stay the caller's. With TTY
	// the entry at PTYAt is nil: the client puts the socket there over which the
	// launch sends the terminal's master.
	Files     []*os.File
	PTYAt     int
	Log       *Log     // nil: nobody logs it. Taken by the client, on failure too
	Stdin     *os.File // write end to keep open until CloseStdin; taken
	TTY       bool
	Ephemeral bool // an exec session: no exit record on disk
}

// A Spawn asks for a program to be run as it is, such as an OCI runtime.
type Spawn struct {
	ID        string
	Path      string
	Args      []string // with argv[0]
	Env       []string
	Dir       string
	Stdio     [3]*os.File // nil is /dev/null; they stay the caller's
	Log       *Log
	Stdin     *os.File // write end to keep
	Ephemeral bool
}

// An Adopt names a process that an OCI runtime started and left to the monitor,
// which is a subreaper.
type Adopt struct {
	ID     string
	PID    int
	Log    *Log
	Stdin  *os.File
	Master *os.File // its terminal, if it has one
}

// Log says where the output of a container goes. Without Stdout and Stderr it is
// what the terminal prints.
type Log struct {
	Path           string
	File           *os.File // O_APPEND
	Stdout, Stderr *os.File // read ends
}

// Process is a started process. The files stay the client's and are closed by
// Forget; duplicate what must live longer.
type Process struct {
	ID        string
	PID       int
	StartTime uint64 // ticks since boot: with PID it names the process for ever
	PIDFD     *os.File
	Master    *os.File
}

// Exit is how a process ended.
type Exit struct {
	Code   int32 // exit status, or 128+Signal
	Signal int   // that ended it, or 0
	At     time.Time
	Known  bool // false: it ended while nobody was its parent; Code is 255
}

// StepFailure is a launch that stopped at one of its steps.
type StepFailure struct {
	Step  uint32
	Errno syscall.Errno
}

// Error gives the bare numbers; oci/launch knows the words.
func (e *StepFailure) Error() string { return fmt.Sprintf("launch step %d: %v", e.Step, e.Errno) }

// Unwrap gives the kernel's reason.
func (e *StepFailure) Unwrap() error { return e.Errno }

// ErrTooSlow ends the reading side of an attached client that did not keep up.
var ErrTooSlow = errors.New("detached: the reader was slower than the container")

// ErrReplaced says that another client has connected to the monitor.
var ErrReplaced = errors.New("another daemon has taken over the monitor")

// Attached is the output of a container from now on.
type Attached struct {
	Stdout, Stderr io.ReadCloser // Stderr is nil with a terminal
	close          func()
}

// Close detaches.
func (a *Attached) Close() error {
	a.close()
	return nil
}

// LogStats counts what a container logged and lost.
type LogStats = wire.LogStats

func exitOf(x wire.Exit) Exit {
	e := Exit{At: time.Unix(0, x.At), Known: x.Known, Code: 255}
	if !x.Known {
		return e
	}
	ws := syscall.WaitStatus(x.Status)
	if ws.Signaled() {
		e.Signal = int(ws.Signal())
		e.Code = int32(128 + e.Signal)
		return e
	}
	e.Code = int32(ws.ExitStatus())
	return e
}
