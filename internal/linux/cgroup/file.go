package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// openRaw opens without the Go runtime's poller, which would make the descriptor
// non-blocking: memory.max then reclaims nothing (6.16), and where memory.reclaim
// says EAGAIN a write would wait for a readiness that never comes.
func openRaw(name string, flags int) (int, error) {
	for {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
}

// writeFile writes in one call, as the kernel wants it, and never creates: outside a
// cgroup filesystem it fails.
func writeFile(name, value string) error {
	fd, err := openRaw(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		_, err := unix.Write(fd, []byte(value))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write %q: %w", cut(value), &os.PathError{Op: "write", Path: name, Err: err})
		}
		return nil
	}
}

// readString reads a whole file without surrounding white space.
func readString(name string) (string, error) {
	fd, err := openRaw(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	var out []byte
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return "", &os.PathError{Op: "read", Path: name, Err: err}
		case n == 0:
			return string(bytes.TrimSpace(out)), nil
		default:
			// The kernel returns as many lines as there is room for.
			if out = append(out, buf[:n]...); n < len(buf)/2 {
				return string(bytes.TrimSpace(out)), nil
			}
		}
	}
}

func readFields(name string) ([]string, error) {
	s, err := readString(name)
	return strings.Fields(s), err
}

// readNumber reads a number; "max" and v1's "no limit" are the largest one.
func readNumber(name string) (uint64, error) {
	s, err := readString(name)
	if err != nil {
		return 0, err
	}
	return parseNumber([]byte(s))
}

func parseNumber(b []byte) (uint64, error) {
	s := string(bytes.TrimSpace(b))
	if s == "max" || s == "-1" {
		return unlimited, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse number: %w", err)
	}
	return n, nil
}

// unlimited is the largest value; v1 shows that number rounded down to pages.
const unlimited = ^uint64(0)

// isUnlimited knows both ways of saying it: no machine has 2^60 bytes.
func isUnlimited(n uint64) bool { return n >= 1<<60 }

// gone tells whether err says that the cgroup no longer exists: files that were
// open before it went answer ENODEV.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
