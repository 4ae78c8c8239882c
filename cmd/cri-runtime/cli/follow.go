package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// follower prints a container's log file as it grows, in the format that CRI defines:
// "TIME STREAM P|F TEXT", P for a part of a line that goes on.
type follower struct {
	file   string
	print  func(line string)
	lines  atomic.Int64
	rest   []byte // an unfinished line of the file
	joined []byte // parts of an unfinished line of the container
}

// run follows until ctx ends, and then reads what is there. inotify tells of writes.
func (f *follower) run(ctx context.Context) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch log: %w", err)
	}
	watch := os.NewFile(uintptr(fd), "inotify")
	defer watch.Close()
	// The directory, since the file may not be there yet, and since it is replaced when logs rotate.
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(f.file), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return fmt.Errorf("watch log: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = watch.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var log *os.File
	defer func() {
		if log != nil {
			log.Close()
		}
	}()
	events := make([]byte, 64<<10)
	for {
		if log, err = f.catchUp(log); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		if _, err := watch.Read(events); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("watch log: %w", err)
		}
	}
}

// catchUp reads to the end of the open file, and of the file that took its place.
func (f *follower) catchUp(log *os.File) (*os.File, error) {
	for {
		if log != nil {
			if err := f.read(log); err != nil {
				return log, err
			}
		}
		next, err := os.Open(f.file)
		if errors.Is(err, os.ErrNotExist) {
			return log, nil
		}
		if err != nil {
			return log, err
		}
		if log != nil {
			was, err1 := log.Stat()
			is, err2 := next.Stat()
			if err := errors.Join(err1, err2); err != nil || os.SameFile(was, is) {
				next.Close()
				return log, err
			}
			if err := f.read(log); err != nil { // what came between reading and rotation
				next.Close()
				return log, err
			}
			log.Close()
		}
		log = next
	}
}

func (f *follower) read(log io.Reader) error {
	r := bufio.NewReaderSize(log, 64<<10)
	for {
		part, err := r.ReadSlice('\n')
		f.rest = append(f.rest, part...)
		if err == nil {
			f.take(f.rest)
			f.rest = f.rest[:0]
			continue
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// take handles one line of the file.
func (f *follower) take(line []byte) {
	text, whole := logText(line)
	f.joined = append(f.joined, text...)
	if !whole {
		return
	}
	f.lines.Add(1)
	f.print(printable(string(f.joined)))
	f.joined = f.joined[:0]
}

// logText is what the container wrote, and whether the line ends there.
func logText(line []byte) (text []byte, whole bool) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	fields := bytes.SplitN(line, []byte(" "), 4)
	if len(fields) < 4 {
		return line, true
	}
	tag, _, _ := bytes.Cut(fields[2], []byte(":"))
	return fields[3], string(tag) != "P"
}

// printable keeps a container from steering the user's terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r >= ' ' && r != 0x7f && (r < 0x80 || r >= 0xa0) {
			return r
		}
		return -1
	}, s)
}

// logTail returns the last lines of a log file.
func logTail(file string, n int) []string {
	var lines []string
	f := &follower{file: file, print: func(line string) {
		if lines = append(lines, line); len(lines) > n {
			lines = lines[1:]
		}
	}}
	if log, err := f.catchUp(nil); log != nil {
		log.Close()
	} else if err != nil {
		return []string{err.Error()}
	}
	if len(f.joined) > 0 { // a last line without its end
		f.take([]byte("- - F "))
	}
	return lines
}
