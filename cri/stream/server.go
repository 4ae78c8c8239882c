package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// Sessions does the work. Each call ends with its context. None closes the streams it
// gets; a reader that is left behind on one is released by the server, which closes
// them right after the call returned.
type Sessions interface {
	Exec(ctx context.Context, r sandbox.ExecRequest) (exit int32, err error)
	Attach(ctx context.Context, r sandbox.AttachRequest) error
	PortForward(ctx context.Context, pod sandbox.ID, port int32, stream io.ReadWriteCloser) error
}

// Kind of a connection, and the first part of its path.
type Kind string

// The kinds of connections.
const (
	Exec        Kind = "exec"
	Attach      Kind = "attach"
	PortForward Kind = "portforward"
)

// A Request is what a token stands for.
type Request struct {
	Kind                       Kind
	ID                         sandbox.ID // container; for PortForward the pod
	Cmd                        []string   // Exec
	TTY, Stdin, Stdout, Stderr bool       // Exec, Attach
	Ports                      []int32    // PortForward: only old WebSocket clients need them
}

const (
	idleTimeout     = 4 * time.Hour    // as the peers
	creationTimeout = 30 * time.Second // for the SPDY streams of one session
	headerTimeout   = 10 * time.Second // a client on loopback that says nothing
	clientLinger    = 10 * time.Second // for data that a client left unread when it went
)

// Server serves the connections.
type Server struct {
	sessions Sessions
	listener net.Listener
	tokens   tokens
	active   group
	linger   time.Duration
}

// Listen opens addr, which must be numeric and on the loopback interface.
func Listen(ctx context.Context, addr string, s Sessions) (*Server, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("stream address %q: %w: %w", addr, errdef.ErrInvalid, err)
	}
	if !ap.Addr().IsLoopback() {
		return nil, fmt.Errorf("stream address %s is not on the loopback interface: %w", addr, errdef.ErrInvalid)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	return &Server{sessions: s, listener: l, linger: clientLinger}, nil
}

// Addr is the address that URLs point to.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// URL gives out a token for r in an absolute URL. It fails with errdef.ErrExhausted
// when too many wait for their connection.
func (s *Server) URL(r Request) (string, error) {
	token, err := s.tokens.add(r)
	if err != nil {
		return "", err
	}
	u := url.URL{Scheme: "http", Host: s.Addr(), Path: "/" + string(r.Kind) + "/" + token}
	return u.String(), nil
}

// Serve takes connections until ctx ends, then cuts all sessions and waits for them.
func (s *Server) Serve(ctx context.Context) error {
	mux := http.NewServeMux()
	for _, k := range []Kind{Exec, Attach, PortForward} {
		mux.HandleFunc("/"+string(k)+"/{token}", func(w http.ResponseWriter, r *http.Request) { s.handle(k, w, r) })
	}
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	// Hijacked connections are not the http server's: they end by their context.
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	err := srv.Serve(s.listener)
	s.active.closeAndWait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve streams: %w", err)
}

// handle runs one session. Its context ends with the connection, with Serve, and when
// handle returns, which then has waited for all that runs in it.
func (s *Server) handle(k Kind, w http.ResponseWriter, r *http.Request) {
	req, ok := s.tokens.take(k, r.PathValue("token"))
	if !ok {
		http.NotFound(w, r)
		return
	}
	if !s.active.enter() {
		http.Error(w, "the runtime is stopping", http.StatusServiceUnavailable)
		return
	}
	defer s.active.leave()
	log := klog.FromContext(r.Context()).WithValues("session", string(k), "id", string(req.ID))
	ctx, cancel := context.WithCancel(klog.NewContext(r.Context(), log))
	defer cancel()
	start := time.Now()
	log.V(4).Info("session begins")
	ses := &session{sessions: s.sessions, req: req}
	onEnd := func(f func()) { context.AfterFunc(ctx, f) }
	ses.serve(&tracked{ResponseWriter: w, ses: ses, linger: s.linger, end: cancel, onEnd: onEnd}, r.WithContext(ctx))
	cancel()
	ses.workers.closeAndWait()
	log.V(2).Info("session ended", "took", time.Since(start))
}
