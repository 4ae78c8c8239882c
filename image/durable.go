package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/image/snapshot"
)

// syncRetry is how long after a failure, such as a full disk, images are synced again.
const syncRetry = 30 * time.Second

// syncer makes images durable behind the callers' backs: a pull returns when its content
// is verified and recorded on tmpfs, where it survives the daemon. After a power cut
// before the syncer came to it, an image is not there, and is pulled again.
type syncer struct {
	wake  chan struct{}
	stop  chan struct{}
	once  sync.Once  // of closing stop
	one   sync.Mutex // held while an image is synced
	done  sync.WaitGroup
	queue []ID // images whose record on tmpfs is newer than that on disk, oldest first; under Store.mu
}

func (y *syncer) init() {
	y.wake, y.stop = make(chan struct{}, 1), make(chan struct{})
}

// putLocked records an image where it survives the daemon, and asks for the rest.
func (s *Store) putLocked(r record) error {
	if err := s.recent.Put(recordName(r.ID), r); err != nil {
		return fmt.Errorf("record image %s: %w", r.ID, err)
	}
	s.syncLater(r.ID)
	return nil
}

func (s *Store) syncLater(id ID) {
	if !slices.Contains(s.sync.queue, id) {
		s.sync.queue = append(s.sync.queue, id)
	}
	select {
	case s.sync.wake <- struct{}{}:
	default:
	}
}

// runSync ends when all is durable after stop was closed.
func (s *Store) runSync(ctx context.Context) {
	synced := false
	for {
		switch more, err := s.syncNext(ctx); {
		case err != nil:
			klog.FromContext(ctx).Error(err, "Image would not survive a power cut; will try again", "after", syncRetry)
			retry := time.NewTimer(syncRetry)
			select {
			case <-s.sync.stop:
				retry.Stop()
				return // the next start tries again
			case <-retry.C:
			}
		case more:
			synced = true
		default:
			if synced && s.opt.Settled != nil {
				s.opt.Settled()
			}
			synced = false
			select {
			case <-s.sync.wake:
			case <-s.sync.stop:
				if s.Flush(ctx) == nil {
					return
				}
			}
		}
	}
}

// Flush makes durable what is not yet, and returns when it is.
func (s *Store) Flush(ctx context.Context) error {
	for {
		if more, err := s.syncNext(ctx); !more || err != nil {
			return err
		}
	}
}

// syncNext syncs the first image in the queue. That there is none means that all are
// done, since only one is in work at a time.
func (s *Store) syncNext(ctx context.Context) (more bool, err error) {
	s.sync.one.Lock()
	defer s.sync.one.Unlock()
	s.mu.Lock()
	if len(s.sync.queue) == 0 {
		s.mu.Unlock()
		return false, nil
	}
	id := s.sync.queue[0]
	s.sync.queue = s.sync.queue[1:]
	s.mu.Unlock()
	if err := s.syncImage(ctx, id); err != nil {
		s.mu.Lock()
		s.syncLater(id)
		s.mu.Unlock()
		return true, fmt.Errorf("sync image %s: %w", id, err)
	}
	return true, nil
}

// syncImage makes the layers durable, then the record that says so. The lock is not held
// meanwhile: the image may be removed or get another name at any time.
func (s *Store) syncImage(ctx context.Context, id ID) error {
	s.mu.Lock()
	e := s.images[id]
	if e == nil {
		s.mu.Unlock()
		return nil
	}
	rec, layers := e.rec, slices.Clone(e.layers)
	s.mu.Unlock()
	// The layers are not held: a removal frees at once what it can.
	if err := s.snaps.Sync(ctx, layers); errors.Is(err, snapshot.ErrDamaged) {
		return errors.Join(err, s.setAside(e)) // the disk did not take it, and would not say so again
	} else if err != nil {
		return err
	}
	name := recordName(id)
	if err := s.records.Put(name, rec); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.images[id] != e: // removed meanwhile, and perhaps pulled again: what was recorded has gone
		return s.records.Delete(name)
	case slices.Contains(s.sync.queue, id):
		return nil // it has changed, and is in the queue
	}
	return s.recent.Delete(name)
}

// Verify reads all that is stored of an image and compares it with its digests, as far as
// its layers' format allows. A damaged image is no longer there: the next pull fetches
// what is damaged, and gives it the same ID. Containers of it go on.
func (s *Store) Verify(ctx context.Context, ref string) (err error) {
	s.mu.Lock()
	img, err := s.Resolve(ref)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	e := s.images[img.ID]
	layers := slices.Clone(e.layers)
	s.snaps.Retain(layers)
	s.mu.Unlock()
	defer func() { err = errors.Join(err, s.snaps.Drop(layers)) }()
	var damage []error
	for _, l := range layers {
		err := s.snaps.Verify(ctx, l)
		if err != nil && !errors.Is(err, snapshot.ErrDamaged) {
			return fmt.Errorf("verify image %s: %w", img.ID, err)
		}
		damage = append(damage, err)
	}
	err = errors.Join(damage...)
	if err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("verify image %s: %w", img.ID, err), s.setAside(e))
}

// setAside takes a damaged image from the list and keeps what of it is whole. Other images
// of its damaged layers go with it: nobody would be told so before a container fails.
func (s *Store) setAside(e *entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for id, other := range s.images {
		if other != e && s.snaps.Whole(other.layers) {
			continue
		}
		if err := s.unrecord(id); err != nil {
			errs = append(errs, err)
			continue
		}
		s.damaged[id] = other
	}
	return errors.Join(errs...)
}
