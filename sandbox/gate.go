package sandbox

import (
	"context"
	"fmt"
)

// gate is a lock that gives up when the caller does. It is held to change a record
// and the kernel objects it names, never to wait for a process to end.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) enter(ctx context.Context, what string) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the operation under way on %s: %w", what, context.Cause(ctx))
	}
}

func (g gate) leave() { <-g }
