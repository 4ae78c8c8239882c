// Package undo takes back the steps of an operation that failed half-way.
//
// A Stack belongs to one goroutine. It keeps nothing on disk: what must be undone
// after a crash is written to a record before the step is made.
package undo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Stack holds the undo functions of the steps made so far. The zero value is empty.
type Stack struct{ steps []step }

type step struct {
	name string
	run  func(context.Context) error
}

// Push records how to take back a step. Push before a step that can fail half-way:
// undo functions must succeed when there is nothing to undo.
func (s *Stack) Push(name string, run func(context.Context) error) {
	s.steps = append(s.steps, step{name, run})
}

// Forget drops all steps: the operation is complete.
func (s *Stack) Forget() { s.steps = nil }

// RunIf runs all undo functions, last first, when err is not nil. They run even
// after ctx was cancelled, with ctx's values, and share limit. The result joins
// their errors and is nil when all succeeded or err is nil.
func (s *Stack) RunIf(ctx context.Context, err error, limit time.Duration) error {
	if err == nil || len(s.steps) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	var errs []error
	for _, st := range slices.Backward(s.steps) {
		if e := st.run(ctx); e != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", st.name, e))
		}
	}
	s.steps = nil
	return errors.Join(errs...)
}
