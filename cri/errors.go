package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// codeOf is the one place where kinds of failure become codes. The first match counts:
// a deadline inside says more about an error than the kind around it.
var codeOf = []struct {
	is   error
	code codes.Code
}{
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{errdef.ErrNotFound, codes.NotFound},
	{errdef.ErrExists, codes.AlreadyExists},
	{errdef.ErrInvalid, codes.InvalidArgument},
	{errdef.ErrPhase, codes.FailedPrecondition},
	{errdef.ErrRetry, codes.Unavailable},
	{errdef.ErrExhausted, codes.ResourceExhausted},
	{errdef.ErrUnimplemented, codes.Unimplemented},
	{errdef.ErrDenied, codes.PermissionDenied},
	// A full disk may show anywhere below, and is nobody's defect.
	{syscall.ENOSPC, codes.ResourceExhausted},
	{syscall.EDQUOT, codes.ResourceExhausted},
}

// toStatus turns any error into one with a gRPC status; nil stays nil.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if p, ok := errors.AsType[*errdef.Prefixed](err); ok {
		return status.Error(codes.Unknown, prefixFirst(p.Prefix, err.Error()))
	}
	if s, ok := status.FromError(err); ok { // gRPC's own, such as a lost connection
		return s.Err()
	}
	for _, c := range codeOf {
		if errors.Is(err, c.is) {
			return status.Error(c.code, err.Error())
		}
	}
	return status.Error(codes.Internal, err.Error())
}

// prefixFirst moves the word that the kubelet compares with to the front of what was
// said around it: its own client strips the status wrapper only from code Unknown.
func prefixFirst(p errdef.Prefix, text string) string {
	word := string(p) + ": "
	return word + strings.Replace(text, word, "", 1)
}

// An invalid error names the field that can never be accepted.
type invalid string

func invalidf(format string, args ...any) error { return invalid(fmt.Sprintf(format, args...)) }

func (e invalid) Error() string { return string(e) }

// Unwrap gives the kind.
func (invalid) Unwrap() error { return errdef.ErrInvalid }
