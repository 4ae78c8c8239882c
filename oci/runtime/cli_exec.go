package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
)

// Exec runs one more process in a running container. The program detaches: it ends when
// the command's exec has succeeded, its own failures are not mixed up with the
// command's exit code, and the command is left to the monitor, which sees its status,
// signals included, and gives it exactly the streams of the caller. Nothing of the
// program lives on.
//
// The command is put into e.Group, whose killing ends the session's whole tree, also
// after an error; see move for programs that cannot be told of it (crun on cgroup v1).
func (c *CLI) Exec(ctx context.Context, e Exec) (_ monitor.Process, err error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return monitor.Process{}, err
	}
	defer leave()
	dir, err := os.MkdirTemp(filepath.Join(c.Dir, dirTemp), "")
	if err != nil {
		return monitor.Process{}, fmt.Errorf("make directory of exec: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // what stays goes at the next start
	process := c.adaptProcess(e.Process)
	if err := writeJSON(filepath.Join(dir, fileProcess), process); err != nil {
		return monitor.Process{}, err
	}
	args := []string{"exec", "--detach", "--process", filepath.Join(dir, fileProcess), "--pid-file", filepath.Join(dir, filePID)}
	sub := c.can.subCgroup(e.Group)
	if sub != "" {
		args = append(args, "--cgroup", sub)
	}
	var tty *console
	if e.Process.Terminal {
		if tty, err = c.listen(); err != nil {
			return monitor.Process{}, err
		}
		defer tty.close()
		args = append(args, "--console-socket", tty.path)
	}
	err = c.spawn(ctx, spawn{id: "run-" + e.ID, dir: dir, stdio: e.Stdio, args: append(args, e.Container)})
	if err != nil {
		return monitor.Process{}, err
	}
	pid, err := readPID(filepath.Join(dir, filePID))
	if err != nil {
		return monitor.Process{}, fmt.Errorf("%s exec: %w", c.Name, err)
	}
	a := monitor.Adopt{ID: e.ID, PID: pid}
	if tty != nil {
		if a.Master, err = tty.receive(); err != nil {
			return monitor.Process{}, fmt.Errorf("%s exec: %w", c.Name, err)
		}
	}
	var outside *cgroup.Group
	if sub == "" {
		outside = e.Group
	}
	return c.adopt(ctx, a, outside, process.OOMScoreAdj)
}

// adopt hands the command to the monitor and does what the program could not be told:
// it moves the command to cgroup g, unless that is nil, and sets its score.
func (c *CLI) adopt(ctx context.Context, a monitor.Adopt, g *cgroup.Group, score *int) (monitor.Process, error) {
	proc, err := c.Parent.Adopt(ctx, a)
	if errors.Is(err, errdef.ErrNotFound) {
		return proc, fmt.Errorf("the command ended before it could be watched, its exit status is lost: %w", errdef.ErrRetry)
	}
	if err != nil {
		return proc, fmt.Errorf("adopt from %s: %w", c.Name, err)
	}
	if g != nil {
		if err := move(a.PID, g); err != nil {
			return monitor.Process{}, errors.Join(err, c.end(ctx, a.ID))
		}
	}
	if err := setScore(a.PID, score); err != nil {
		return monitor.Process{}, errors.Join(err, c.end(ctx, a.ID))
	}
	return proc, nil
}

// setScore sets what crun (1.8) forgets in exec: its commands would inherit the daemon's
// oom_score_adj, which a service manager makes as low as can be.
func setScore(pid int, adj *int) error {
	if adj == nil {
		return nil
	}
	err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj"), []byte(strconv.Itoa(*adj)), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("set oom_score_adj: %w", err)
	}
	return nil
}

// A command that ends before it is adopted is one of the strays whose exits the monitor
// remembers, and it remembers few. So only some programs run at once, which costs no
// throughput: they are all computation. One that hangs gives up its place after a while,
// so that a stuck container does not hold up the others' probes.
const (
	execsAtOnce = 8
	execTurn    = time.Second
)

// enter waits for a place among the programs that run; leave gives it back.
func (c *CLI) enter(ctx context.Context) (leave func(), err error) {
	select {
	case c.execs <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for other calls of %s exec: %w", c.Name, context.Cause(ctx))
	}
	give := sync.OnceFunc(func() { <-c.execs })
	turn := time.AfterFunc(execTurn, give)
	return func() { turn.Stop(); give() }, nil
}

// move puts a process and its descendants into the cgroup of their exec session, for
// programs that cannot be told to. What the process forked and left behind (its parent
// gone) in the few milliseconds since its exec stays in the container's cgroup.
func move(pid int, g *cgroup.Group) error {
	var files []string
	for _, tasks := range g.TasksPaths() {
		if inSession(tasks, g) {
			files = append(files, filepath.Join(filepath.Dir(tasks), "cgroup.procs"))
		}
	}
	if len(files) == 0 && g.DirPath() != "" {
		files = append(files, filepath.Join(g.DirPath(), "cgroup.procs"))
	}
	moved := map[int]bool{}
	for found := true; found; { // until nobody has forked meanwhile
		found = false
		for _, p := range append([]int{pid}, descendants(pid)...) {
			if moved[p] {
				continue
			}
			moved[p], found = true, true
			for _, f := range files {
				err := os.WriteFile(f, strconv.AppendInt(nil, int64(p), 10), 0)
				if err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("move to the session's cgroup: %w", err)
				}
			}
		}
	}
	return nil
}

// inSession tells the hierarchies in which the session has a cgroup of its own.
func inSession(tasks string, g *cgroup.Group) bool {
	return filepath.Base(filepath.Dir(tasks)) == filepath.Base(string(g.Path()))
}

// descendants lists the processes below pid; what has gone is left out.
func descendants(pid int) (out []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for f := range strings.FieldsSeq(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				out = append(append(out, child), descendants(child)...)
			}
		}
	}
	return out
}
