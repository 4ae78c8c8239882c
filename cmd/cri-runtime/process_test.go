package main

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A killed daemon's child that has not executed yet holds the lock for a moment. The
// clock is the bubble's: nothing here waits.
func TestLockOfADaemonThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := t.TempDir()
		gone, err := lock(t.Context(), state)
		if err != nil {
			t.Fatal(err)
		}
		var released atomic.Bool
		time.AfterFunc(200*time.Millisecond, func() { released.Store(true); gone() })
		release, err := lock(t.Context(), state)
		if err != nil {
			t.Fatalf("released after 200 ms: %v", err)
		}
		defer release()
		if !released.Load() {
			t.Error("two have the lock")
		}
	})
}

func TestLockOfADaemonThatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := t.TempDir()
		other, err := lock(t.Context(), state)
		if err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(lockWait+lockRetry, other)
		begun := time.Now()
		if _, err := lock(t.Context(), state); !errors.Is(err, unix.EWOULDBLOCK) {
			t.Errorf("got %v, want %v", err, unix.EWOULDBLOCK)
		}
		if took := time.Since(begun); took != lockWait {
			t.Errorf("refused after %v, want %v", took, lockWait)
		}
		if late.Stop() {
			other()
		}
	})
}
