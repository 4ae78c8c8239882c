package image

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Prepare makes a writable snapshot of an image, or gives the one that the key has: a
// key outlives the daemon. A key of another image is ErrExists. On failure nothing is
// left.
func (s *Store) Prepare(ctx context.Context, key string, id ID, o PrepareOptions) (Rootfs, error) {
	return s.snapshot(ctx, id, snapshot.Request{Key: key, UID: o.UpperUID, GID: o.UpperGID})
}

// View makes a read-only snapshot, which keeps the image's layers until Release. One
// lower directory alone cannot be an overlay: bind it.
func (s *Store) View(ctx context.Context, key string, id ID) (Rootfs, error) {
	return s.snapshot(ctx, id, snapshot.Request{Key: key, View: true})
}

func (s *Store) snapshot(ctx context.Context, id ID, q snapshot.Request) (Rootfs, error) {
	// The lock keeps the layers from being dropped before the snapshot holds them.
	s.mu.Lock()
	e := s.images[id]
	if e != nil {
		s.snaps.Retain(e.layers)
		s.usedLocked(id)
	}
	s.mu.Unlock()
	if e == nil {
		// The image may be gone while a container of it goes on.
		if fs, err := s.Snapshot(q.Key); err == nil && s.snaps.ImageOf(q.Key) == string(id) {
			return fs, nil
		}
		return Rootfs{}, fmt.Errorf("image %.300q: %w", string(id), errdef.ErrNotFound)
	}
	q.Image, q.Layers = string(id), e.layers
	fs, err := s.snaps.Prepare(ctx, q)
	if e := s.snaps.Drop(e.layers); err == nil {
		err = e
	}
	if errors.Is(err, snapshot.ErrDamaged) {
		err = errors.Join(err, s.setAside(e)) // the kubelet finds it missing, and pulls it again
	}
	if err != nil {
		return Rootfs{}, fmt.Errorf("prepare snapshot: %w", err)
	}
	return Rootfs(fs), nil
}

// Snapshot gives the directories of a key, or ErrNotFound.
func (s *Store) Snapshot(key string) (Rootfs, error) {
	fs, err := s.snaps.Get(key)
	return Rootfs(fs), err
}

// Release gives a snapshot up and deletes its writable layer. It is no error when there
// is none. Its mounts are the caller's to undo first.
func (s *Store) Release(ctx context.Context, key string) error { return s.snaps.Release(ctx, key) }

// Keys lists the snapshots that exist, views included.
func (s *Store) Keys() []string { return s.snaps.Keys() }

// Usage gives the size of a snapshot's writable layer. The figure is at most some ten
// seconds old, more for large trees; only the first call for a key waits, half a second
// at most, and says ErrRetry when that was not enough.
func (s *Store) Usage(key string) (bytes, inodes uint64, err error) { return s.snaps.Usage(key) }

// LayerStore tells how new layers are kept, and why not as EROFS if that was to be seen.
func (s *Store) LayerStore() map[string]string {
	f, reason := s.snaps.Chosen()
	return map[string]string{"format": string(f), "notEROFS": reason}
}

// FsUsage gives what layers and what writable layers occupy.
func (s *Store) FsUsage() (layers, writable FsStat, err error) {
	layers.Path, writable.Path = s.opt.Root, s.WritablePath()
	layers.Bytes, layers.Inodes = s.snaps.Totals()
	writable.Bytes, writable.Inodes = s.snaps.WritableTotals()
	return layers, writable, nil
}

// WritablePath is the directory of all writable layers.
func (s *Store) WritablePath() string { return filepath.Join(s.opt.Root, "s") }
