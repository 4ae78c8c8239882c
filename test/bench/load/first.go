package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// firstLimit is how long a first log line may take.
const firstLimit = 30 * time.Second

// firstLine waits for the first bytes in a file that need not exist yet.
type firstLine struct {
	path   string
	notify *os.File
}

// watch begins before the container starts, so that no event is missed. The kernel wakes
// us once or twice: asking for the file's size every 100 us takes 4 % of a processor more
// (BenchmarkFirstLine), on machines where two are shared with the runtime.
func watch(path string) (*firstLine, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch log: %w", err)
	}
	notify := os.NewFile(uintptr(fd), "inotify") // non-blocking: reads wait in the runtime's poller
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_CREATE|unix.IN_MODIFY|unix.IN_MOVED_TO); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", filepath.Dir(path), err), notify.Close())
	}
	return &firstLine{path, notify}, nil
}

// wait returns when the file has content.
func (f *firstLine) wait(ctx context.Context) error {
	deadline := time.Now().Add(firstLimit)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := f.notify.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("wait for %s: %w", f.path, err)
	}
	var events [4096]byte
	for {
		if st, err := os.Stat(f.path); err == nil && st.Size() > 0 {
			return nil
		}
		if _, err := f.notify.Read(events[:]); err != nil {
			return fmt.Errorf("wait for the first line in %s: %w", f.path, err)
		}
	}
}

func (f *firstLine) close() { _ = f.notify.Close() }
