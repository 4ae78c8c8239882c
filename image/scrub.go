package image

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// scrubber reads an image once per boot, after its first use, and compares it with its
// digests: disks lose bits, and some lie about what they have written before a power cut.
// It takes the disk only when nobody else wants it; the processor, at a second per GB, as
// all do: a thread that is starved while it holds the lock would stop everybody. What has
// been pulled in this boot was compared while it came.
type scrubber struct {
	wake   chan struct{}
	done   sync.WaitGroup
	cancel context.CancelFunc

	unseen map[ID]bool // not compared in this boot; under Store.mu, as the queue
	queue  []ID
}

// seen is a record on tmpfs that an image was compared with its digests in this boot.
type seen struct {
	Version int `json:"version"`
}

// startScrub begins with the images that are known now.
func (s *Store) startScrub(ctx context.Context) {
	b := &s.scrub
	b.wake, b.unseen = make(chan struct{}, 1), map[ID]bool{}
	for id := range s.images {
		if err := s.seen.Get(recordName(id), &seen{}); err != nil {
			b.unseen[id] = true
		}
	}
	ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	b.done.Go(func() { s.runScrub(ctx) })
}

// usedLocked notes that an image is in use, so that it is worth reading.
func (s *Store) usedLocked(id ID) {
	if !s.scrub.unseen[id] {
		return
	}
	delete(s.scrub.unseen, id)
	s.scrub.queue = append(s.scrub.queue, id)
	select {
	case s.scrub.wake <- struct{}{}:
	default:
	}
}

func (s *Store) runScrub(ctx context.Context) {
	// The thread is given back as it was. Were it to end with the goroutine, the kernel
	// would take that for the death of the parent of what others started on it (Pdeathsig).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := diskPriority(classIdle); err != nil {
		klog.FromContext(ctx).V(2).Info("Images are read at normal priority", "cause", err)
	}
	defer diskPriority(classNone) //nolint:errcheck // it has been set before
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.scrub.wake:
		}
		for id, ok := s.nextToRead(); ok; id, ok = s.nextToRead() {
			err := s.Verify(ctx, string(id))
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				err = s.seen.Put(recordName(id), seen{recordVersion})
			}
			if err != nil && !errors.Is(err, errdef.ErrNotFound) || errors.Is(err, snapshot.ErrDamaged) {
				klog.FromContext(ctx).Error(err, "Image is not what was stored; a damaged one is pulled again at its next use", "image", id)
			}
		}
	}
}

// nextToRead takes an image from the queue.
func (s *Store) nextToRead() (ID, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.scrub.queue) == 0 {
		return "", false
	}
	id := s.scrub.queue[0]
	s.scrub.queue = s.scrub.queue[1:]
	return id, true
}

// Classes of include/uapi/linux/ioprio.h: below all others, and as the processor's.
const (
	classIdle = 3 << 13
	classNone = 0
)

// diskPriority sets that of this thread.
func diskPriority(class uintptr) error {
	const whoProcess = 1 // IOPRIO_WHO_PROCESS: 0 is this thread
	if _, _, err := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, class); err != 0 {
		return err
	}
	return nil
}
