package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
)

// messageLimit cuts what a program says; outputLimit is for what it answers.
const (
	messageLimit = 600
	outputLimit  = 1 << 20
)

// killDelay is how long a killed program's output is still waited for.
const killDelay = 2 * time.Second

// environment is all that the program gets: runc hands NOTIFY_SOCKET and LISTEN_FDS,
// which are the daemon's own, on to the container.
func environment() []string { return []string{"PATH=" + os.Getenv("PATH")} }

// global are the options before the command.
func (c *CLI) global(log string) []string {
	return []string{c.Program, "--root", filepath.Join(c.Dir, dirState), "--log", log, "--log-format", "json"}
}

// spawn is a run of the program as the monitor's child.
type spawn struct {
	id    string
	dir   string // for its log
	stdio Stdio
	args  []string
}

// spawn runs the program to its end by the monitor, so that what it leaves behind is
// left to the monitor. When ctx ends first it is killed.
func (c *CLI) spawn(ctx context.Context, s spawn) error {
	log := filepath.Join(s.dir, fileLog)
	_, err := c.Parent.Spawn(ctx, monitor.Spawn{
		ID: s.id, Path: c.Program, Args: append(c.global(log), s.args...), Env: environment(), Dir: "/",
		Stdio: [3]*os.File{s.stdio.Stdin, s.stdio.Stdout, s.stdio.Stderr}, Ephemeral: true,
	})
	if err != nil {
		return fmt.Errorf("run %s %s: %w", c.Name, s.args[0], err)
	}
	select {
	case <-c.Parent.Done(s.id):
	case <-ctx.Done():
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		return errors.Join(fmt.Errorf("%s %s: %w", c.Name, s.args[0], context.Cause(ctx)), c.end(limited, s.id))
	}
	e, _ := c.Parent.Exit(s.id)
	if err := c.Parent.Forget(ctx, s.id); err != nil {
		return err
	}
	switch {
	case !e.Known:
		return fmt.Errorf("%s %s: nobody saw how it ended: %w", c.Name, s.args[0], errdef.ErrRetry)
	case e.Code != 0:
		return c.failure(s.args[0], log, "", e.Code)
	}
	return nil
}

// run runs the program as this process's child and returns what it prints. For
// commands that leave no process behind.
func (c *CLI) run(ctx context.Context, args ...string) ([]byte, error) {
	log, err := os.CreateTemp(filepath.Join(c.Dir, dirTemp), "")
	if err != nil {
		return nil, fmt.Errorf("make log of %s: %w", c.Name, err)
	}
	defer func() { _ = os.Remove(log.Name()) }()
	if err := log.Close(); err != nil {
		return nil, fmt.Errorf("make log of %s: %w", c.Name, err)
	}
	return c.runWith(ctx, log.Name(), append(c.global(log.Name()), args...), args[0])
}

func (c *CLI) runWith(ctx context.Context, log string, argv []string, command string) ([]byte, error) {
	var out, errOut cut
	cmd := exec.CommandContext(ctx, c.Program, argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = "/", environment(), &out, &errOut, killDelay
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // a terminal's Ctrl-C is for the daemon
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s %s: %w", c.Name, command, context.Cause(ctx))
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, c.failure(command, log, errOut.String(), int32(exit.ExitCode()))
	}
	if err != nil {
		return nil, fmt.Errorf("run %s %s: %w", c.Name, command, err)
	}
	return out.Bytes(), nil
}

// cut keeps the first outputLimit bytes.
type cut struct{ bytes.Buffer }

func (c *cut) Write(p []byte) (int, error) {
	c.Buffer.Write(p[:min(len(p), max(outputLimit-c.Len(), 0))])
	return len(p), nil
}

// failure puts into words why the program failed: its last error message, from the log
// or else from its standard error. The text is all that it says: which of these errors
// is about the container's own program can be told in no other way.
func (c *CLI) failure(command, log, stderr string, code int32) error {
	text := lastError(log)
	if text == "" {
		text = strings.TrimSpace(stderr)
	}
	if text == "" {
		return fmt.Errorf("%s %s: exit code %d without a word", c.Name, command, code)
	}
	err := fmt.Errorf("%s %s: %q", c.Name, command, shorten(text))
	if code := execCode(text); code != 0 {
		return &ExecError{Code: code, Err: err}
	}
	return err
}

func shorten(text string) string {
	if len(text) <= messageLimit {
		return text
	}
	return strings.ToValidUTF8(text[:messageLimit/2], "") + " ... " + strings.ToValidUTF8(text[len(text)-messageLimit/2:], "")
}

// lastError is the last error in a log as --log-format json makes it.
func lastError(log string) (text string) {
	b, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(b) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			text = entry.Msg
		}
	}
	return text
}

// What the programs say about the executable, and of nothing else: runc quotes it after
// `exec: `, crun names an executable file.
var (
	aboutExec = regexp.MustCompile("(^|: )exec: \"|executable (file|path)|(^|[: ])exec(v|ve|vpe)?[: ]|open executable|cannot find.*executable")
	missing   = regexp.MustCompile(`(?i)executable (file )?.*not found|no such file or directory`)
	forbidden = regexp.MustCompile(`(?i)permission denied|exec format error|is a directory|not executable|operation not permitted`)
)

// execCode is the exit code of a program that could not be executed, 0 when the text is
// about something else.
func execCode(text string) int32 {
	switch {
	case !aboutExec.MatchString(text):
		return 0
	case forbidden.MatchString(text):
		return 126
	case missing.MatchString(text):
		return 127
	}
	return 0
}
