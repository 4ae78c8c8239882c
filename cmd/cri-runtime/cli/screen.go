package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// screen is where a command's words go: lines from several goroutines, and on a
// terminal a spinner below them while something takes long.
type screen struct {
	mu       sync.Mutex
	out      io.Writer
	terminal bool
	busy     string // the spinner's line, "" for none
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out}
	if f, ok := out.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		s.terminal = err == nil
	}
	return s
}

// say prints a line.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintf(s.out, format+"\n", args...)
	s.draw()
}

// step prints what is going on: a label and a text in two columns.
func (s *screen) step(label, format string, args ...any) {
	s.say("%-9s "+format, append([]any{label}, args...)...)
}

func (s *screen) clear() {
	if s.busy != "" && s.terminal {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
}

func (s *screen) draw() {
	if s.busy != "" && s.terminal {
		fmt.Fprint(s.out, s.busy)
	}
}

// wait shows that something is going on until done is called. CRI tells nothing about
// how far a pull is, so a terminal gets the seconds, and anything else, as a log file
// of a CI run, one line every 10 seconds.
func (s *screen) wait(label, text string) (done func()) {
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() { s.spin(label, text, stop) })
	return func() {
		close(stop)
		wg.Wait()
	}
}

func (s *screen) spin(label, text string, stop <-chan struct{}) {
	every := 10 * time.Second
	if s.terminal {
		every = 100 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	start := time.Now()
	for turn := 0; ; turn++ {
		select {
		case <-stop:
			s.mu.Lock()
			s.clear()
			s.busy = ""
			s.mu.Unlock()
			return
		case <-tick.C:
		}
		if !s.terminal {
			s.step(label, "%s ... %d s", text, int(time.Since(start).Seconds()))
			continue
		}
		s.mu.Lock()
		s.clear()
		s.busy = fmt.Sprintf("%-9s %s %c %.1f s", label, text, `|/-\`[turn%4], time.Since(start).Seconds())
		s.draw()
		s.mu.Unlock()
	}
}

// took prints a duration for people.
func took(start time.Time) string {
	d := time.Since(start)
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
