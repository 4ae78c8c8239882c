// Package runtime starts containers for runtime handlers: the built-in launcher, which
// compiles a runtime-spec into a plan that the monitor runs, and any OCI runtime
// program (runc, crun, ...) driven through its command line.
//
// Either way the monitor is the parent of the container and owner of its streams. The
// package keeps no state but external runtimes' bundles, which the caller names, and
// starts no goroutine that outlives a call. It refuses specs with fields that it would
// have to ignore.
package runtime

import (
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
)

// Stdio are the container's ends of its standard streams. The caller closes them
// after the call. A nil Stdin is /dev/null; with a terminal all are nil.
type Stdio struct{ Stdin, Stdout, Stderr *os.File }

// Start is a container's first process.
type Start struct {
	ID     string
	Bundle string // directory with config.json, for external runtimes
	Spec   *specs.Spec
	// Rootfs is a detached mount that nobody else uses; the caller closes it.
	Rootfs *os.File
	Group  *cgroup.Group
	Stdio  Stdio
	// Log is where the monitor writes; nil for no log.
	Log *monitor.Log
	// StdinKeep is the writing end of the container's stdin, which the monitor keeps.
	StdinKeep *os.File
	// Phase is told what is done now, for operators; nil: nobody wants to know.
	Phase func(name string)
}

func (s *Start) enter(phase string) {
	if s.Phase != nil {
		s.Phase(phase)
	}
}

// Exec is one more process in a running container.
type Exec struct {
	ID        string // of the exec, unique
	Container string
	PID       int    // of the container's first process
	StartTime uint64 // its start in ticks after boot: PIDs are used again
	Bundle    string
	Spec      *specs.Spec
	Process   *specs.Process
	Group     *cgroup.Group // of the exec alone, below the container's
	Stdio     Stdio
}

// Init is the first process of a pod's shared pid namespace.
type Init struct {
	ID         string
	Namespaces map[namespace.Kind]string
	Group      *cgroup.Group
}

// Features are what a runtime can do.
type Features struct {
	UserNamespaces    bool
	RecursiveReadOnly bool
}

// An ExecError says that the container was set up but its program could not be
// executed. Code is what a shell returns: 127 for a program that is not there, 126 for
// one that cannot be executed.
type ExecError struct {
	Code int32
	Err  error
}

func (e *ExecError) Error() string { return fmt.Sprintf("start program: %v", e.Err) }

// Unwrap gives the cause.
func (e *ExecError) Unwrap() error { return e.Err }

// Is makes it the request's fault, and no defect of ours.
func (e *ExecError) Is(kind error) bool { return kind == errdef.ErrInvalid }
