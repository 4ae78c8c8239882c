package stream

import (
	"crypto/rand"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	tokenLife = time.Minute
	maxTokens = 1000 // unused ones; whoever may call CRI may do anything, this bounds mistakes
)

// tokens are requests that wait for their connection. The zero value is empty.
type tokens struct {
	mu      sync.Mutex // guards all below
	pending map[string]pending
}

type pending struct {
	req     Request
	expires time.Time
}

// add makes a token of 128 random bits for r.
func (t *tokens) add(r Request) (string, error) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.pending, func(_ string, p pending) bool { return !now.Before(p.expires) })
	if len(t.pending) >= maxTokens {
		return "", fmt.Errorf("%d sessions wait for their client: %w", maxTokens, errdef.ErrExhausted)
	}
	if t.pending == nil {
		t.pending = map[string]pending{}
	}
	token := rand.Text()
	t.pending[token] = pending{r, now.Add(tokenLife)}
	return token, nil
}

// take uses up a token. A token of another kind of session is left alone.
func (t *tokens) take(k Kind, token string) (Request, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.pending[token]
	if !ok || p.req.Kind != k {
		return Request{}, false
	}
	delete(t.pending, token)
	return p.req, time.Now().Before(p.expires)
}
