package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// trash deletes trees off the caller's path: a rename is all that the caller waits for.
type trash struct {
	dir string
	// settle makes durable that what is in the trash has no record any more. Some
	// filesystems (ext4 with data=writeback) give the blocks of a removed file to others
	// before the removal is committed: a power cut would bring back the record, and the file
	// with other content.
	settle func() error
	wake   chan struct{}
	stop   chan struct{}
	once   sync.Once // of stop
	done   sync.WaitGroup

	mu   sync.Mutex
	next int
}

func newTrash(dir string, settle func() error) *trash {
	return &trash{dir: dir, settle: settle, wake: make(chan struct{}, 1), stop: make(chan struct{})}
}

// writablePrefix begins the names of writable layers in the trash: see move.
const writablePrefix = "s-"

// put moves files and trees out of sight; it is no error when there are none. A disk that
// is full to the last block may have no room for a new name: then it is deleted here.
func (t *trash) put(paths ...string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, p := range paths {
		errs = append(errs, t.move(p))
	}
	// Not before all are there: deleting the first would hold up the others.
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return errors.Join(errs...)
}

func (t *trash) move(path string) error {
	for {
		t.next++
		err := os.Rename(path, filepath.Join(t.dir, fmt.Sprintf("%s-%s-%d", filepath.Base(filepath.Dir(path)), filepath.Base(path), t.next)))
		switch {
		case errors.Is(err, fs.ErrExist): // from before a restart
			continue
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
			err = os.RemoveAll(path)
		}
		if err != nil {
			return fmt.Errorf("set aside what is no longer used: %w", err)
		}
		return nil
	}
}

func (t *trash) start(ctx context.Context) {
	t.done.Go(func() {
		for {
			t.empty(ctx)
			select {
			case <-t.stop:
				return
			case <-t.wake:
			}
		}
	})
}

func (t *trash) empty(ctx context.Context) {
	es, err := os.ReadDir(t.dir)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot list what to delete", "directory", t.dir)
		return
	}
	// Writable layers have no record that survives a power cut: containers come and go
	// without waiting for the disk.
	if slices.ContainsFunc(es, func(e fs.DirEntry) bool { return !strings.HasPrefix(e.Name(), writablePrefix) }) {
		if err := t.settle(); err != nil { // space is needed now, a power cut is rare
			klog.FromContext(ctx).Error(err, "Cannot sync records before what they named is deleted")
		}
	}
	for _, e := range es {
		select {
		case <-t.stop: // the next start goes on
			return
		default:
		}
		if err := os.RemoveAll(filepath.Join(t.dir, e.Name())); err != nil {
			klog.FromContext(ctx).Error(err, "Cannot delete what is no longer used", "path", filepath.Join(t.dir, e.Name()))
		}
	}
}

func (t *trash) close() {
	t.once.Do(func() { close(t.stop) })
	t.done.Wait()
}
