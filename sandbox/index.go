package sandbox

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// index finds objects by id, and those that belong to one owner. Readers take the present
// table and never wait; writers replace it.
type index[T comparable] struct {
	kind  string
	owner func(T) ID // never changes for one object; nil: they have none
	mu    sync.Mutex // held by writers only
	now   atomic.Pointer[table[T]]
}

// table is never changed, nor are the lists in it.
type table[T comparable] struct {
	byID    map[ID]T
	byOwner map[ID][]T
}

func newIndex[T comparable](kind string, owner func(T) ID) *index[T] {
	x := &index[T]{kind: kind, owner: owner}
	x.now.Store(&table[T]{byID: map[ID]T{}, byOwner: map[ID][]T{}})
	return x
}

func (x *index[T]) all() map[ID]T { return x.now.Load().byID }

// of lists what belongs to owner, in order of arrival.
func (x *index[T]) of(owner ID) []T { return x.now.Load().byOwner[owner] }

// among goes through all whose id may begin with id and whose owner's may begin with
// owner: not through everything where one of them is the id of something.
func (x *index[T]) among(id, owner ID) iter.Seq[T] {
	t := x.now.Load()
	if one, ok := t.byID[id]; ok {
		return func(yield func(T) bool) { yield(one) }
	}
	if list, ok := t.byOwner[owner]; ok {
		return slices.Values(list)
	}
	return maps.Values(t.byID)
}

func (x *index[T]) put(id ID, one T) {
	x.change(func(t *table[T]) {
		old, replaces := t.byID[id]
		t.byID[id] = one
		if x.owner == nil {
			return
		}
		list := slices.Clone(t.byOwner[x.owner(one)])
		if replaces {
			list = slices.DeleteFunc(list, func(o T) bool { return o == old })
		}
		t.byOwner[x.owner(one)] = append(list, one)
	})
}

// fill puts many at once into an empty index.
func (x *index[T]) fill(objects map[ID]T) {
	x.change(func(t *table[T]) {
		t.byID = objects
		if x.owner == nil {
			return
		}
		for _, one := range objects {
			t.byOwner[x.owner(one)] = append(t.byOwner[x.owner(one)], one)
		}
	})
}

func (x *index[T]) drop(id ID) {
	x.change(func(t *table[T]) {
		old, ok := t.byID[id]
		if delete(t.byID, id); !ok || x.owner == nil {
			return
		}
		owner := x.owner(old)
		list := slices.DeleteFunc(slices.Clone(t.byOwner[owner]), func(o T) bool { return o == old })
		if t.byOwner[owner] = list; len(list) == 0 {
			delete(t.byOwner, owner)
		}
	})
}

func (x *index[T]) change(f func(*table[T])) {
	x.mu.Lock()
	defer x.mu.Unlock()
	t := x.now.Load()
	next := &table[T]{byID: maps.Clone(t.byID), byOwner: maps.Clone(t.byOwner)}
	f(next)
	x.now.Store(next)
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
