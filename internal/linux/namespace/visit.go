package namespace

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// visit runs fn on a thread that may change its namespaces of the given kinds, of net, ipc
// and uts, and puts them back afterwards. A thread that cannot be put back ends. It costs a
// few system calls where a new thread costs its start and its end.
func visit(kinds []Kind, fn func() error) error {
	done := make(chan error, 1)
	go visitor(kinds, fn, done) // ends before visit does
	return <-done
}

func visitor(kinds []Kind, fn func() error, done chan<- error) {
	runtime.LockOSThread()
	// /proc/self shows the main thread: nobody must see that one elsewhere. It is held
	// while another does the work.
	if unix.Gettid() == os.Getpid() {
		other := make(chan error, 1)
		go visitor(kinds, fn, other)
		err := <-other
		runtime.UnlockOSThread()
		done <- err
		return
	}
	home := make([]int, 0, len(kinds))
	defer func() {
		for _, fd := range home {
			_ = unix.Close(fd)
		}
	}()
	for _, k := range kinds {
		fd, err := unix.Open("/proc/thread-self/ns/"+string(k), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open own %s namespace: %w", k, err)
			return
		}
		home = append(home, fd)
	}
	err := fn()
	for i, k := range kinds {
		if back := unix.Setns(home[i], k.Flag()); back != nil {
			// Still locked, the thread ends with this goroutine.
			done <- errors.Join(err, fmt.Errorf("leave %s namespace: %w", k, back))
			return
		}
	}
	runtime.UnlockOSThread()
	done <- err
}
