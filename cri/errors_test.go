package cri

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func TestErrorTable(t *testing.T) {
	cause := errors.New("dial tcp: refused")
	for name, tc := range map[string]struct {
		err  error
		code codes.Code
		text string
	}{
		"canceled":      {fmt.Errorf("run pod: %w", context.Canceled), codes.Canceled, "run pod: context canceled"},
		"deadline":      {fmt.Errorf("x: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "x: context deadline exceeded"},
		"not found":     {fmt.Errorf("pod 1: %w", errdef.ErrNotFound), codes.NotFound, "pod 1: not found"},
		"exists":        {errdef.ErrExists, codes.AlreadyExists, "already exists"},
		"invalid":       {invalidf("config is missing"), codes.InvalidArgument, "config is missing"},
		"phase":         {errdef.ErrPhase, codes.FailedPrecondition, "not possible in this phase"},
		"retry":         {errdef.ErrRetry, codes.Unavailable, "try again later"},
		"exhausted":     {errdef.ErrExhausted, codes.ResourceExhausted, "resource exhausted"},
		"unimplemented": {errdef.ErrUnimplemented, codes.Unimplemented, "not implemented"},
		"denied":        {fmt.Errorf("pull a: %w", errdef.ErrDenied), codes.PermissionDenied, "pull a: access denied"},
		"other":         {cause, codes.Internal, "dial tcp: refused"},
		"joined":        {errors.Join(cause, errdef.ErrNotFound), codes.NotFound, "dial tcp: refused\nnot found"},
		"gRPC's own":    {status.Error(codes.Aborted, "gone"), codes.Aborted, "gone"},
		"prefix first":  {errdef.WithPrefix(errdef.RegistryUnavailable, cause), codes.Unknown, "RegistryUnavailable: dial tcp: refused"},
		"prefix inside": {
			fmt.Errorf("pull a: %w", errdef.WithPrefix(errdef.RegistryUnavailable, cause)),
			codes.Unknown, "RegistryUnavailable: pull a: dial tcp: refused",
		},
		"prefix beats kind": {
			fmt.Errorf("create c: %w", errdef.WithPrefix(errdef.ImageVolumeMountFailed, errdef.ErrNotFound)),
			codes.Unknown, "ImageVolumeMountFailed: create c: not found",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, ok := status.FromError(toStatus(tc.err))
			if !ok || s.Code() != tc.code || s.Message() != tc.text {
				t.Errorf("got %v %q, want %v %q", s.Code(), s.Message(), tc.code, tc.text)
			}
		})
	}
	if toStatus(nil) != nil {
		t.Error("nil became an error")
	}
}
