package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/undo"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
)

// A Parent runs programs and takes charge of what they leave behind: the monitor, which
// is a subreaper and so becomes the parent of what an OCI runtime has forked.
type Parent interface {
	// Spawn runs a program and returns once its exec has succeeded.
	Spawn(ctx context.Context, s monitor.Spawn) (monitor.Process, error)
	// Adopt takes charge of a process that a spawned program has left. It takes the
	// log, stdin and terminal, on failure too.
	Adopt(ctx context.Context, a monitor.Adopt) (monitor.Process, error)
	Watcher
}

// A Watcher knows how processes fare.
type Watcher interface {
	List() []monitor.Process
	// Done is closed when the process has ended or is not known.
	Done(id string) <-chan struct{}
	Exit(id string) (monitor.Exit, bool)
	Signal(id string, sig unix.Signal) error
	// Forget drops a process that has ended; nil for one that is not known.
	Forget(ctx context.Context, id string) error
}

// CLIConfig says which program to drive, and where it keeps its state.
type CLIConfig struct {
	Name    string // of the runtime handler
	Program string // absolute path
	// Dir is for this handler alone, on tmpfs: bundles, the program's own state,
	// sockets. It is made if need be, passable for a user namespace's root, which walks
	// to its root file system by path.
	Dir    string
	Parent Parent
	Kernel Features // what the kernel can do: the program cannot do more
}

// CLI drives an OCI runtime program by its command line. For each container it keeps
// a bundle, with the root file system mounted in it, from Start to Delete. Methods may
// be called concurrently, for one container one after another.
type CLI struct {
	CLIConfig
	can      abilities
	resource bool // this process may lower oom_score_adj and raise hard limits
	execs    chan struct{}
}

// undoLimit bounds what follows a failed start.
const undoLimit = 60 * time.Second

// The parts of Dir.
const (
	dirBundles  = "bundles"
	dirState    = "root" // the program's --root
	dirTemp     = "t"    // short: paths of sockets end at 107 bytes
	fileConfig  = "config.json"
	fileProcess = "process.json"
	filePID     = "pid"
	fileLog     = "log"
	dirRootfs   = "rootfs"
)

// NewCLI asks the program what it can do and puts right what a former daemon was cut
// off in the middle of: a container that was created and is watched by the monitor is
// started, one that nobody watches is deleted.
func NewCLI(ctx context.Context, cfg CLIConfig) (*CLI, error) {
	c := &CLI{CLIConfig: cfg, execs: make(chan struct{}, execsAtOnce)}
	for _, dir := range []string{"", dirBundles, dirState, dirTemp} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, dir), 0o711); err != nil {
			return nil, fmt.Errorf("make directory of runtime %s: %w", cfg.Name, err)
		}
	}
	var err error
	if c.resource, err = mayRaiseLimits(); err != nil {
		return nil, err
	}
	if c.can, err = c.probe(ctx); err != nil {
		return nil, fmt.Errorf("probe runtime %s: %w", cfg.Name, err)
	}
	if err := c.recover(ctx); err != nil {
		return nil, fmt.Errorf("put containers of runtime %s right: %w", cfg.Name, err)
	}
	return c, nil
}

// Features are what both the program and the kernel can do.
func (c *CLI) Features() Features {
	return Features{
		UserNamespaces:    c.Kernel.UserNamespaces && c.can.userNamespaces(),
		RecursiveReadOnly: c.Kernel.RecursiveReadOnly && c.can.mountOption("rro"),
	}
}

func (c *CLI) bundle(id string) string { return filepath.Join(c.Dir, dirBundles, id) }

// Start runs a container's first process: create by the monitor, so that the process is
// left to it, then start. The root file system is mounted on the host meanwhile, since
// the command line knows paths only. Programs look the executable up in create, which
// is where it is found missing; they return from start when they have told the process
// to go on, so that an exec that fails even then (a bad interpreter) is seen as an exit.
func (c *CLI) Start(ctx context.Context, s Start) (_ monitor.Process, err error) {
	taken := false
	var steps undo.Stack
	defer func() {
		if e := steps.RunIf(ctx, err, undoLimit); e != nil {
			err = errors.Join(err, e)
		}
		if !taken {
			dropLog(s)
		}
	}()
	s.enter("make bundle")
	config, err := c.adapt(s.Spec)
	if err != nil {
		return monitor.Process{}, err
	}
	// A start that was cut off may have left a container of this name.
	if err := c.discard(ctx, s.ID); err != nil {
		return monitor.Process{}, err
	}
	steps.Push("container "+s.ID, func(ctx context.Context) error { return c.discard(ctx, s.ID) })
	if err := c.makeBundle(s, config); err != nil {
		return monitor.Process{}, err
	}
	s.enter("runtime program: create")
	pid, master, err := c.create(ctx, s)
	if err != nil {
		return monitor.Process{}, err
	}
	taken = true
	proc, err := c.Parent.Adopt(ctx, monitor.Adopt{ID: s.ID, PID: pid, Log: s.Log, Stdin: s.StdinKeep, Master: master})
	if err != nil {
		return monitor.Process{}, fmt.Errorf("adopt from %s: %w", c.Name, err)
	}
	s.enter("runtime program: start")
	if _, err := c.run(ctx, "start", s.ID); err != nil {
		return monitor.Process{}, err
	}
	return proc, nil
}

func (c *CLI) makeBundle(s Start, config *specs.Spec) error {
	dir := c.bundle(s.ID)
	if err := os.MkdirAll(filepath.Join(dir, dirRootfs), 0o711); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	if err := writeJSON(filepath.Join(dir, fileConfig), config); err != nil {
		return err
	}
	return mount.AttachPath(s.Rootfs, filepath.Join(dir, dirRootfs))
}

// writeJSON is for files with environments in them: for root only.
func writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(name), err)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(name), err)
	}
	return nil
}

// create has the program set the container up. Its first process then waits for start.
func (c *CLI) create(ctx context.Context, s Start) (pid int, master *os.File, err error) {
	dir := c.bundle(s.ID)
	args := []string{"create", "--bundle", dir, "--pid-file", filepath.Join(dir, filePID)}
	var tty *console
	if s.Spec.Process != nil && s.Spec.Process.Terminal {
		if tty, err = c.listen(); err != nil {
			return 0, nil, err
		}
		defer tty.close()
		args = append(args, "--console-socket", tty.path)
	}
	err = c.spawn(ctx, spawn{id: createID(s.ID), dir: dir, stdio: s.Stdio, args: append(args, s.ID)})
	if err != nil {
		return 0, nil, err
	}
	if pid, err = readPID(filepath.Join(dir, filePID)); err != nil {
		return 0, nil, fmt.Errorf("%s create: %w", c.Name, err)
	}
	if tty != nil {
		if master, err = tty.receive(); err != nil {
			return 0, nil, fmt.Errorf("%s create: %w", c.Name, err)
		}
	}
	return pid, master, nil
}

// createID is the monitor's name for the program that creates a container.
func createID(id string) string { return "create-" + id }

func readPID(name string) (int, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, fmt.Errorf("read pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("read pid: %.40q is none", b)
	}
	return pid, nil
}

// discard ends whatever there is of a container and forgets it.
func (c *CLI) discard(ctx context.Context, id string) error {
	for _, process := range []string{createID(id), id} {
		if err := c.end(ctx, process); err != nil {
			return err
		}
	}
	return c.Delete(ctx, id)
}

// end kills a process that the monitor knows and forgets it.
func (c *CLI) end(ctx context.Context, process string) error {
	if err := c.Parent.Signal(process, unix.SIGKILL); err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return err
	}
	select {
	case <-c.Parent.Done(process):
		return c.Parent.Forget(ctx, process)
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w", process, ctx.Err())
	}
}

// Delete has the program forget a container, kills what is left of it, and takes its
// root file system and bundle away. It may be repeated; a bundle that is not there
// means that nothing is left to do.
func (c *CLI) Delete(ctx context.Context, id string) error {
	dir := c.bundle(id)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, err := c.run(ctx, "delete", "--force", id); err != nil {
		// Some call it an error that they do not know the container.
		if _, unknown := c.state(ctx, id); unknown == nil || ctx.Err() != nil {
			return err
		}
	}
	if err := mount.Detach(filepath.Join(dir, dirRootfs)); err != nil {
		return err
	}
	// Not RemoveAll on what may be a mount: an empty mount point is all there can be.
	if err := os.Remove(filepath.Join(dir, dirRootfs)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove bundle: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove bundle: %w", err)
	}
	return nil
}

// state is what the program calls a container's state; an error when it knows none.
func (c *CLI) state(ctx context.Context, id string) (specs.ContainerState, error) {
	out, err := c.run(ctx, "state", id)
	if err != nil {
		return "", err
	}
	var s specs.State
	if err := json.Unmarshal(out, &s); err != nil {
		return "", fmt.Errorf("%s state: read its answer: %w", c.Name, err)
	}
	return s.Status, nil
}

// recover is for what a former daemon was in the middle of.
func (c *CLI) recover(ctx context.Context) error {
	if err := os.RemoveAll(filepath.Join(c.Dir, dirTemp)); err != nil {
		return fmt.Errorf("remove old sockets: %w", err)
	}
	if err := os.Mkdir(filepath.Join(c.Dir, dirTemp), 0o711); err != nil {
		return fmt.Errorf("make directory of sockets: %w", err)
	}
	bundles, err := os.ReadDir(filepath.Join(c.Dir, dirBundles))
	if err != nil {
		return fmt.Errorf("list bundles: %w", err)
	}
	known := map[string]bool{}
	for _, p := range c.Parent.List() {
		known[p.ID] = true
	}
	var errs []error
	for _, b := range bundles {
		errs = append(errs, c.recoverOne(ctx, b.Name(), known[b.Name()]))
	}
	return errors.Join(errs...)
}

func (c *CLI) recoverOne(ctx context.Context, id string, known bool) error {
	if !known {
		return c.discard(ctx, id)
	}
	if _, ended := c.Parent.Exit(id); ended {
		return nil // its owner deletes it
	}
	// An adopted container counts as running: make it so.
	if state, err := c.state(ctx, id); err != nil || state != specs.StateCreated {
		return nil //nolint:nilerr // the monitor knows better than the program whether it lives
	}
	if _, err := c.run(ctx, "start", id); err != nil {
		if e := c.Parent.Signal(id, unix.SIGKILL); e != nil && !errors.Is(e, errdef.ErrNotFound) {
			return errors.Join(err, e)
		}
	}
	return nil
}
