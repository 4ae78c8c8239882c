package registry

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"
)

const (
	minPenalty = time.Second
	maxPenalty = 5 * time.Minute
	// probeTimeout bounds the look whether a host is back.
	probeTimeout = 30 * time.Second
	// forgetAfter bounds what is remembered of hosts that nobody asks for any more.
	forgetAfter = time.Hour
)

// memory is what a client knows about hosts from one pull to the next. A host in trouble
// is asked after all others, so that one that is dead costs its time once.
type memory struct {
	mu    sync.Mutex
	hosts map[string]*trouble // by address
	wrong map[string]uint64   // by host: documents and blobs that were not what was asked for
}

// ailment is what a host suffers from.
type ailment int

const (
	silent ailment = iota + 1 // gives no answer: a probe in the background tells when it is back
	slow                      // breaks transfers off: only a whole transfer, or time, shows that it is well
)

type trouble struct {
	ailment
	penalty time.Duration // doubled each time
	until   time.Time
	probing bool
}

// troubled notes a failure. Failures of one outage, at several connections at once, count
// as one; least is the shortest penalty.
func (m *memory) troubled(address string, a ailment, least time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(m.hosts, func(_ string, t *trouble) bool { return now.Sub(t.until) > forgetAfter })
	t := m.hosts[address]
	switch {
	case t == nil:
		t = &trouble{penalty: minPenalty}
		m.hosts[address] = t
	case now.Before(t.until) && t.ailment == a && !t.probing:
		return
	default:
		t.penalty *= 2
	}
	t.ailment, t.probing = a, false
	t.penalty = min(max(t.penalty, least), maxPenalty)
	t.until = now.Add(t.penalty)
}

// well notes a success; a host that is slow does not get well by answering.
func (m *memory) well(address string, of ailment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.hosts[address]; t != nil && t.ailment == of {
		delete(m.hosts, address)
	}
}

// ill tells whether a host is better asked last, and whether to look if it is back.
func (m *memory) ill(address string) (ill, probe bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.hosts[address]
	switch {
	case t == nil:
		return false, false
	case time.Now().Before(t.until):
		return true, false
	case t.ailment == slow:
		return false, false
	}
	probe = !t.probing
	t.probing = true
	return true, probe
}

// probe looks in the background whether a host answers again.
func (c *Client) probe(ctx context.Context, h *host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.probing[h.address()] != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
	c.probing[h.address()] = cancel
	c.probes.Go(func() {
		err := h.probe(ctx)
		if err == nil {
			c.memory.well(h.address(), silent)
		} else {
			c.memory.troubled(h.address(), silent, 0)
		}
		cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.probing, h.address())
	})
}

// probe is content with any answer.
func (h *host) probe(ctx context.Context) error {
	defer h.client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.URL.String()+"/", nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return h.transportError(err)
	}
	closeBody(resp)
	return nil
}

// Close ends probes, waits for them, and closes the partial blobs. Sessions must be
// closed before.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	for _, cancel := range c.probing {
		cancel()
	}
	c.mu.Unlock()
	c.probes.Wait()
	c.cfg.Partials.Close()
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

// doubt is what a session thinks of those who served a digest.
type doubt struct {
	liars    []*host // served something else under it
	mixed    bool    // once, several hosts did so together
	forgiven bool    // all were given another chance
}

// lied notes that a host served something else than what was asked for; this session
// does not ask it for that digest again.
func (s *Session) lied(ctx context.Context, h *host, d digest.Digest) {
	// An operator may have to act: a proxy or a mirror damages content.
	klog.FromContext(ctx).Info("Host served content that does not match its digest", "host", h.URL.Host, "registry", s.repo.Host,
		"repository", s.repo.Path, "digest", d)
	m := s.client.memory
	m.mu.Lock()
	m.wrong[h.URL.Host]++
	m.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.doubtLocked(d)
	v.liars = append(v.liars, h)
}

func (s *Session) doubtLocked(d digest.Digest) *doubt {
	if s.doubts == nil {
		s.doubts = map[digest.Digest]*doubt{}
	}
	if s.doubts[d] == nil {
		s.doubts[d] = &doubt{}
	}
	return s.doubts[d]
}

// mismatch judges those who served a blob that is not what its digest says, and whether
// to ask again. Damage on the way happens once: when all have failed, each gets one more
// chance.
func (s *Session) mismatch(ctx context.Context, q ask, by []*host) (who string, more bool) {
	for i, h := range by {
		if i > 0 {
			who += " with "
		}
		who += h.URL.Host
	}
	s.mu.Lock()
	v := s.doubtLocked(q.digest)
	first := len(by) > 1 && !v.mixed
	v.mixed = v.mixed || first
	s.mu.Unlock()
	if first {
		return who, true
	}
	for _, h := range by {
		s.lied(ctx, h, q.digest)
	}
	if len(s.candidates(ctx, q)) > 0 {
		return who, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	more = !v.forgiven
	v.forgiven, v.liars = true, nil
	return who, more
}
