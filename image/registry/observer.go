package registry

import "time"

// An Observer is told how one transfer goes. Its methods are called by the goroutine that
// reads, in order, without a lock held; they must neither wait nor read the transfer.
type Observer interface {
	// Host names the host that answered and is read from now on. It ends a wait.
	Host(host string)
	// Bytes counts what was handed on: from the network, or resumed, from what an earlier
	// transfer left on disk. It ends a wait.
	Bytes(n int64, resumed bool)
	// Waiting says why nothing comes and when the next attempt begins.
	Waiting(reason string, until time.Time)
	// Restarted says that all bytes counted so far were wrong and come anew.
	Restarted()
}

// unobserved stands for no observer, so that nobody has to ask for one.
type unobserved struct{}

func (unobserved) Host(string)               {}
func (unobserved) Bytes(int64, bool)         {}
func (unobserved) Waiting(string, time.Time) {}
func (unobserved) Restarted()                {}
