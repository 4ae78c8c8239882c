package content

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/file"
)

// maxRecord bounds a record that is read back: a config of 4 MiB and its names.
const maxRecord = 16 << 20

// Records is a directory of JSON documents, one file per object.
type Records struct {
	dir     string
	durable bool
	next    atomic.Uint64 // for names of temporary files
}

// OpenRecords opens or makes dir, and removes files of interrupted writes. Durable
// records survive a power cut once Put returned; others only the end of the process.
func OpenRecords(dir string, durable bool) (*Records, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make record directory: %w", err)
	}
	old, err := filepath.Glob(filepath.Join(dir, ".*.tmp"))
	if err != nil {
		return nil, fmt.Errorf("list record directory: %w", err)
	}
	for _, f := range old {
		if err := file.Remove(f); err != nil {
			return nil, fmt.Errorf("remove interrupted record: %w", err)
		}
	}
	return &Records{dir: dir, durable: durable}, nil
}

func (r *Records) path(name string) string { return filepath.Join(r.dir, name+".json") }

// Names lists the records.
func (r *Records) Names() ([]string, error) {
	es, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	var names []string
	for _, e := range es {
		if n, ok := strings.CutSuffix(e.Name(), ".json"); ok && e.Type().IsRegular() {
			names = append(names, n)
		}
	}
	return names, nil
}

// Get reads one record into v.
func (r *Records) Get(name string, v any) error {
	fi, err := os.Stat(r.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record %s: %w", name, errdef.ErrNotFound)
	} else if err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	if fi.Size() > maxRecord {
		return fmt.Errorf("record %s: %d bytes are too many", name, fi.Size())
	}
	data, err := os.ReadFile(r.path(name))
	if err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode record %s: %w", name, err)
	}
	return nil
}

// Put replaces a record: others see the old or the new one, whole.
func (r *Records) Put(name string, v any) (err error) {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", name, err)
	}
	if !r.durable {
		if err := r.replace(name, data); err != nil {
			return fmt.Errorf("write record %s: %w", name, err)
		}
		return nil
	}
	f, err := os.CreateTemp(r.dir, ".*.tmp")
	if err != nil {
		return fmt.Errorf("write record %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write record %s: %w", name, err), ignoreGone(os.Remove(f.Name())))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), r.path(name)); err != nil {
		return err
	}
	return r.Sync()
}

// replace is Put for records that the disk need not have. Two may do so at once.
func (r *Records) replace(name string, data []byte) error {
	fresh := filepath.Join(r.dir, "."+strconv.FormatUint(r.next.Add(1), 10)+".tmp")
	err := file.Write(fresh, data, 0o600)
	if err == nil {
		err = unix.Rename(fresh, r.path(name))
	}
	if err != nil {
		return errors.Join(err, file.Remove(fresh))
	}
	return nil
}

// Delete removes a record; it is no error when there is none. It waits for no disk, and
// needs no room on it. Journalling filesystems keep the order of removals: where what the
// record stood for is removed after it, a power cut may bring back both, never the record
// alone.
func (r *Records) Delete(name string) error {
	if err := file.Remove(r.path(name)); err != nil {
		return fmt.Errorf("remove record %s: %w", name, err)
	}
	return nil
}

// Sync makes durable which records there are.
func (r *Records) Sync() error {
	if !r.durable {
		return nil
	}
	d, err := os.Open(r.dir)
	if err != nil {
		return fmt.Errorf("sync records: %w", err)
	}
	err = d.Sync()
	if e := d.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("sync records: %w", err)
	}
	return nil
}

// Each decodes every record with load. A record that cannot be read costs that object
// only: it is reported and removed.
func Each[T any](ctx context.Context, r *Records, load func(name string, v *T) error) error {
	names, err := r.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		v := new(T)
		err := r.Get(n, v)
		if err == nil {
			err = load(n, v)
		}
		if err == nil {
			continue
		}
		klog.FromContext(ctx).Error(err, "Record dropped", "directory", r.dir, "record", n)
		if err := r.Delete(n); err != nil {
			return err
		}
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
