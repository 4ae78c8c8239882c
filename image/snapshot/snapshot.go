// Package snapshot keeps unpacked layers and the writable directories above them, for
// overlay. It mounts nothing.
//
// A layer stays as long as something holds it: an image, a snapshot, a running pull.
// A layer's record is written only after its files are synced, so a recorded layer is
// whole even after a power cut. A snapshot's record lives on tmpfs and its writable
// layer dies with the boot.
//
// On disk: root/layers/N.json and root/l/N (a layer's tree; short, since mount options
// before Linux 6.7 must fit a page), root/s/N/{u,w} and state/snapshots/KEY.json,
// root/trash/* on its way out. What has a tree and no record is removed by Open. One
// goroutine empties the trash; Close awaits it.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/layer"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const recordVersion = 1

// emptyLayer is the lower directory of an image without layers: overlay wants one.
const emptyLayer = "0"

// Layer describes a layer's tree. It is never changed once others see it.
type Layer struct {
	Version int           `json:"version"`
	Name    string        `json:"name"` // of its directory
	DiffID  digest.Digest `json:"diffID"`
	// Chain, of this layer and those below, is set when the tree depends on them: it has
	// directories whose attributes the layer itself does not say, or copies of files that
	// it links to. Such a tree is shared by chain ID, all others by diff ID.
	Chain      digest.Digest `json:"chain,omitempty"`
	Bytes      uint64        `json:"bytes"`
	Inodes     uint64        `json:"inodes"`
	Root       *layer.Attr   `json:"root,omitempty"`
	OpaqueRoot bool          `json:"opaqueRoot,omitempty"`

	open   layer.Open // until Commit has settled it; belongs to Store.commit
	broken error      // settling failed half-way; belongs to Store.commit
}

// Options say where and how much.
type Options struct {
	Root, State string
	Layer       layer.Options
}

type held struct {
	*Layer
	refs     int
	recorded bool
}

// Store keeps layers and snapshots.
type Store struct {
	opt     Options
	layers  *content.Records
	records *content.Records
	trash   *trash
	usage   usage

	commit sync.Mutex // held by Commit: one sync at a time, each covers all before it

	mu    sync.Mutex
	ready bool // Collect ran: from now on a layer without holds is deleted
	next  uint64
	held  map[string]*held // by name
	byKey map[digest.Digest]*held
	snaps map[string]*snap // nil while being made or released
}

// Open reads what is there and sets aside what a crash or a reboot left.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{opt: o, held: map[string]*held{}, byKey: map[digest.Digest]*held{}, snaps: map[string]*snap{}}
	for _, d := range []string{o.Root, s.dir("l"), s.dir("s"), s.dir("trash"), o.State} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make store directory: %w", err)
		}
	}
	for _, d := range []string{o.Root, o.State} {
		// Set-uid programs of images must not be reachable for users (CVE-2021-41103).
		if err := os.Chmod(d, 0o700); err != nil { // #nosec G302 -- a directory
			return nil, fmt.Errorf("close store directory: %w", err)
		}
	}
	spread(ctx, s.dir("l"))
	var err error
	if s.layers, err = content.OpenRecords(s.dir("layers"), true); err != nil {
		return nil, err
	}
	if s.records, err = content.OpenRecords(filepath.Join(o.State, "snapshots"), false); err != nil {
		return nil, err
	}
	s.trash = newTrash(s.dir("trash"))
	if err := content.Each(ctx, s.layers, s.loadLayer); err != nil {
		return nil, err
	}
	if err := content.Each(ctx, s.records, s.loadSnap); err != nil {
		return nil, err
	}
	if err := s.sweep(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.layerDir(emptyLayer), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make empty layer: %w", err)
	}
	s.usage.init(ctx)
	s.trash.start(ctx)
	return s, nil
}

// Close stops deleting and measuring and waits for both to end.
func (s *Store) Close() error {
	s.usage.close()
	return s.trash.close()
}

func (s *Store) dir(name string) string      { return filepath.Join(s.opt.Root, name) }
func (s *Store) layerDir(name string) string { return filepath.Join(s.opt.Root, "l", name) }
func (s *Store) writeDir(name string) string { return filepath.Join(s.opt.Root, "s", name) }
func (l *Layer) key() digest.Digest          { return keyOf(l.DiffID, l.Chain) }
func keyOf(diff, chain digest.Digest) digest.Digest {
	if chain != "" {
		return "chain:" + chain
	}
	return diff
}

func (s *Store) loadLayer(name string, l *Layer) error {
	if l.Version != recordVersion || l.Name != name {
		return fmt.Errorf("layer record %s: version %d, name %q", name, l.Version, l.Name)
	}
	n, err := strconv.ParseUint(name, 36, 64)
	if err != nil {
		return fmt.Errorf("layer record %s: %w", name, err)
	}
	if _, err := content.Parse(string(l.DiffID)); err != nil {
		return err
	}
	fi, err := os.Lstat(s.layerDir(name))
	if err == nil && !fi.IsDir() {
		err = unix.ENOTDIR
	}
	if err != nil {
		return fmt.Errorf("layer %s has no tree: %w: %w", name, err, errdef.ErrNotFound)
	}
	s.next = max(s.next, n)
	h := &held{Layer: l, recorded: true}
	s.held[name], s.byKey[l.key()] = h, h
	return nil
}

// sweep sets aside trees without a record.
func (s *Store) sweep() error {
	for _, d := range []string{"l", "s"} {
		es, err := os.ReadDir(s.dir(d))
		if err != nil {
			return fmt.Errorf("list store: %w", err)
		}
		for _, e := range es {
			if n, err := strconv.ParseUint(e.Name(), 36, 64); err == nil {
				s.next = max(s.next, n)
			}
			if d == "l" && (e.Name() == emptyLayer || s.held[e.Name()] != nil) || d == "s" && s.owned(e.Name()) {
				continue
			}
			if err := s.trash.put(filepath.Join(s.dir(d), e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) newName() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	return strconv.FormatUint(s.next, 36)
}

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

// Find gives the layer of a recorded name, and holds it.
func (s *Store) Find(name string) (*Layer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.held[name]
	if h == nil {
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

// deleteLocked removes the record before the tree: a record says that all is there.
func (s *Store) deleteLocked(h *held) error {
	delete(s.held, h.Name)
	if s.byKey[h.key()] == h {
		delete(s.byKey, h.key())
	}
	if h.recorded {
		if err := s.layers.Delete(h.Name); err != nil {
			return err
		}
	}
	return s.trash.put(s.layerDir(h.Name))
}

// Unpack applies a tar stream to a new layer, held once. The caller has verified the
// stream when r ends without an error. It is recorded by Commit.
func (s *Store) Unpack(ctx context.Context, diff, chain digest.Digest, r io.Reader) (*Layer, error) {
	name := s.newName()
	dir := s.layerDir(name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make layer directory: %w", err)
	}
	err := os.Chmod(dir, 0o755) // #nosec G302 -- below a directory of ours that is 0700
	var res *layer.Result
	if err == nil {
		res, err = layer.Apply(ctx, dir, r, s.opt.Layer)
	}
	if err != nil {
		return nil, errors.Join(err, s.trash.put(dir))
	}
	l := &Layer{Version: recordVersion, Name: name, DiffID: diff, Bytes: res.Bytes + 4096, Inodes: res.Inodes + 1,
		Root: res.Root, OpaqueRoot: res.OpaqueRoot, open: res.Open}
	if l.open.Any() {
		l.Chain = chain
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &held{Layer: l, refs: 1}
	s.held[name] = h
	if s.byKey[l.key()] == nil {
		s.byKey[l.key()] = h // other pulls may use it; whoever commits first records it
	}
	return l, nil
}

// Commit makes the layers of one image durable, bottom first. It settles what a layer
// left open, syncs once, then writes the records.
func (s *Store) Commit(ctx context.Context, ls []*Layer) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	var fresh []*held
	s.mu.Lock()
	for _, l := range ls {
		if h := s.held[l.Name]; !h.recorded {
			fresh = append(fresh, h)
		}
	}
	s.mu.Unlock()
	if len(fresh) == 0 {
		return nil
	}
	for i, l := range ls {
		if err := s.settle(l, ls[:i]); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("commit layers: %w", err)
	}
	if err := s.sync(); err != nil {
		return err
	}
	for _, h := range fresh {
		if err := s.layers.Put(h.Name, h.Layer); err != nil {
			return err
		}
		s.mu.Lock()
		h.recorded = true
		s.mu.Unlock()
	}
	return nil
}

// sync writes out the files of all layers with one call: per file it would cost seconds.
func (s *Store) sync() error {
	f, err := os.Open(s.opt.Root)
	if err != nil {
		return fmt.Errorf("sync layers: %w", err)
	}
	err = unix.Syncfs(int(f.Fd()))
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("sync layers: %w", err)
	}
	return nil
}

// settle completes a layer with what it takes from those below, which are all there by
// now: no layer waits for another while it is unpacked.
func (s *Store) settle(l *Layer, below []*Layer) error {
	if l.broken != nil || !l.open.Any() {
		return l.broken
	}
	var dirs []string
	for _, b := range slices.Backward(below) {
		if l.OpaqueRoot {
			break
		}
		dirs = append(dirs, s.layerDir(b.Name))
		if b.OpaqueRoot {
			break
		}
	}
	bytes, err := layer.Settle(s.layerDir(l.Name), dirs, l.open, s.opt.Layer.MaxBytes)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		l.broken = fmt.Errorf("settle layer %s: %w", l.DiffID, err)
		// Whoever holds it fails, whoever comes makes another.
		if h := s.held[l.Name]; s.byKey[l.key()] == h {
			delete(s.byKey, l.key())
		}
		return l.broken
	}
	l.Bytes += bytes
	l.open = layer.Open{}
	return nil
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
