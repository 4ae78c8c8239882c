package snapshot

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
)

// lower is a layer's directory while snapshots use it.
type lower struct {
	mu      sync.Mutex
	users   int
	file    *os.File // of a detached mount, if there is one
	checked bool     // it has been mounted before, in this life
}

func (w *lower) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closeLocked()
}

func (w *lower) closeLocked() error {
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	if err != nil {
		return fmt.Errorf("unmount layer: %w", err)
	}
	return nil
}

// acquire gives the directories of layers that the caller holds, until giveBack. That of
// a mount is a name of its descriptor in /proc: it works for each thread of this
// process, also in other mount namespaces, and for nobody else.
func (s *Store) acquire(ls []*Layer) ([]string, error) {
	dirs := make([]string, 0, len(ls))
	for i, l := range ls {
		dir, err := s.acquireOne(l)
		if err != nil {
			return nil, errors.Join(err, s.giveBack(ls[:i]))
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

func (s *Store) acquireOne(l *Layer) (string, error) {
	h, err := s.holding(l)
	if err != nil {
		return "", err
	}
	dir, err := h.lower.acquire(s.layerDir(l.Name), func(check bool) (*os.File, error) { return s.formatOf(l).mount(l, check) })
	if errors.Is(err, ErrDamaged) {
		err = errors.Join(err, s.Damaged(l.Name))
	}
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", l.DiffID, err)
	}
	return dir, nil
}

func (w *lower) acquire(dir string, mount func(check bool) (*os.File, error)) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		var err error
		if w.file, err = mount(!w.checked); err != nil {
			return "", err
		}
		w.checked = true
	}
	w.users++
	if w.file == nil {
		return dir, nil
	}
	return fmt.Sprintf("/proc/self/fd/%d", w.file.Fd()), nil
}

// giveBack undoes acquire.
func (s *Store) giveBack(ls []*Layer) error {
	var errs []error
	for _, l := range ls {
		h, err := s.holding(l)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !h.lower.giveBack() {
			continue
		}
		if oldest := s.idle.add(h); oldest != nil {
			errs = append(errs, oldest.lower.closeIdle())
		}
	}
	return errors.Join(errs...)
}

// giveBack tells whether the mount has become idle.
func (w *lower) giveBack() (idle bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.users--
	return w.users == 0 && w.file != nil
}

func (w *lower) closeIdle() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.users > 0 {
		return nil
	}
	return w.closeLocked()
}

// idleMounts is how many mounts of unused layers stay. With its mount, the kernel would
// drop what it has read of a layer, and a container that is started again and again
// would read it again and again. Deleting a layer ends its mount in any case.
const idleMounts = 64

// idle are mounts that nobody uses, those in use longest ago first. One that has found a
// user may still be in it.
type idle struct {
	mu   sync.Mutex
	list []*held
}

// add gives what has to go for it.
func (i *idle) add(h *held) *held {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.list = append(slices.DeleteFunc(i.list, func(o *held) bool { return o == h }), h)
	if len(i.list) <= idleMounts {
		return nil
	}
	oldest := i.list[0]
	i.list = slices.Delete(i.list, 0, 1)
	return oldest
}

func (i *idle) forget(h *held) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.list = slices.DeleteFunc(i.list, func(o *held) bool { return o == h })
}
