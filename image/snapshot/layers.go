package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Hold finds a layer by its diff ID, or by its chain if it depends on what is below,
// and keeps it from being deleted until Drop.
func (s *Store) Hold(diff, chain digest.Digest) (*Layer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.byKey[diff]
	if h == nil {
		h = s.byKey[keyOf(diff, chain)]
	}
	if h == nil {
		return nil, false
	}
	h.refs++
	return h.Layer, true
}

// Retain holds layers once more.
func (s *Store) Retain(ls []*Layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range ls {
		s.held[l.Name].refs++
	}
}

// Find gives the layer of a recorded name, and holds it. A damaged one is not found.
func (s *Store) Find(name string) (*Layer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.held[name]
	if h == nil || h.Damaged {
		return nil, false
	}
	h.refs++
	return h.Layer, true
}

// Drop gives up holds and deletes layers that nothing holds any more.
func (s *Store) Drop(ls []*Layer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, l := range ls {
		h := s.held[l.Name]
		if h.refs--; h.refs == 0 && s.ready {
			errs = append(errs, s.deleteLocked(h))
		}
	}
	return errors.Join(errs...)
}

// Collect deletes recorded layers that nothing holds: call it once after Open, when
// images have retaken their holds.
func (s *Store) Collect() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = true
	var errs []error
	for _, h := range s.held {
		if h.refs == 0 {
			errs = append(errs, s.deleteLocked(h))
		}
	}
	return errors.Join(errs...)
}

// deleteLocked removes the record before the files: a record says that all is there.
func (s *Store) deleteLocked(h *held) error {
	delete(s.held, h.Name)
	if s.byKey[h.key()] == h {
		delete(s.byKey, h.key())
	}
	s.idle.forget(h)
	err := h.lower.close()
	switch h.phase {
	case published:
		err = errors.Join(err, s.recent.Delete(h.Name))
	case durable:
		err = errors.Join(err, s.layers.Delete(h.Name))
	case fresh:
	}
	if err != nil {
		return err
	}
	return s.trashLayer(h.Name)
}

// Damaged marks a layer, so that Hold and Find do not find it and an image of it is
// pulled again, while snapshots that have it go on. It is no error when there is none.
func (s *Store) Damaged(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.damagedLocked(name)
}

// Whole tells whether none of layers that the caller holds was found damaged.
func (s *Store) Whole(ls []*Layer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(ls, func(l *Layer) bool { return s.held[l.Name].Damaged })
}

func (s *Store) damagedLocked(name string) error {
	h := s.held[name]
	if h == nil || h.Damaged {
		return nil
	}
	if s.byKey[h.key()] == h {
		delete(s.byKey, h.key())
	}
	l := *h.Layer
	l.Damaged = true
	h.Layer = &l
	if h.phase == fresh {
		return nil
	}
	// On tmpfs it lasts as long as a snapshot can; no later boot finds it.
	err := s.recent.Put(name, &l)
	if h.phase == durable {
		err = errors.Join(err, s.layers.Delete(name))
	}
	h.phase = published
	if err != nil {
		return fmt.Errorf("mark layer %s as damaged: %w", name, err)
	}
	return nil
}

// Refs tells how often a layer is held, and how many of these holds are those of
// snapshots.
func (s *Store) Refs(l *Layer) (all, snapshots int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[l.Name]; h != nil {
		all = h.refs
	}
	for _, sn := range s.snaps {
		if sn == nil {
			continue
		}
		for _, v := range sn.layers {
			if v.Name == l.Name {
				snapshots++
			}
		}
	}
	return all, snapshots
}

// Verify reads a layer and reports ErrDamaged, after marking it, when it is not what was
// stored. Of an EROFS layer that covers each bit: the tar has to hash to the diff ID and
// the index to its recorded sum. Of a directory there is nothing to compare with: it
// shows what the filesystem itself reports, that all can be read.
func (s *Store) Verify(ctx context.Context, l *Layer) error {
	err := s.formatOf(l).verify(ctx, l, true)
	if errors.Is(err, ErrDamaged) {
		err = errors.Join(err, s.Damaged(l.Name))
	}
	if err != nil {
		return fmt.Errorf("verify layer %s: %w", l.DiffID, err)
	}
	return nil
}

// OpenTar gives the layer's uncompressed tar, byte for byte as it came: an EROFS layer
// has it, of a directory it is errors.ErrUnsupported. The layer is to be held until the
// stream is closed.
func (s *Store) OpenTar(l *Layer) (io.ReadCloser, error) {
	if l.EROFS == nil {
		return nil, fmt.Errorf("layer %s is kept as a directory: %w", l.DiffID, errors.ErrUnsupported)
	}
	return openTar(s.layerDir(l.Name)+tarSuffix, l.EROFS.Tar)
}

// Totals sums up the layers.
func (s *Store) Totals() (bytes, inodes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held {
		bytes += h.Bytes
		inodes += h.Inodes
	}
	return bytes, inodes
}

// holding gives what holds a layer, which the caller knows to be held.
func (s *Store) holding(l *Layer) (*held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.held[l.Name]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("layer %s: %w", l.Name, errdef.ErrNotFound)
}
