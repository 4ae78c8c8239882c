package sandbox

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// index finds objects by id. Readers take the present map and never wait; writers
// replace it.
type index[T any] struct {
	kind string
	mu   sync.Mutex // held by writers only
	now  atomic.Pointer[map[ID]T]
}

func newIndex[T any](kind string) *index[T] {
	x := &index[T]{kind: kind}
	x.now.Store(&map[ID]T{})
	return x
}

func (x *index[T]) all() map[ID]T { return *x.now.Load() }

func (x *index[T]) put(id ID, t T) {
	x.change(func(m map[ID]T) { m[id] = t })
}

func (x *index[T]) drop(id ID) {
	x.change(func(m map[ID]T) { delete(m, id) })
}

func (x *index[T]) change(f func(map[ID]T)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := maps.Clone(*x.now.Load())
	f(m)
	x.now.Store(&m)
}

// get finds by the full id or, as crictl users expect, by a unique prefix of it.
func (x *index[T]) get(id ID) (T, error) {
	var zero T
	m := x.all()
	if t, ok := m[id]; ok {
		return t, nil
	}
	if id == "" {
		return zero, fmt.Errorf("%s id is empty: %w", x.kind, errdef.ErrInvalid)
	}
	found, n := zero, 0
	for full, t := range m {
		if strings.HasPrefix(string(full), string(id)) {
			found, n = t, n+1
		}
	}
	switch n {
	case 0:
		return zero, fmt.Errorf("%s %q: %w", x.kind, id, errdef.ErrNotFound)
	case 1:
		return found, nil
	}
	return zero, fmt.Errorf("%s id %q is the beginning of %d ids: %w", x.kind, id, n, errdef.ErrInvalid)
}

// matches tells whether id is full or begins with want; an empty want matches all.
func (id ID) matches(want ID) bool { return strings.HasPrefix(string(id), string(want)) }

// hasLabels tells whether all of want are among labels.
func hasLabels(labels, want map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
