package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Unpack applies a tar stream to a new layer, held once. The caller has verified the
// stream when r ends without an error. It is recorded by Publish.
func (s *Store) Unpack(ctx context.Context, diff, chain digest.Digest, r io.Reader) (*Layer, error) {
	return s.unpack(ctx, r, func(l *Layer) {
		l.DiffID = diff
		if l.open != nil {
			l.Chain = chain
		}
	})
}

// UnpackUnknown is Unpack of a stream whose diff ID is what it hashes to.
func (s *Store) UnpackUnknown(ctx context.Context, r io.Reader) (*Layer, error) {
	h := sha256.New()
	return s.unpack(ctx, io.TeeReader(r, h), func(l *Layer) { l.DiffID = digest.NewDigest(digest.SHA256, h) })
}

func (s *Store) unpack(ctx context.Context, r io.Reader, name func(*Layer)) (*Layer, error) {
	l := &Layer{Version: recordVersion, Name: s.newName()}
	defer s.done(l.Name)
	if err := s.formats[s.opt.Format].unpack(ctx, l, r); err != nil {
		return nil, errors.Join(err, s.trashLayer(l.Name))
	}
	name(l)
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &held{Layer: l, refs: 1, phase: fresh}
	s.held[l.Name] = h
	if l.open == nil || l.Chain != "" {
		s.offerLocked(h)
	}
	return l, nil
}

// offerLocked lets other pulls use a layer; whoever publishes first records it.
func (s *Store) offerLocked(h *held) {
	if s.byKey[h.key()] == nil {
		s.byKey[h.key()] = h
	}
}

// Publish finishes the layers of one image, bottom first, and records them: from now on
// they can be used and survive the end of the process, but no power cut before Sync.
func (s *Store) Publish(ctx context.Context, ls []*Layer) error {
	s.publish.Lock()
	defer s.publish.Unlock()
	var chain digest.Digest
	for i, l := range ls {
		if chain == "" {
			chain = l.DiffID
		} else {
			chain = digest.FromString(string(chain) + " " + string(l.DiffID))
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("publish layers: %w", err)
		}
		if err := s.finish(l, ls[:i], chain); err != nil {
			return err
		}
	}
	for _, l := range ls {
		if err := s.publishOne(l); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) publishOne(l *Layer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.held[l.Name] // the caller holds it
	if h.phase != fresh {
		return nil
	}
	if err := s.recent.Put(h.Name, h.Layer); err != nil {
		return err
	}
	h.phase = published
	return nil
}

// finish completes a layer with what it takes from those below, which are all there by
// now: no layer waits for another while it is unpacked.
func (s *Store) finish(l *Layer, below []*Layer, chain digest.Digest) error {
	if l.broken != nil || l.open == nil {
		return l.broken
	}
	var visible []*Layer
	for _, b := range slices.Backward(below) {
		if l.OpaqueRoot {
			break
		}
		visible = append(visible, b)
		if b.OpaqueRoot {
			break
		}
	}
	dirs, err := s.acquire(visible)
	var res finished
	if err == nil {
		res, err = s.formatOf(l).finish(l, dirs)
		err = errors.Join(err, s.giveBack(visible))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.held[l.Name]
	if err != nil {
		l.broken = fmt.Errorf("settle layer %s: %w", l.DiffID, err)
		// Whoever holds it fails, whoever comes makes another.
		if h != nil && s.byKey[l.key()] == h {
			delete(s.byKey, l.key())
		}
		return l.broken
	}
	l.open, l.Bytes, l.EROFS = nil, res.bytes, res.files
	if l.Chain == "" {
		l.Chain = chain
	}
	s.offerLocked(h)
	return nil
}

// Sync makes published layers durable: their files are written out before their records
// say so. It does not keep them: a layer that is deleted meanwhile is gone at once. When
// the disk did not take them they are marked, and the error is ErrDamaged: to try again
// would succeed, without the data.
func (s *Store) Sync(ctx context.Context, ls []*Layer) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	todo := s.unsynced(ls)
	by := map[Format][]*Layer{}
	for _, l := range todo {
		by[l.Format()] = append(by[l.Format()], l)
	}
	var err error
	for f, ls := range by {
		e := s.formats[f].sync(ls)
		err = errors.Join(err, e)
		for _, l := range ls {
			if errors.Is(e, ErrDamaged) {
				err = errors.Join(err, s.Damaged(l.Name))
			}
		}
	}
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("sync layers: %w", ctx.Err())
	}
	for _, l := range todo {
		if err == nil {
			err = s.recordDurable(l)
		}
	}
	return err
}

// unsynced gives those layers that have no durable record yet, and are to get one.
func (s *Store) unsynced(ls []*Layer) (todo []*Layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range ls {
		h := s.held[l.Name]
		if h != nil && h.phase == published && !h.Damaged && !slices.Contains(todo, h.Layer) {
			todo = append(todo, h.Layer)
		}
	}
	return todo
}

// recordDurable writes the record, and takes it back if the layer has gone meanwhile.
// Were the process to end in between, the record would name files that are not there,
// which Open notices.
func (s *Store) recordDurable(l *Layer) error {
	if len(s.unsynced([]*Layer{l})) == 0 {
		return nil
	}
	if err := s.layers.Put(l.Name, l); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.held[l.Name]
	if h == nil || h.Damaged {
		return s.layers.Delete(l.Name)
	}
	h.phase = durable
	return s.recent.Delete(l.Name)
}
