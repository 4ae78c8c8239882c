// Package registry fetches manifests and blobs by the OCI distribution protocol.
//
// Which hosts stand for a registry comes from certs.d/<host>/hosts.toml, read anew by
// each Open; they are tried in order. Credentials go to the registry they were given
// for and to the token server that it names itself, never to mirrors, never along a
// redirect to another host. Blobs resume with Range where a connection broke off, stood
// still or crept, also at another host, and after an earlier transfer. A host that serves
// content of another digest is counted, and the next one asked; one that gives no answer
// is asked last until it is back. It refuses documents over 4 MiB and answers that are
// plainly not the registry's. A Client owns the goroutines that look whether a host is
// back, and Close awaits them. To disk it writes nothing but the partial blobs it is given.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// MaxDocument bounds manifests and configurations, as registries do.
const MaxDocument = 4 << 20

// Config holds what is the same for all registries. Zero values mean the defaults.
type Config struct {
	HostsDir  string        // certs.d
	UserAgent string        // "cri-runtime"
	Stall     time.Duration // no byte for so long: try again; 30 s
	MinRate   int64         // bytes per second on average over Stall, or try again; 1024
	Attempts  int           // without progress, per document or blob; 5
	Backoff   time.Duration // before the first retry, doubled for each further; 200 ms

	// KeepAfter is how long a transfer lasts before what comes is kept for the next: what
	// came in so short a time comes again in it, and keeping it would cost each quick pull a
	// twentieth of its time. 2 s; negative: at once.
	KeepAfter time.Duration
	Partials  *content.Partials // where broken transfers leave what came; nil: nowhere. The client closes it
}

// Client makes sessions.
type Client struct {
	cfg    Config
	memory *memory

	probes sync.WaitGroup

	mu      sync.Mutex
	probing map[string]context.CancelFunc // by address
	closed  bool
}

// New fills in the defaults. Close ends what the client does in the background.
func New(cfg Config) *Client {
	if cfg.UserAgent == "" {
		cfg.UserAgent = "cri-runtime"
	}
	if cfg.Stall == 0 {
		cfg.Stall = 30 * time.Second
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = 5
	}
	if cfg.Backoff == 0 {
		cfg.Backoff = 200 * time.Millisecond
	}
	if cfg.MinRate == 0 {
		cfg.MinRate = 1024
	}
	if cfg.KeepAfter == 0 {
		cfg.KeepAfter = 2 * time.Second
	}
	return &Client{cfg: cfg, probing: map[string]context.CancelFunc{},
		memory: &memory{hosts: map[string]*trouble{}, wrong: map[string]uint64{}}}
}

// Repository is a place in a registry: "docker.io", "library/busybox".
type Repository struct{ Host, Path string }

// Session talks to the hosts that stand for one repository's registry, with the
// credentials of one pull. It may be used by several goroutines.
type Session struct {
	cfg    Config
	repo   Repository
	hosts  []*host
	client *Client

	observer Observer // of documents

	mu     sync.Mutex
	doubts map[digest.Digest]*doubt
}

// Open reads the configuration of the repository's registry.
func (c *Client) Open(repo Repository, cred Credentials) (*Session, error) {
	eps, err := endpoints(c.cfg.HostsDir, repo.Host)
	if err != nil {
		return nil, fmt.Errorf("configure registry %s: %w", repo.Host, err)
	}
	s := &Session{cfg: c.cfg, repo: repo, client: c, observer: unobserved{}}
	for _, ep := range eps {
		h, err := newHost(ep, c.cfg)
		if err != nil {
			return nil, fmt.Errorf("configure registry %s: host %s: %w", repo.Host, ep.URL.Host, err)
		}
		h.memory = c.memory
		if ep.owns(repo.Host) && cred.meantFor(repo.Host, ep.URL.Host) || cred.names(ep.URL.Host) {
			h.auth.cred = cred
		}
		if ep.otherwise {
			h.twin = s.hosts[len(s.hosts)-1]
			h.twin.twin = h
		}
		s.hosts = append(s.hosts, h)
	}
	return s, nil
}

// Observe sets who is told which host gives manifests and what they wait for, before the
// first is asked for; nil is nobody. Blobs have observers of their own.
func (s *Session) Observe(o Observer) {
	s.observer = unobserved{}
	if o != nil {
		s.observer = o
	}
}

// Close gives up idle connections.
func (s *Session) Close() {
	for _, h := range s.hosts {
		h.client.CloseIdleConnections()
	}
}

// Credentials are what a pull may present.
type Credentials struct {
	Username, Password string
	ServerAddress      string // empty: the registry asked for
	IdentityToken      string
	RegistryToken      string
}

// String keeps credentials out of messages.
func (Credentials) String() string { return "[redacted]" }

// GoString keeps credentials out of %#v.
func (Credentials) GoString() string { return "[redacted]" }

func (c Credentials) server() string {
	s := c.ServerAddress
	if _, rest, ok := strings.Cut(s, "://"); ok {
		s = rest
	}
	s, _, _ = strings.Cut(s, "/")
	return strings.ToLower(s)
}

// meantFor tells whether the credentials belong to the registry.
func (c Credentials) meantFor(registry, endpoint string) bool {
	s := c.server()
	return s == "" || canonical(s) == canonical(registry) || s == endpoint
}

// names tells whether the credentials name this very host.
func (c Credentials) names(endpoint string) bool { return c.server() == endpoint }

// canonical joins the names under which Docker Hub's credentials are filed.
func canonical(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// host is an endpoint with its connections, tokens and what is known of its health.
type host struct {
	endpoint
	client *http.Client
	auth   authorizer
	cfg    Config
	memory *memory

	twin *host // the same host with the other scheme; nil as a rule

	mu      sync.Mutex
	down    error // it could not be reached a moment ago
	spoke   bool  // it answered something
	noRange bool  // it refuses ranges
}

// answered notes that the host speaks this scheme.
func (h *host) answered() {
	h.memory.well(h.address(), silent)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.spoke, h.down = true, nil
}

func (h *host) hasSpoken() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.spoke
}

func (h *host) failed(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = err
}

func (h *host) isDown() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down != nil
}

// ask says what is wanted of a host.
type ask struct {
	what   string        // in words
	need   capability    // the hosts that may be asked
	digest digest.Digest // of the answer, if it is known
}

// candidates lists the hosts that may be asked; those that could not be reached before
// in this session, or are known to be in trouble, come last, so that a dead mirror costs
// its time once. One that served something else under the same digest is out.
func (s *Session) candidates(ctx context.Context, q ask) []*host {
	var liars []*host
	s.mu.Lock()
	if v := s.doubts[q.digest]; v != nil {
		liars = slices.Clone(v.liars)
	}
	s.mu.Unlock()
	var up, down []*host
	for _, h := range s.hosts {
		if h.Capabilities&q.need == 0 || slices.Contains(liars, h) || h.twin != nil && h.twin.hasSpoken() && !h.hasSpoken() {
			continue
		}
		ill, probe := s.client.memory.ill(h.address())
		if probe {
			s.client.probe(ctx, h)
		}
		if ill || h.isDown() {
			down = append(down, h)
		} else {
			up = append(up, h)
		}
	}
	return append(up, down...)
}

// each tries the hosts in order until one answers. The error names every host.
func (s *Session) each(ctx context.Context, q ask, try func(*host) error) error {
	var errs hostErrors
	for _, h := range s.candidates(ctx, q) {
		if h.twin != nil && h.twin.hasSpoken() && !h.hasSpoken() {
			continue // the twin spoke since
		}
		err := try(h)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", q.what, errors.Join(context.Cause(ctx), err))
		}
		s.blame(ctx, h, q, err)
		errs = append(errs, hostError{h, err})
	}
	if len(errs) == 0 {
		return fmt.Errorf("%s: no configured host of %s may be asked: %w", q.what, s.repo.Host, errdef.ErrInvalid)
	}
	return errs.sum(q.what)
}

// blame remembers what a failure says about a host.
func (s *Session) blame(ctx context.Context, h *host, q ask, err error) {
	if errors.Is(err, errUnreachable) {
		h.failed(err)
	}
	if errors.Is(err, errSilent) && h.twin == nil { // the other form of one host costs nothing
		s.client.memory.troubled(h.address(), silent, 0)
	}
	if se, ok := errors.AsType[*StatusError](err); ok && se.RetryAfter > 0 {
		h.failed(err)
		s.client.memory.troubled(h.address(), slow, min(se.RetryAfter, maxPenalty))
	}
	if q.digest != "" && errors.Is(err, content.ErrMismatch) {
		s.lied(ctx, h, q.digest)
	}
}

// A Document is a manifest or index as it was served.
type Document struct {
	MediaType string
	Body      []byte
}

// readBounded reads a small document, and says what is wrong with a large one.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w: %w", errUnreachable, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("answer is larger than %d bytes: %w", limit, errdef.ErrInvalid)
	}
	return data, nil
}
