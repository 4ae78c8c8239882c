package launch

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
)

// StepError says which step of a launch failed, and why.
type StepError struct {
	Step  int
	What  string
	Errno syscall.Errno
	// Exec is set when everything was ready and the program could not be run.
	Exec bool
}

// Error reads "mount volume 3 at /data: no such file or directory".
func (e *StepError) Error() string { return e.What + ": " + e.Errno.Error() }

// Unwrap gives the errno.
func (e *StepError) Unwrap() error { return e.Errno }

// ExitCode is what a shell gives: 127 if the program is not there, 126 if it
// cannot be run. Any other failure of a launch is 128, as peers report it.
func (e *StepError) ExitCode() int {
	switch {
	case !e.Exec:
		return 128
	case errors.Is(e.Errno, syscall.ENOENT):
		return 127
	}
	return 126
}

// notFound is the message that users know from other runtimes.
type notFound struct{ *StepError }

// Error names the program.
func (e notFound) Error() string { return e.What + ": executable file not found in $PATH" }

// Unwrap lets errors.As find the StepError.
func (e notFound) Unwrap() error { return e.StepError }

// noProcess is a clone that the kernel refused by EAGAIN. It has several limits that say
// so: pids.max of any cgroup above, RLIMIT_NPROC, threads-max and pid_max of the node.
type noProcess struct{ *StepError }

// Error says what an operator can look at.
func (e noProcess) Error() string {
	return e.StepError.Error() + ": a limit on processes is reached, such as pids.max of the pod"
}

// Unwrap gives the kind beside the StepError.
func (e noProcess) Unwrap() []error { return []error{e.StepError, errdef.ErrExhausted} }

// Explain turns a status record into an error, a *StepError.
func (l *Launch) Explain(step int, errno syscall.Errno) error {
	if step < 0 || step >= len(l.steps) {
		return fmt.Errorf("launch step %d of %d: %w", step, len(l.steps), errno)
	}
	e := &StepError{Step: step, What: l.steps[step], Errno: errno, Exec: l.Plan.Ins[step].Op == plan.Exec}
	if e.Exec && l.searched && errno == syscall.ENOENT {
		return notFound{e}
	}
	if errno == syscall.EAGAIN && l.Plan.Ins[step].Op == plan.Clone {
		return noProcess{e}
	}
	return e
}

// String lists what the plan needs and does, one line a step.
func (l *Launch) String() string {
	var b strings.Builder
	for i, n := range l.Needs {
		fmt.Fprintf(&b, "slot %d: %s\n", i, n)
	}
	fmt.Fprintf(&b, "slot %d: status pipe\n", l.Plan.Status())
	fmt.Fprintf(&b, "clone %s", cloneFlagNames(l.Plan.CloneFlags))
	if l.Plan.CgroupInput >= 0 {
		fmt.Fprintf(&b, " into cgroup of slot %d", l.Plan.CgroupInput)
	}
	b.WriteByte('\n')
	for i, in := range l.Plan.Ins {
		line := l.Plan.Format(in, syscallNames)
		fmt.Fprintf(&b, "%3d %s  # %s\n", i, line, l.steps[i])
	}
	return b.String()
}

var needNames = map[NeedKind]string{
	Rootfs: "root filesystem", Stdin: "stdin", Stdout: "stdout", Stderr: "stderr", Gate: "gate",
	CgroupTasks: "cgroup tasks", CgroupDir: "cgroup directory", Namespace: "namespace", Process: "process",
	Volume: "volume", DeviceTree: "device tree", PTYSocket: "pty socket", InitProgram: "init program",
	BaseMounts: "mount namespace with few mounts",
}

// String describes the need in a line.
func (n Need) String() string {
	s := needNames[n.Kind]
	if n.Type != "" {
		s += " " + string(n.Type)
	}
	if n.Path != "" {
		s += " " + n.Path
	}
	if v := n.Volume; v != nil {
		s += fmt.Sprintf(" for mount %d at %s", v.Mount, v.Destination)
		if v.Recursive {
			s += " recursive"
		}
		s += fmt.Sprintf(" set %#x/%#x clear %#x propagation %#x", v.Set, v.SetRecursive, v.Clear, v.Propagation)
		if v.PropagationRecursive {
			s += " recursive"
		}
		if len(v.UIDs) != 0 {
			s += fmt.Sprintf(" idmap %v %v", v.UIDs, v.GIDs)
		}
	}
	if d := n.Devices; d != nil {
		s += fmt.Sprintf(" %v of %d:%d", d.Options, d.RootUID, d.RootGID)
		names := make([]string, 0, len(d.Devices))
		for _, v := range d.Devices {
			names = append(names, fmt.Sprintf(" %s=%s%d:%d", v.Path, v.Type, v.Major, v.Minor))
		}
		s += strings.Join(names, "")
	}
	return s
}

func cloneFlagNames(flags uint64) string {
	var names []string
	for _, f := range namespaceFlags {
		if flags&uint64(f.flag) != 0 {
			names = append(names, string(f.kind))
		}
	}
	if flags&unix.CLONE_NEWNS != 0 {
		names = append(names, "mount")
	}
	return "with new " + strings.Join(names, ", ")
}
