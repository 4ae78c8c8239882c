package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/layer"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// maxKey leaves room for the record's extension in a file name.
const maxKey = 200

// Rootfs names the directories of a snapshot. They may be names of descriptors of this
// process (/proc/self/fd/N), so they are good for this process and until Release.
type Rootfs struct {
	Lower       []string // top first
	Upper, Work string   // empty in a view
}

// Request describes a snapshot to be made.
type Request struct {
	Key    string
	Image  string   // recorded, so that a repeated request for another image is refused
	Layers []*Layer // bottom first
	View   bool     // without a writable layer
	UID    uint32   // host ids of the container's root
	GID    uint32
}

type record struct {
	Version int      `json:"version"`
	Image   string   `json:"image"`
	Layers  []string `json:"layers"`          // bottom first
	Write   string   `json:"write,omitempty"` // directory below s/
}

type snap struct {
	record
	layers []*Layer

	mu    sync.Mutex
	gone  bool
	used  []*Layer // acquired
	lower []string // their directories
}

func checkKey(key string) error {
	if key == "" || len(key) > maxKey || key[0] == '.' {
		return fmt.Errorf("snapshot key %.300q: %w", key, errdef.ErrInvalid)
	}
	for _, c := range []byte(key) {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", rune(c)) {
			return fmt.Errorf("snapshot key %.300q: %w", key, errdef.ErrInvalid)
		}
	}
	return nil
}

func (s *Store) loadSnap(key string, r *record) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if r.Version != recordVersion {
		return fmt.Errorf("snapshot record %s: version %d", key, r.Version)
	}
	sn := &snap{record: *r}
	for _, n := range r.Layers {
		h := s.held[n]
		if h == nil {
			return fmt.Errorf("snapshot %s: layer %s: %w", key, n, errors.Join(errdef.ErrNotFound, s.Drop(sn.layers)))
		}
		h.refs++
		sn.layers = append(sn.layers, h.Layer)
	}
	if r.Write != "" {
		if fi, err := os.Lstat(filepath.Join(s.writeDir(r.Write), "u")); err != nil || !fi.IsDir() {
			return fmt.Errorf("snapshot %s has no writable layer: %w", key, errors.Join(err, s.Drop(sn.layers)))
		}
	}
	s.snaps[key] = sn
	return nil
}

// Prepare makes the snapshot, or gives the one of that key. The directories are made
// before the record: without one they are an orphan.
func (s *Store) Prepare(_ context.Context, q Request) (fs Rootfs, err error) {
	if err := checkKey(q.Key); err != nil {
		return Rootfs{}, err
	}
	s.mu.Lock()
	sn, found := s.snaps[q.Key]
	if found {
		s.mu.Unlock()
		return s.again(sn, q)
	}
	if err := s.beginLocked(q); err != nil {
		s.mu.Unlock()
		return Rootfs{}, err
	}
	s.mu.Unlock()
	sn = &snap{record: record{Version: recordVersion, Image: q.Image}, layers: q.Layers}
	for _, l := range q.Layers {
		sn.Layers = append(sn.Layers, l.Name)
	}
	if !q.View {
		sn.Write = s.newName()
		defer s.done(sn.Write)
		err = s.makeWritable(sn, q)
	}
	if err == nil {
		fs, err = s.use(sn)
	}
	if err == nil {
		err = s.records.Put(q.Key, sn.record)
	}
	if err != nil {
		errs := []error{err, s.unuse(sn), s.records.Delete(q.Key)}
		if sn.Write != "" {
			errs = append(errs, s.trash.put(s.writeDir(sn.Write)))
		}
		s.mu.Lock()
		delete(s.snaps, q.Key)
		s.mu.Unlock()
		return Rootfs{}, errors.Join(append(errs, s.Drop(q.Layers))...)
	}
	s.mu.Lock()
	s.snaps[q.Key] = sn
	s.mu.Unlock()
	return fs, nil
}

// beginLocked reserves the key and holds the layers, unless one was found damaged since
// the image got them.
func (s *Store) beginLocked(q Request) error {
	for _, l := range q.Layers {
		if s.held[l.Name].Damaged {
			return fmt.Errorf("layer %s: %w", l.DiffID, ErrDamaged)
		}
	}
	s.snaps[q.Key] = nil
	for _, l := range q.Layers {
		s.held[l.Name].refs++
	}
	return nil
}

func (s *Store) again(sn *snap, q Request) (Rootfs, error) {
	switch {
	case sn == nil:
		return Rootfs{}, fmt.Errorf("snapshot %s is being made or released: %w", q.Key, errdef.ErrRetry)
	case sn.Image != q.Image || (sn.Write == "") != q.View:
		return Rootfs{}, fmt.Errorf("snapshot %s is of image %s: %w", q.Key, sn.Image, errdef.ErrExists)
	}
	return s.use(sn)
}

// makeWritable makes the upper and work directories. The upper takes the attributes of
// the image's root directory, shifted into the user namespace.
func (s *Store) makeWritable(sn *snap, q Request) error {
	at := layer.Attr{Mode: 0o755}
	for _, v := range slices.Backward(q.Layers) {
		if r := v.Root; r != nil {
			at = *r
			break
		}
		if v.OpaqueRoot {
			break
		}
	}
	if uint64(at.UID)+uint64(q.UID) >= 1<<32-1 || uint64(at.GID)+uint64(q.GID) >= 1<<32-1 {
		return fmt.Errorf("owner of the root directory %d:%d does not fit the user namespace: %w", at.UID, at.GID, errdef.ErrInvalid)
	}
	at.UID += q.UID
	at.GID += q.GID
	dir := s.writeDir(sn.Write)
	if err := makeDir(dir, layer.Attr{Mode: 0o700}); err != nil {
		return err
	}
	// Overlay makes its own directory inside with the mounter's credentials; the owner
	// has to be known in the container's user namespace nevertheless.
	if err := makeDir(filepath.Join(dir, "w"), layer.Attr{Mode: 0o700, UID: q.UID, GID: q.GID}); err != nil {
		return err
	}
	return makeDir(filepath.Join(dir, "u"), at)
}

// makeDir makes a directory below one that is ours alone. Of a new one, mode 0700 and
// root as its owner are as they should be.
func makeDir(path string, at layer.Attr) error {
	err := unix.Mkdir(path, 0o700)
	if err == nil && at.UID|at.GID != 0 {
		err = unix.Lchown(path, int(at.UID), int(at.GID))
	}
	if err == nil && at.Mode != 0o700 {
		err = unix.Chmod(path, at.Mode)
	}
	if err != nil {
		return fmt.Errorf("make directory %s of writable layer: %w", path, err)
	}
	return nil
}

// visible are the layers of a snapshot that can be seen, top first.
func (sn *snap) visible() (out []*Layer) {
	for _, v := range slices.Backward(sn.layers) {
		// The kernel refuses a directory that comes twice (ELOOP). What the lower of two
		// equal layers contributes, the upper one shows anyway.
		if !slices.ContainsFunc(out, func(l *Layer) bool { return l.Name == v.Name }) {
			out = append(out, v)
		}
		if v.OpaqueRoot {
			break
		}
	}
	return out
}

// use gives a snapshot's directories and keeps them until unuse.
func (s *Store) use(sn *snap) (fs Rootfs, err error) {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	if sn.gone {
		return Rootfs{}, fmt.Errorf("snapshot was released: %w", errdef.ErrNotFound)
	}
	if sn.lower == nil {
		used := sn.visible()
		if sn.lower, err = s.acquire(used); err != nil {
			sn.lower = nil
			return Rootfs{}, err
		}
		sn.used = used
		if len(used) == 0 {
			sn.lower = []string{s.layerDir(emptyLayer)}
		}
	}
	fs.Lower = slices.Clone(sn.lower)
	if sn.Write != "" {
		fs.Upper, fs.Work = filepath.Join(s.writeDir(sn.Write), "u"), filepath.Join(s.writeDir(sn.Write), "w")
	}
	return fs, nil
}

func (s *Store) unuse(sn *snap) error {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	used := sn.used
	sn.gone, sn.used, sn.lower = true, nil, nil
	return s.giveBack(used)
}

// Get gives the snapshot of a key.
func (s *Store) Get(key string) (Rootfs, error) {
	s.mu.Lock()
	sn := s.snaps[key]
	s.mu.Unlock()
	if sn == nil {
		return Rootfs{}, fmt.Errorf("snapshot %.300q: %w", key, errdef.ErrNotFound)
	}
	fs, err := s.use(sn)
	if err != nil {
		return Rootfs{}, fmt.Errorf("snapshot %s: %w", key, err)
	}
	return fs, nil
}

// Keys lists the snapshots, sorted.
func (s *Store) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.snaps))
}

// Release removes a snapshot; it is no error when there is none. The record goes first:
// after a crash the tree is an orphan.
func (s *Store) Release(_ context.Context, key string) error {
	s.mu.Lock()
	sn, found := s.snaps[key]
	if found && sn != nil {
		s.snaps[key] = nil
		if sn.Write != "" {
			s.making[sn.Write] = true // it has its owner until it is in the trash
			defer s.done(sn.Write)
		}
	}
	s.mu.Unlock()
	if !found {
		return nil
	}
	if sn == nil {
		return fmt.Errorf("snapshot %s is being made or released: %w", key, errdef.ErrRetry)
	}
	err := s.records.Delete(key)
	if err == nil && sn.Write != "" {
		err = s.trash.put(s.writeDir(sn.Write))
	}
	s.mu.Lock()
	if err != nil {
		s.snaps[key] = sn
		s.mu.Unlock()
		return fmt.Errorf("release snapshot %s: %w", key, err)
	}
	delete(s.snaps, key)
	s.mu.Unlock()
	s.usage.forget(key)
	return errors.Join(s.unuse(sn), s.Drop(sn.layers))
}

// ImageOf gives the image a snapshot was made of, or "".
func (s *Store) ImageOf(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sn := s.snaps[key]; sn != nil {
		return sn.Image
	}
	return ""
}
