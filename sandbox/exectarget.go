package sandbox

import (
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
)

// targetsKept is how many containers' execTargets are kept, some 20 KiB each.
const targetsKept = 32

// execTarget is what the execution of a command needs to know of its container.
type execTarget struct {
	spec  *specs.Spec
	group *cgroup.Group // holds no descriptors
}

// execTargets keeps what was found out about the containers in which commands were executed
// last, such as those with probes. What it holds is never wrong: a container's spec is written
// once, its cgroup stays as it is while it runs, and its id is not used again. It is shared
// and must not be changed.
type execTargets struct {
	mu   sync.Mutex
	kept []keptTarget // the last used first
}

type keptTarget struct {
	id ID
	*execTarget
}

// get gives a container's target, found with find unless it is known.
func (c *execTargets) get(id ID, find func() (*execTarget, error)) (*execTarget, error) {
	if t := c.known(id); t != nil {
		return t, nil
	}
	t, err := find()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.kept) < targetsKept {
		c.kept = append(c.kept, keptTarget{})
	}
	copy(c.kept[1:], c.kept)
	c.kept[0] = keptTarget{id, t}
	return t, nil
}

func (c *execTargets) known(id ID) *execTarget {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, k := range c.kept {
		if k.id == id {
			copy(c.kept[1:i+1], c.kept[:i])
			c.kept[0] = k
			return k.execTarget
		}
	}
	return nil
}

// execTarget finds out about a running container.
func (s *Service) execTarget(r *containerRecord) (*execTarget, error) {
	rs, err := s.readSpec(r.ID)
	if err != nil {
		return nil, err
	}
	group, err := s.Cgroups.Open(cgroup.Path(r.Cgroup))
	if err != nil {
		return nil, err
	}
	return &execTarget{spec: rs, group: group}, nil
}
