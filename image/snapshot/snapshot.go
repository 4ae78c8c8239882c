// Package snapshot keeps unpacked layers and the writable directories above them, for
// overlay. Layers are kept in one of two formats, see Format.
//
// A layer stays as long as something holds it: an image, a snapshot, a running pull.
// Its record says that its files are whole. Publish writes it to tmpfs, where it
// survives the end of the process; Sync writes it below the root, after the files are
// synced, so that such a layer is whole even after a power cut. A snapshot's record lives
// on tmpfs and its writable layer dies with the boot.
//
// An EROFS layer in use is mounted once, detached: the descriptor is all there is of that
// mount. It ends with the layer or with the process, or some time after the last snapshot
// that asked for it. An index is compared with its recorded checksum before the kernel sees it. Nothing else
// is mounted, but for the trial of Open.
//
// On disk: root/layers/N.json or state/layers/N.json, and root/l/N (a tree) or
// root/l/N.tar and root/l/N.idx; root/s/N/{u,w} and state/snapshots/KEY.json;
// root/trash/* on its way out. What has files and no record is removed by Open. One
// goroutine empties the trash, others measure writable layers; Close awaits them.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/layer"
)

const recordVersion = 1

// emptyLayer is the lower directory of an image without layers: overlay wants one.
const emptyLayer = "0"

// Layer describes a layer. It is never changed once Publish is done with it.
type Layer struct {
	Version int           `json:"version"`
	Name    string        `json:"name"` // of its files
	DiffID  digest.Digest `json:"diffID"`
	// Chain, of this layer and those below, is set when the files depend on them: there
	// are directories whose attributes the layer itself does not say, or copies of files
	// that it links to. Such a layer is shared by chain ID, all others by diff ID.
	Chain      digest.Digest `json:"chain,omitempty"`
	Bytes      uint64        `json:"bytes"`  // on disk
	Inodes     uint64        `json:"inodes"` // on disk
	Root       *layer.Attr   `json:"root,omitempty"`
	OpaqueRoot bool          `json:"opaqueRoot,omitempty"`
	EROFS      *Files        `json:"erofs,omitempty"` // nil: a directory
	// Damaged says that the layer stays for the snapshots that have it, and is not to
	// be used anew. Such a record is on tmpfs only.
	Damaged bool `json:"damaged,omitempty"`

	open   *unfinished // until Publish has finished it; belongs to Store.publish
	broken error       // finishing failed half-way; belongs to Store.publish
}

// Files are those of an EROFS layer.
type Files struct {
	Tar   int64         `json:"tar"`            // length of the layer's stream, from the start of the tar file
	Data  int64         `json:"data"`           // length of the tar file: what follows the stream are copies from lower layers and such
	Rest  digest.Digest `json:"rest,omitempty"` // of what follows the stream
	Index int64         `json:"index"`          // length of the index
	Sum   digest.Digest `json:"sum"`            // of the index
}

// Options say where and how much.
type Options struct {
	Root, State string
	Layer       layer.Options
	Format      Format // of new layers; "" is Auto
}

// phase says how much a layer's record survives.
type phase int

const (
	fresh     phase = iota + 1 // there is none yet
	published                  // the end of the process
	durable                    // a power cut
)

type held struct {
	*Layer
	refs  int
	phase phase
	lower lower
}

// Store keeps layers and snapshots.
type Store struct {
	opt     Options
	formats map[Format]format
	reason  string           // why Auto is not EROFS
	layers  *content.Records // durable
	recent  *content.Records // published
	records *content.Records // of snapshots
	trash   *trash
	usage   usage
	idle    idle

	publish sync.Mutex // held to finish and publish layers
	syncing sync.Mutex // held by Sync: the second of two finds its layers done

	mu     sync.Mutex
	ready  bool // Collect ran: from now on a layer without holds is deleted
	next   uint64
	making map[string]bool  // names of what has neither record nor hold yet
	held   map[string]*held // by name
	byKey  map[digest.Digest]*held
	snaps  map[string]*snap // nil while being made or released
}

// Open reads what is there and sets aside what a crash or a reboot left.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{opt: o, making: map[string]bool{}, held: map[string]*held{}, byKey: map[digest.Digest]*held{}, snaps: map[string]*snap{}}
	if err := s.makeDirs(); err != nil {
		return nil, err
	}
	spread(ctx, s.dir("l"))
	spread(ctx, s.dir("s"))
	s.trash = newTrash(s.dir("trash"), s.layers.Sync)
	if err := s.chooseFormat(ctx); err != nil {
		return nil, err
	}
	if err := s.load(ctx); err != nil {
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

func (s *Store) makeDirs() (err error) {
	for _, d := range []string{s.opt.Root, s.dir("l"), s.dir("s"), s.dir("trash"), s.opt.State} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make store directory: %w", err)
		}
	}
	for _, d := range []string{s.opt.Root, s.opt.State} {
		// Set-uid programs of images must not be reachable for users (CVE-2021-41103).
		if err := os.Chmod(d, 0o700); err != nil { // #nosec G302 -- a directory
			return fmt.Errorf("close store directory: %w", err)
		}
	}
	if s.layers, err = content.OpenRecords(s.dir("layers"), true); err != nil {
		return err
	}
	// What is synced in them later needs their names.
	if err := syncDir(s.opt.Root); err != nil {
		return err
	}
	if s.recent, err = content.OpenRecords(filepath.Join(s.opt.State, "layers"), false); err != nil {
		return err
	}
	s.records, err = content.OpenRecords(filepath.Join(s.opt.State, "snapshots"), false)
	return err
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

func (s *Store) load(ctx context.Context) error {
	if err := content.Each(ctx, s.layers, func(name string, l *Layer) error { return s.loadLayer(ctx, name, l, durable) }); err != nil {
		return err
	}
	if err := content.Each(ctx, s.recent, func(name string, l *Layer) error { return s.loadLayer(ctx, name, l, published) }); err != nil {
		return err
	}
	return content.Each(ctx, s.records, s.loadSnap)
}

// Close stops deleting and measuring, waits for both to end, and unmounts the layers.
// What is mounted on them goes on.
func (s *Store) Close() error {
	s.usage.close()
	s.trash.close()
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.held))
	s.mu.Unlock()
	var errs []error
	for _, h := range all {
		errs = append(errs, h.lower.close())
	}
	return errors.Join(errs...)
}

// Chosen tells the format of new layers, and why it is not EROFS if that was to be seen.
func (s *Store) Chosen() (f Format, reason string) { return s.opt.Format, s.reason }

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

func (s *Store) loadLayer(ctx context.Context, name string, l *Layer, p phase) error {
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
	s.next = max(s.next, n)
	if h := s.held[name]; h != nil {
		// The process ended between the two steps of Sync, or of Damaged.
		if l.Damaged {
			return s.damagedLocked(name)
		}
		return s.recent.Delete(name)
	}
	err = s.formatOf(l).verify(ctx, l, false)
	if err != nil && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("layer %s: %w", name, err)
	}
	h := &held{Layer: l, phase: p}
	s.held[name] = h
	if !l.Damaged {
		s.offerLocked(h)
	}
	if err == nil {
		return nil
	}
	// Not dropped yet: a container may run on it, and what it has written shall stay.
	klog.FromContext(ctx).Error(err, "Layer found damaged", "layer", l.DiffID, "name", name)
	return s.damagedLocked(name)
}

// sweep sets aside files without a record.
func (s *Store) sweep() error {
	for _, d := range []string{"l", "s"} {
		es, err := os.ReadDir(s.dir(d))
		if err != nil {
			return fmt.Errorf("list store: %w", err)
		}
		for _, e := range es {
			name, _, _ := strings.Cut(e.Name(), ".")
			if n, err := strconv.ParseUint(name, 36, 64); err == nil {
				s.next = max(s.next, n)
			}
			if s.owned(d, e.Name()) {
				continue
			}
			if err := s.trash.put(filepath.Join(s.dir(d), e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// owned tells whether what is in the directory l or s is known. The caller holds s.mu,
// or is Open.
func (s *Store) owned(dir, file string) bool {
	name, _, _ := strings.Cut(file, ".")
	if s.making[name] {
		return true
	}
	if dir == "s" {
		for _, sn := range s.snaps {
			if sn != nil && sn.Write == file {
				return true
			}
		}
		return false
	}
	h := s.held[name]
	switch {
	case name == emptyLayer:
		return file == emptyLayer
	case h == nil:
		return false
	case h.EROFS != nil:
		return file == name+tarSuffix || file == name+indexSuffix
	}
	return file == name
}

// newName gives a name that done makes known or gives up.
func (s *Store) newName() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	name := strconv.FormatUint(s.next, 36)
	s.making[name] = true
	return name
}

func (s *Store) done(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.making, name)
}
