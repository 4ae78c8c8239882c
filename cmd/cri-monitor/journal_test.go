package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// bench is a journal, a source pipe and a log, as the daemon would hand them over.
type bench struct {
	t       *testing.T
	fds     [3]int
	src     [2]int
	logPath string
	j       *journal
	s       *stream
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, logPath: filepath.Join(t.TempDir(), "log")}
	fd, err := unix.MemfdCreate("journal", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, wire.JournalSize); err != nil {
		t.Fatal(err)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := unix.Pipe2(b.src[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	b.fds = [3]int{fd, p[0], p[1]}
	b.open(false)
	t.Cleanup(func() {
		_ = unix.Munmap(b.j.m)
		closeFd(b.fds[:]...)
		closeFd(b.src[:]...)
		closeFd(b.s.c.log.fd)
	})
	return b
}

// open is a new monitor's view of the same things.
func (b *bench) open(restored bool) {
	b.t.Helper()
	j, e := mapJournal(b.fds[0], b.fds[1], b.fds[2])
	if e != 0 {
		b.t.Fatal(e)
	}
	fd, err := unix.Open(b.logPath, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	m := &monitor{journal: j, ended: map[string]*wireStats{}}
	c := m.newContainer("id", 0)
	c.setLog(newLog(fd))
	b.j = j
	b.s = &stream{c: c, fd: b.src[0]}
	key := streamKey("id", 0)
	if restored {
		b.s.entry = j.find(key)
	} else {
		b.s.entry = j.open(key)
	}
	if b.s.entry < 0 {
		b.t.Fatal("no entry")
	}
}

// die forgets everything that is not in the journal's memfd and pipe.
func (b *bench) die() {
	_ = unix.Munmap(b.j.m)
	closeFd(b.s.c.log.fd)
	b.open(true)
}

func (b *bench) write(s string) {
	b.t.Helper()
	if n, err := unix.Write(b.src[1], []byte(s)); err != nil || n != len(s) {
		b.t.Fatal(err)
	}
}

// until does what pump does and stops after the given number of steps.
func (b *bench) until(cut int) {
	j, s, n := b.j, b.s, 0
	var log *logFile
	steps := []func(){
		func() { j.rec.stream = uint32(s.entry); j.rec.word.Store(splicing) },
		func() { n, _ = splice(s.fd, j.w, inSize) },
		func() { j.step(reading, 0, n) },
		func() { _, _ = read(j.r, j.in()[:n/2]) },
		func() { _, _ = read(j.r, j.in()[n/2:n]) },
		func() { j.step(formatting, 0, n) },
		func() { j.format.out = append(j.format.out[:0], "half an entry"...) },
		func() { j.doFormat(s, 0, n, false) },
		func() {
			if out := written(j); len(out) > 0 {
				log = s.c.logFor(j.rec.dev, j.rec.ino)
				_, _ = unix.Write(log.fd, out[:len(out)/3])
			}
		},
		func() {
			if out := written(j); len(out) > 0 {
				_ = log.append(out, log.done(out, j.rec.size), j.rec.size)
			}
		},
		func() {
			if len(written(j)) > 0 { // else the step is left out
				j.doWrite(s, 0, n, true)
			}
		},
		func() { copy(j.slot(j.rec.slot)[j.rec.base:], j.in()[j.rec.inNext:n]) },
		func() { j.doApply(n) },
	}
	for _, f := range steps[:min(cut, len(steps))] {
		f()
	}
}

func TestDeathAtEachStep(t *testing.T) {
	for name, tc := range map[string]struct{ first, then, want string }{
		"fresh":      {"", "def\nline2\ntail", "F def|F line2|F tailend|P rest|"},
		"unfinished": {"abc", "def\nline2\ntail", "F abcdef|F line2|F tailend|P rest|"},
		"growing":    {"abc", "def", "F abcdefend|P rest|"},
		"whole":      {"abc", "def\n", "F abcdef|F end|P rest|"},
	} {
		for cut := range 14 {
			t.Run(fmt.Sprintf("%s at %d", name, cut), func(t *testing.T) {
				b := newBench(t)
				b.write(tc.first)
				b.pumpAll()
				b.write(tc.then)
				b.until(cut)
				b.die()
				b.j.recover(b.s)
				b.write("end\nrest")
				b.pumpAll()
				b.j.flush(b.s)
				b.j.flush(b.s)
				if got := b.content(); got != tc.want {
					t.Errorf("got %q\nwant %q", got, tc.want)
				}
			})
		}
	}
}

func written(j *journal) []byte { return j.m[outStart : outStart+int(j.rec.outLen)] }

func (b *bench) pumpAll() {
	b.t.Helper()
	for {
		if _, e := b.j.pump(b.s); e == unix.EAGAIN {
			return
		} else if e != 0 {
			b.t.Fatal(e)
		}
	}
}

// content is the log without its stamps.
func (b *bench) content() string {
	b.t.Helper()
	got, err := os.ReadFile(b.logPath)
	if err != nil {
		b.t.Fatal(err)
	}
	var all strings.Builder
	for l := range strings.Lines(string(got)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(l, "\n"), " stdout ")
		all.WriteString(rest + "|")
	}
	return all.String()
}

// Very short lines grow forty-fold: they need several rounds, each a transaction.
func TestManyRounds(t *testing.T) {
	b := newBench(t)
	in := strings.Repeat("\n", inSize)
	done := make(chan error, 1)
	go func() {
		_, err := unix.Write(b.src[1], []byte(in))
		done <- err
	}()
	for total := 0; total < len(in); {
		n, e := b.j.pump(b.s)
		if e != 0 && e != unix.EAGAIN {
			t.Fatal(e)
		}
		total += n
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(b.logPath)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(got), "Z stdout F \n"); n != inSize || len(got) != n*(len("2006-01-02T15:04:05.000000000Z stdout F \n")) {
		t.Errorf("entries: got %d in %d bytes, want %d", n, len(got), inSize)
	}
}
