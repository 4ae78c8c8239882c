package undo

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

func TestRunIf(t *testing.T) {
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		fail error
		want []string
	}{
		"success undoes nothing":      {nil, nil},
		"failure undoes in reverse":   {boom, []string{"b", "a"}},
		"cancellation undoes as well": {context.Canceled, []string{"b", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			var s Stack
			var got []string
			for _, n := range []string{"a", "b"} {
				s.Push(n, func(ctx context.Context) error {
					got = append(got, n)
					return ctx.Err()
				})
			}
			if err := s.RunIf(ctx, tc.fail, time.Minute); err != nil {
				t.Fatalf("RunIf: got %v, want nil", err)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("undone: got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestRunIfGoesOnAfterAnError(t *testing.T) {
	boom := errors.New("boom")
	var s Stack
	ran := false
	s.Push("first", func(context.Context) error { ran = true; return nil })
	s.Push("second", func(context.Context) error { return boom })
	if err := s.RunIf(t.Context(), boom, time.Minute); !errors.Is(err, boom) {
		t.Errorf("RunIf: got %v, want %v", err, boom)
	}
	if !ran {
		t.Error("the step below a failing one was not undone")
	}
}
