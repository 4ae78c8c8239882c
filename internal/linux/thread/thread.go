// Package thread runs functions on operating system threads whose attributes may
// be spoilt: namespaces, credentials, signal masks.
//
// The thread ends with the function, because most namespace changes of one thread
// cannot be taken back safely. The package keeps nothing on disk; its goroutine
// lives only as long as the call that started it.
package thread

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Throwaway runs fn on a thread of its own, waits for it, and lets the thread end.
func Throwaway(fn func() error) error {
	done := make(chan error, 1)
	go run(fn, done)
	return <-done
}

// run executes fn and never unlocks, which makes the Go runtime end the thread.
// The main thread cannot end: the runtime parks it for ever, and with it
// /proc/self, which shows the main thread, would stay in fn's namespaces. So when
// the scheduler gave us that one, it is held while another thread does the work.
func run(fn func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		other := make(chan error, 1)
		go run(fn, other)
		err := <-other
		runtime.UnlockOSThread()
		done <- err
		return
	}
	done <- fn()
}
