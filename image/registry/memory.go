package registry

import (
	"context"
	"errors"
	"maps"
	"net"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"
)

// deadFor is how long a host that could not be dialled is asked last: a node that pulls
// many images waits once per mirror that is down, and notices soon when it is back.
const deadFor = 30 * time.Second

// memory is what a client knows about hosts from one pull to the next.
type memory struct {
	mu    sync.Mutex
	dead  map[string]time.Time // by address: when it could not be dialled
	wrong map[string]uint64    // by host: documents and blobs that were not what was asked for
}

func (m *memory) died(address string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.dead, func(_ string, at time.Time) bool { return time.Since(at) >= deadFor })
	m.dead[address] = time.Now()
}

func (m *memory) lives(address string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.dead, address)
}

func (m *memory) isDead(address string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, ok := m.dead[address]
	return ok && time.Since(at) < deadFor
}

// Mismatches gives, by host, how often one served content that was not what its digest
// says.
func (c *Client) Mismatches() map[string]uint64 {
	c.memory.mu.Lock()
	defer c.memory.mu.Unlock()
	return maps.Clone(c.memory.wrong)
}

// address tells hosts apart, including the two forms of one without TLS.
func (h *host) address() string { return h.URL.Scheme + "://" + h.URL.Host }

// undialled tells whether no connection came about, as opposed to one that broke.
func undialled(err error) bool {
	oe, ok := errors.AsType[*net.OpError](err)
	return ok && oe.Op == "dial"
}

// lied notes that a host served something else than what was asked for; this session
// does not ask it for that digest again.
func (s *Session) lied(ctx context.Context, h *host, d digest.Digest) {
	// An operator may have to act: a proxy or a mirror damages content.
	klog.FromContext(ctx).Info("Host served content that does not match its digest", "host", h.URL.Host, "registry", s.repo.Host,
		"repository", s.repo.Path, "digest", d)
	s.memory.mu.Lock()
	s.memory.wrong[h.URL.Host]++
	s.memory.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.liars == nil {
		s.liars = map[digest.Digest][]*host{}
	}
	s.liars[d] = append(s.liars[d], h)
}
