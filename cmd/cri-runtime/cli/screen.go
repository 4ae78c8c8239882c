package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// screen is where a command's words go: lines from several goroutines, and on a
// terminal a few lines below them that change while something takes long.
type screen struct {
	mu       sync.Mutex
	out      io.Writer
	terminal bool
	size     func() (width, height int) // of the terminal
	below    []string                   // the lines that change
}

// What a terminal has that does not tell its size.
const defaultWidth, defaultHeight = 80, 24

func newScreen(out io.Writer) *screen {
	s := &screen{out: out, size: func() (int, int) { return defaultWidth, defaultHeight }}
	f, ok := out.(*os.File)
	if !ok {
		return s
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	s.terminal = err == nil && os.Getenv("TERM") != "dumb"
	s.size = func() (int, int) {
		w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
		if err != nil || w.Col == 0 || w.Row == 0 {
			return defaultWidth, defaultHeight
		}
		return int(w.Col), int(w.Row)
	}
	return s
}

// say prints a line.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paint(strings.Split(fmt.Sprintf(format, args...), "\n"), s.below)
}

// step prints what is going on: a label and a text in two columns.
func (s *screen) step(label, format string, args ...any) {
	s.say("%-9s "+format, append([]any{label}, args...)...)
}

// show replaces the lines at the bottom of a terminal.
func (s *screen) show(lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminal {
		s.paint(nil, lines)
	}
}

// paint prints lines for good and those that change below them, over what was there: in
// one write, and without clearing first, so that nothing flickers. The cursor rests at
// the end of the last line. The lock is held.
func (s *screen) paint(lines, below []string) {
	var b strings.Builder
	end := "\n"
	if s.terminal && (len(s.below) > 0 || len(below) > 0) {
		b.WriteString("\r")
		if up := len(s.below) - 1; up > 0 {
			fmt.Fprintf(&b, "\x1b[%dA", up)
		}
		end = "\x1b[K\n"
	}
	for _, l := range lines {
		b.WriteString(l + end)
	}
	for i, l := range below {
		if i > 0 {
			b.WriteString(end)
		}
		b.WriteString(l)
	}
	if end != "\n" {
		b.WriteString("\x1b[J") // what was there and is longer
	}
	s.below = below
	fmt.Fprint(s.out, b.String())
}

// spinner is a line for something that tells nothing of how far it is. The terminal gets the
// seconds; anything else, as a log file of a CI run, one line every 10 seconds.
type spinner struct {
	screen      *screen
	label, text string
	start, last time.Time
	turn        int
}

func newSpinner(s *screen, label, text string) *spinner {
	now := time.Now()
	return &spinner{screen: s, label: label, text: text, start: now, last: now}
}

func (s *spinner) tick() {
	took := time.Since(s.start)
	if s.screen.terminal {
		s.turn++
		s.screen.show([]string{fmt.Sprintf("%-9s %s %c %.1f s", s.label, s.text, `|/-\`[s.turn%4], took.Seconds())})
		return
	}
	if time.Since(s.last) >= 10*time.Second {
		s.last = time.Now()
		s.screen.step(s.label, "%s ... %d s", s.text, int(took.Seconds()))
	}
}

// took prints a duration for people.
func took(start time.Time) string { return period(time.Since(start)) }

func period(d time.Duration) string {
	switch {
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	case d < 100*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Truncate(time.Second).String()
}
