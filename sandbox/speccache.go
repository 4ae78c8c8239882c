package sandbox

import (
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// specsKept is how many containers' runtime-specs are kept decoded, some 20 KiB each.
const specsKept = 32

// specCache keeps the runtime-specs of the containers in which commands were executed last,
// such as those with probes. What it holds is never wrong: a container's spec is written
// once, and its id is not used again. Specs are shared and must not be changed.
type specCache struct {
	mu   sync.Mutex
	kept []keptSpec // the last used first
}

type keptSpec struct {
	id   ID
	spec *specs.Spec
}

// get gives a container's spec, read with read unless it is known.
func (c *specCache) get(id ID, read func(ID) (*specs.Spec, error)) (*specs.Spec, error) {
	if s := c.find(id); s != nil {
		return s, nil
	}
	s, err := read(id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.kept) < specsKept {
		c.kept = append(c.kept, keptSpec{})
	}
	copy(c.kept[1:], c.kept)
	c.kept[0] = keptSpec{id, s}
	return s, nil
}

func (c *specCache) find(id ID) *specs.Spec {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, k := range c.kept {
		if k.id == id {
			copy(c.kept[1:i+1], c.kept[:i])
			c.kept[0] = k
			return k.spec
		}
	}
	return nil
}
