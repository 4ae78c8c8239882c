package stage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that was started here.
type Process struct {
	cmd  *exec.Cmd
	log  string
	gone chan struct{} // closed when it has ended
	wait sync.WaitGroup
}

// Start runs a program in a process group of its own, with both outputs in a log file.
func Start(ctx context.Context, log string, env, argv []string) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	p := &Process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), log: log, gone: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = f, f, append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	p.wait.Go(func() {
		_ = p.cmd.Wait()
		close(p.gone)
	})
	return p, nil
}

// PID is the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Gone is closed when the process has ended.
func (p *Process) Gone() <-chan struct{} { return p.gone }

// Tail is the end of its log.
func (p *Process) Tail() string {
	body, _ := os.ReadFile(p.log)
	return strings.TrimSpace(string(body[max(0, len(body)-2000):]))
}

const stopLimit = 30 * time.Second

// Stop asks the process to end, and kills it when it does not. To stop none does nothing.
func (p *Process) Stop() error {
	if p == nil {
		return nil
	}
	defer p.wait.Wait()
	_ = p.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-p.gone:
		return nil
	case <-time.After(stopLimit):
		_ = p.cmd.Process.Kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM", p.cmd.Path, stopLimit)
	}
}

// Kill ends it at once.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	p.wait.Wait()
}
