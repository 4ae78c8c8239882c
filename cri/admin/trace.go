package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

type (
	// Trace is the answer of /v1/trace, in the provider's values.
	Trace = sandbox.Trace
	// TraceOp is one operation of it.
	TraceOp = sandbox.TraceOp
	// Step is a part of an operation.
	Step = sandbox.Step
)

// Traces shows how pods started, or why one does not. A pod is named by id, a unique
// beginning of it, or NAMESPACE/NAME.
type Traces interface {
	Trace(name string) (*Trace, error)
}

func (s *Server) trace(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("pod")
	if name == "" {
		fail(w, r, fmt.Errorf("pod: name one: %w", errdef.ErrInvalid))
		return
	}
	t, err := s.deps.Traces.Trace(name)
	if err != nil {
		fail(w, r, err)
		return
	}
	reply(w, t)
}

// Trace shows how a pod started, or why it does not.
func (c *Client) Trace(ctx context.Context, pod string) (*Trace, error) {
	return document[*Trace](ctx, c, http.MethodGet, "/v1/trace?"+url.Values{"pod": {pod}}.Encode())
}
