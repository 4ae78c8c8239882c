package monitor

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Pipes are the standard streams of a container without a terminal.
type Pipes struct {
	// The container's ends. Stdin is nil unless asked for.
	Stdin, Stdout, Stderr *os.File
	// Our ends: for Start.Stdin and Log.
	StdinW, StdoutR, StderrR *os.File
}

// NewPipes makes log pipes that belong to the container's user, so that a program
// may open /dev/stdout again. The container's log ends are open for reading too:
// while no reader exists, because the monitor was killed, nobody gets SIGPIPE.
// Standard input is plain, since its end of file must arrive.
func NewPipes(uid, gid int, stdin bool) (p *Pipes, err error) {
	p = &Pipes{}
	defer func() {
		if err != nil {
			p.Close()
			p = nil
		}
	}()
	if p.StdoutR, p.Stdout, err = logPipe(uid, gid); err != nil {
		return p, err
	}
	if p.StderrR, p.Stderr, err = logPipe(uid, gid); err != nil {
		return p, err
	}
	if !stdin {
		return p, nil
	}
	r, w, err := rawPipe("stdin")
	if err != nil {
		return p, err
	}
	p.Stdin, p.StdinW = r, w
	if err := p.Stdin.Chown(uid, gid); err != nil {
		return p, fmt.Errorf("give standard input to its user: %w", err)
	}
	return p, nil
}

// Close closes all six ends.
func (p *Pipes) Close() {
	p.CloseContainerEnds()
	closeAll(p.StdinW, p.StdoutR, p.StderrR)
}

// CloseContainerEnds closes what the container has inherited by now.
func (p *Pipes) CloseContainerEnds() { closeAll(p.Stdin, p.Stdout, p.Stderr) }

// rawPipe is os.Pipe with blocking ends: a container's streams must be.
func rawPipe(name string) (r, w *os.File, err error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return os.NewFile(uintptr(fd[0]), name+" r"), os.NewFile(uintptr(fd[1]), name+" w"), nil
}

func logPipe(uid, gid int) (r, w *os.File, err error) {
	r, plain, err := rawPipe("log")
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = plain.Close() }()
	// Opening the pipe again makes a file description of its own, with both modes.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", plain.Fd()), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = r.Close()
		return nil, nil, fmt.Errorf("open log pipe for both modes: %w", err)
	}
	w = os.NewFile(uintptr(fd), "log w")
	if err := w.Chown(uid, gid); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("give log pipe to its user: %w", err), r.Close(), w.Close())
	}
	return r, w, nil
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
