// Package admin serves what the people who operate a node ask beyond CRI: the pulls in
// flight, archives in and out, counters. It speaks HTTP/1.1 and JSON on a unix socket
// that only root may open; /metrics alone is also served on TCP where an operator wants it.
//
//	GET  /v1/pulls                 pulls in flight and the last ones; ?watch=1: a line every 200 ms
//	GET  /v1/gc                    what is in the store and nobody owns; POST deletes it
//	POST /v1/images/load           the body is an archive; lines of progress, then the images
//	GET  /v1/images/save?ref=REF   an archive; &ref= again for more, &format=oci|oci-gzip|docker
//	POST /v1/images/verify?ref=REF all that is stored of an image, against its digests
//	GET  /v1/trace?pod=NAME        how a pod started, or why it does not
//	GET  /metrics                  Prometheus text format 0.0.4
//
// It decides nothing by itself and refuses what the image store refuses; a failure is a
// document {"error": "..."} with a fitting status. The request's goroutine does all the
// work and ends with its connection; Serve waits for it. It leaves nothing on disk.
//
// Client is the other side, for the command line.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	watchEvery = 200 * time.Millisecond
	stopGrace  = 5 * time.Second
	// headerLimit and writeLimit end connections of clients that stand still.
	headerLimit = 10 * time.Second
	writeLimit  = 30 * time.Second
	idleLimit   = 2 * time.Minute
)

// Images is what the image store knows. None of it waits for a pull.
type Images interface {
	Pulls() []image.PullStatus
	PullCounts() image.PullCounts
	Mismatches() map[string]uint64
	List() []*image.Image
	FsUsage() (layers, writable image.FsStat, err error)
}

// Archives brings images in and out as archives. Load leaves nothing when it fails.
// Save writes nothing before it has found all images.
type Archives interface {
	Load(ctx context.Context, r io.Reader, progress func(image.LoadProgress)) ([]image.Loaded, error)
	Save(ctx context.Context, w io.Writer, refs []string, format image.ArchiveFormat) error
}

// Keeper looks after what is stored. Garbage lists what nobody owns, and deletes it unless
// it is a dry run. In Verify a damaged image is an error, and no longer there.
type Keeper interface {
	Garbage(ctx context.Context, dryRun bool) ([]image.Orphan, error)
	Verify(ctx context.Context, ref string) error
}

// Deps is what a Server is made of.
type Deps struct {
	Images   Images
	Archives Archives
	Keeper   Keeper
	Traces   Traces
	Version  string // of the program
}

// Server serves the socket.
type Server struct {
	deps    Deps
	started time.Time
}

// New makes a Server. Nothing runs until Serve.
func New(d Deps) *Server { return &Server{deps: d, started: time.Now()} }

// Serve answers on l, which it closes, until ctx ends: then requests under way get a
// few seconds, and their context ends at once. An end that was asked for is no error.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/pulls", s.pulls)
	mux.HandleFunc("GET /v1/gc", s.garbage)
	mux.HandleFunc("POST /v1/gc", s.garbage)
	mux.HandleFunc("POST /v1/images/load", s.load)
	mux.HandleFunc("GET /v1/images/save", s.save)
	mux.HandleFunc("POST /v1/images/verify", s.verify)
	mux.HandleFunc("GET /v1/trace", s.trace)
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("/", unknown)
	return serve(ctx, l, mux)
}

// ServeMetrics is Serve with nothing but /metrics.
func (s *Server) ServeMetrics(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", s.metrics)
	return serve(ctx, l, mux)
}

func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerLimit, IdleTimeout: idleLimit, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	var g errgroup.Group
	stopped := make(chan struct{})
	g.Go(func() error {
		defer close(stopped)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", l.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-stopped:
			return nil
		}
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		if err := srv.Shutdown(grace); err != nil {
			return srv.Close()
		}
		return nil
	})
	return g.Wait()
}

// PullList is the answer of /v1/pulls, and each line of a watch.
type PullList struct {
	Pulls []image.PullStatus `json:"pulls"`
}

func (s *Server) pulls(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("watch") == "" {
		reply(w, PullList{s.deps.Images.Pulls()})
		return
	}
	out := lines(w)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for out.send(PullList{s.deps.Images.Pulls()}) == nil {
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// LoadLine is a line of the answer of /v1/images/load. The last one has Images or Error;
// an answer without is one that was cut off.
type LoadLine struct {
	Progress *image.LoadProgress `json:"progress,omitempty"`
	Images   []image.Loaded      `json:"images,omitempty"`
	Error    string              `json:"error,omitempty"`
}

// load answers while it reads. An archive that cannot be read at all gets a line, too:
// the status went out with the first progress, or it comes with the only line.
func (s *Server) load(w http.ResponseWriter, r *http.Request) {
	// HTTP/1.1 else reads the whole body before it lets us answer.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		fail(w, r, fmt.Errorf("answer while reading: %w", err))
		return
	}
	out := lines(w)
	var last time.Time
	began := false
	images, err := s.deps.Archives.Load(r.Context(), r.Body, func(p image.LoadProgress) {
		if time.Since(last) < watchEvery {
			return
		}
		last, began = time.Now(), true
		_ = out.send(LoadLine{Progress: &p}) // who does not listen still gets the images
	})
	switch {
	case err == nil:
		_ = out.send(LoadLine{Images: images}) // the client is gone
	case !began:
		fail(w, r, err)
	default:
		klog.FromContext(r.Context()).Error(err, "Images not loaded")
		_ = out.send(LoadLine{Error: err.Error()}) // the client is gone
	}
}

func (s *Server) save(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	format := image.ArchiveFormat(q.Get("format"))
	if format == "" {
		format = image.FormatOCI
	}
	if len(q["ref"]) == 0 {
		fail(w, r, fmt.Errorf("ref: name at least one image: %w", errdef.ErrInvalid))
		return
	}
	out := &archive{w: w, limit: http.NewResponseController(w)}
	err := s.deps.Archives.Save(r.Context(), out, q["ref"], format)
	switch {
	case err == nil:
	case out.began:
		// A connection that breaks off is the one sign that no client takes for success.
		klog.FromContext(r.Context()).Error(err, "Images not saved", "images", q["ref"])
		panic(http.ErrAbortHandler)
	default:
		fail(w, r, err)
	}
}

// archive is the answer of save. Its header goes out with the first byte.
type archive struct {
	w     http.ResponseWriter
	limit *http.ResponseController
	began bool
}

func (a *archive) Write(p []byte) (int, error) {
	if !a.began {
		a.began = true
		a.w.Header().Set("Content-Type", "application/x-tar")
	}
	if err := a.limit.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return 0, err
	}
	return a.w.Write(p)
}

// Garbage is the answer of /v1/gc.
type Garbage struct {
	DryRun  bool           `json:"dryRun"`
	Orphans []image.Orphan `json:"orphans"`
	Bytes   uint64         `json:"bytes"` // of all
}

func (s *Server) garbage(w http.ResponseWriter, r *http.Request) {
	answer := Garbage{DryRun: r.Method != http.MethodPost, Orphans: []image.Orphan{}}
	orphans, err := s.deps.Keeper.Garbage(r.Context(), answer.DryRun)
	if err != nil {
		fail(w, r, err)
		return
	}
	for _, o := range orphans {
		answer.Bytes += o.Bytes
	}
	answer.Orphans = append(answer.Orphans, orphans...)
	reply(w, answer)
}

// Verified is the answer of /v1/images/verify.
type Verified struct {
	Ref string `json:"ref"`
}

func (s *Server) verify(w http.ResponseWriter, r *http.Request) {
	ref := r.URL.Query().Get("ref")
	if ref == "" {
		fail(w, r, fmt.Errorf("ref: name an image: %w", errdef.ErrInvalid))
		return
	}
	if err := s.deps.Keeper.Verify(r.Context(), ref); err != nil {
		fail(w, r, err)
		return
	}
	reply(w, Verified{ref})
}

func unknown(w http.ResponseWriter, r *http.Request) {
	fail(w, r, fmt.Errorf("%s %.100q: no such call: %w", r.Method, r.URL.Path, errdef.ErrNotFound))
}

// Failure is the document of an answer that is not 200.
type Failure struct {
	Error string `json:"error"`
}

// statusOf is the one place where kinds of failure become statuses.
var statusOf = []struct {
	is     error
	status int
}{
	{errdef.ErrNotFound, http.StatusNotFound},
	{errdef.ErrInvalid, http.StatusBadRequest},
	{errdef.ErrDenied, http.StatusForbidden},
	{errdef.ErrExists, http.StatusConflict},
	{errdef.ErrPhase, http.StatusConflict},
	{errdef.ErrRetry, http.StatusServiceUnavailable},
	{errdef.ErrUnimplemented, http.StatusNotImplemented},
	{errdef.ErrExhausted, http.StatusInsufficientStorage},
	{syscall.ENOSPC, http.StatusInsufficientStorage},
	{syscall.EDQUOT, http.StatusInsufficientStorage},
}

// fail answers with an error, and logs it, as CRI's interceptor does.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusInternalServerError
	for _, s := range statusOf {
		if errors.Is(err, s.is) {
			status = s.status
			break
		}
	}
	klog.FromContext(r.Context()).V(2).Info("Admin call failed", "method", r.Method, "path", r.URL.Path, "err", err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(Failure{err.Error()}) // the client is gone
}

func reply(w http.ResponseWriter, doc any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(doc) // the client is gone
}

// lineWriter writes JSON documents, a line each, and sends every one off.
type lineWriter struct {
	w     http.ResponseWriter
	limit *http.ResponseController
	began bool
}

func lines(w http.ResponseWriter) *lineWriter {
	return &lineWriter{w: w, limit: http.NewResponseController(w)}
}

func (l *lineWriter) send(doc any) error {
	if !l.began {
		l.began = true
		l.w.Header().Set("Content-Type", "application/x-ndjson")
	}
	if err := l.limit.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	if err := json.NewEncoder(l.w).Encode(doc); err != nil {
		return err
	}
	return l.limit.Flush()
}
