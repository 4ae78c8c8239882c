package stream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// session is one connection. It stands between the library that speaks the protocols
// and Sessions, in the shapes that each of them wants.
type session struct {
	sessions Sessions
	req      Request
	workers  group // calls and helpers that must be over before the session is
}

// serve runs the session in whatever protocol the client asks for.
func (s *session) serve(w http.ResponseWriter, r *http.Request) {
	opts := &remotecommand.Options{Stdin: s.req.Stdin, Stdout: s.req.Stdout, Stderr: s.req.Stderr, TTY: s.req.TTY}
	protocols := remotecommand.SupportedStreamingProtocols
	switch {
	case s.req.Kind == PortForward && wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
		s.serveTunnel(w, r)
	case s.req.Kind == PortForward:
		s.servePorts(w, r)
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(r):
		s.serveV5(w, r)
	case s.req.Kind == Exec:
		remotecommand.ServeExec(w, r, s, "", "", string(s.req.ID), s.req.Cmd, opts, idleTimeout, creationTimeout, protocols)
	default:
		remotecommand.ServeAttach(w, r, s, "", "", string(s.req.ID), opts, idleTimeout, creationTimeout, protocols)
	}
}

// streams are what the client opened, already cut to what the request allows.
type streams struct {
	in       io.Reader
	out, err io.Writer
	resize   <-chan sandbox.TerminalSize
}

// ExecInContainer is called by the library. The names and the timeout are the
// kubelet's part of its interface and not used.
func (s *session) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error { //nolint:revive // argument-limit: the library's interface
	if !s.workers.enter() {
		return context.Canceled
	}
	defer s.workers.leave()
	return s.run(ctx, s.pick(ctx, in, out, errOut, resize))
}

// AttachContainer is called by the library, as ExecInContainer.
func (s *session) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error { //nolint:revive // argument-limit: the library's interface
	if !s.workers.enter() {
		return context.Canceled
	}
	defer s.workers.leave()
	return s.run(ctx, s.pick(ctx, in, out, errOut, resize))
}

// run does the work of exec or attach. A process that ends with another code than 0
// is told by the error type that the protocols translate.
func (s *session) run(ctx context.Context, st streams) error {
	if s.req.Kind == Attach {
		return s.sessions.Attach(ctx, sandbox.AttachRequest{
			Container: s.req.ID, TTY: s.req.TTY,
			Stdin: st.in, Stdout: st.out, Stderr: st.err, Resize: st.resize,
		})
	}
	exit, err := s.sessions.Exec(ctx, sandbox.ExecRequest{
		Container: s.req.ID, Cmd: s.req.Cmd, TTY: s.req.TTY,
		Stdin: st.in, Stdout: st.out, Stderr: st.err, Resize: st.resize,
	})
	if err != nil {
		return err
	}
	if exit != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", exit), Code: int(exit)}
	}
	return nil
}

// pick leaves out what the request did not ask for: WebSocket sessions always have all
// channels, and a nil stream is what tells the sandbox to open none.
func (s *session) pick(ctx context.Context, in io.Reader, out, errOut io.Writer, resize <-chan remotecommand.TerminalSize) streams {
	var st streams
	if s.req.Stdin {
		st.in = in
	}
	if s.req.Stdout {
		st.out = out
	}
	if s.req.Stderr && !s.req.TTY {
		st.err = errOut
	}
	if s.req.TTY && resize != nil {
		st.resize = s.sizes(ctx, resize)
	}
	return st
}

// sizes passes terminal sizes on, in the sandbox's type, until the client or the
// session ends.
func (s *session) sizes(ctx context.Context, from <-chan remotecommand.TerminalSize) <-chan sandbox.TerminalSize {
	to := make(chan sandbox.TerminalSize)
	if !s.workers.enter() {
		close(to)
		return to
	}
	go func() { // ends with ctx; the session waits for it by s.workers
		defer s.workers.leave()
		defer close(to)
		for {
			select {
			case size, ok := <-from:
				if !ok {
					return
				}
				select {
				case to <- sandbox.TerminalSize(size):
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}

// forward is the library's view of port forwarding.
type forward func(port int32, stream io.ReadWriteCloser) error

// PortForward is called by the library once per connection to a port.
func (f forward) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	return f(port, stream)
}

// servePorts forwards any number of connections. The library gives each a context that
// never ends, so the session's is used.
func (s *session) servePorts(w http.ResponseWriter, r *http.Request) {
	f := forward(func(port int32, stream io.ReadWriteCloser) error { //nolint:contextcheck // the library's context is Background
		if !s.workers.enter() {
			return context.Canceled
		}
		defer s.workers.leave()
		return s.sessions.PortForward(r.Context(), s.req.ID, port, stream)
	})
	opts := &portforward.V4Options{Ports: s.req.Ports}
	portforward.ServePortForward(w, r, f, string(s.req.ID), "", opts, idleTimeout, creationTimeout, portforward.SupportedProtocols)
}
