package seccomp

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A Cache keeps compiled programs by the content of their profiles. Programs are
// shared between callers and must not be changed.
type Cache struct {
	limit int
	mu    sync.Mutex
	known map[[sha256.Size]byte]Program // guarded by mu
}

// NewCache makes a cache for at most limit programs. A node has few profiles; the
// limit is for one that makes them up.
func NewCache(limit int) *Cache {
	return &Cache{limit: limit, known: map[[sha256.Size]byte]Program{}}
}

// Compile is the function Compile, remembered.
func (c *Cache) Compile(p *specs.LinuxSeccomp) (Program, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return Program{}, fmt.Errorf("hash seccomp profile: %w", err)
	}
	key := sha256.Sum256(b)
	c.mu.Lock()
	prog, ok := c.known[key]
	c.mu.Unlock()
	if ok {
		return prog, nil
	}
	if prog, err = Compile(p); err != nil {
		return Program{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= c.limit {
		// All that is lost is time: less than a millisecond each.
		clear(c.known)
	}
	c.known[key] = prog
	return prog, nil
}
