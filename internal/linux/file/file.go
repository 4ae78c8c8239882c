// Package file writes and reads small files with no more system calls than that takes.
//
// os.OpenFile asks the poller about each file, which regular files have no use for: five
// more calls each, which is most of what a record on tmpfs costs. Paths are trusted. The
// package starts no goroutine and keeps no state.
package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// suffix is of the file that Replace renames.
const suffix = ".new"

// Write makes the file at path, or empties the one that is there, and writes body.
func Write(path string, body []byte, mode os.FileMode) error {
	return write(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, body, mode)
}

// Append writes body to the end of a file that is there.
func Append(path string, body []byte) error {
	return write(path, unix.O_WRONLY|unix.O_APPEND, body, 0)
}

// Replace puts body in the place of the file at path: a reader finds the old or the new
// content, whole, also after the writer was killed. It writes path.new and renames it.
func Replace(path string, body []byte, mode os.FileMode) error {
	fresh := path + suffix
	if err := Write(fresh, body, mode); err != nil {
		// On a full file system half a file would hold the space that others need.
		return errors.Join(err, Remove(fresh))
	}
	if err := unix.Rename(fresh, path); err != nil {
		return &os.PathError{Op: "rename", Path: fresh, Err: err}
	}
	return nil
}

func write(path string, flags int, body []byte, mode os.FileMode) error {
	fd, err := open(path, flags, mode)
	if err != nil {
		return err
	}
	for len(body) > 0 {
		n, err := unix.Write(fd, body)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "write", Path: path, Err: errors.Join(err, unix.Close(fd))}
		}
		body = body[n:]
	}
	if err := unix.Close(fd); err != nil {
		return &os.PathError{Op: "close", Path: path, Err: err}
	}
	return nil
}

func open(path string, flags int, mode os.FileMode) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, uint32(mode.Perm()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

// Read gives the content of a regular file of at most limit bytes.
func Read(path string, limit int64) ([]byte, error) {
	fd, err := open(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Size > limit {
		return nil, fmt.Errorf("read %s: %d bytes are too many: %w", path, st.Size, unix.EFBIG)
	}
	body := make([]byte, st.Size)
	for have := 0; have < len(body); {
		n, err := unix.Read(fd, body[have:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return body[:have], nil // it has become shorter
		}
		have += n
	}
	return body, nil
}

// Remove deletes a file; it is no error when there is none.
func Remove(path string) error {
	if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &os.PathError{Op: "unlink", Path: path, Err: err}
	}
	return nil
}

// Mkdir makes a directory; it is no error when there is one.
func Mkdir(path string, mode os.FileMode) error {
	if err := unix.Mkdir(path, uint32(mode.Perm())); err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return nil
}
