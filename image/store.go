package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/layer"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const recordVersion = 1

// Options say where a Store keeps things and how it pulls. Zero values of what is not
// a path mean the defaults.
type Options struct {
	Root          string        // survives a reboot
	State         string        // tmpfs: survives the daemon, not a reboot
	HostsDir      string        // certs.d: <host>/hosts.toml; empty: none
	Pinned        []string      // patterns (path.Match) of references that the kubelet shall not collect
	Stall         time.Duration // a transfer without a byte for so long is tried again
	MaxLayerBytes int64         // uncompressed; 128 GiB
	UserAgent     string
}

// Store keeps images and the snapshots made of them. Readers never wait for writers.
type Store struct {
	opt     Options
	client  *registry.Client
	snaps   *snapshot.Store
	records *content.Records

	mu     sync.Mutex // held to change images and their records
	images map[ID]*entry
	seq    uint64
	now    atomic.Pointer[view]

	pulls    pulls
	progress *progress
}

// record is an image on disk. The config is kept as it came, so that its digest tells
// whether the record is whole.
type record struct {
	Version int               `json:"version"`
	ID      ID                `json:"id"`
	Raw     []byte            `json:"config"`
	Layers  []string          `json:"layers"`  // names in the snapshot store, bottom first
	Tags    map[string]tagged `json:"tags"`    // by full reference
	Digests []string          `json:"digests"` // name@digest
}

// tagged says what a tag stood for when it was pulled, and when that was among others:
// a tag that a crash left on two images belongs to the later one.
type tagged struct {
	Digest Digest `json:"digest"`
	Seq    uint64 `json:"seq"`
}

type entry struct {
	rec    record
	layers []*snapshot.Layer
	image  *Image
}

// view is an immutable index of all images.
type view struct {
	list  []*Image
	byID  map[ID]*Image
	byRef map[string]*Image
}

// Open reads the store and sets aside what a crash or a reboot left behind.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.MaxLayerBytes == 0 {
		o.MaxLayerBytes = 128 << 30
	}
	for _, p := range o.Pinned {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("pinned image pattern %q: %w: %w", p, err, errdef.ErrInvalid)
		}
	}
	snaps, err := snapshot.Open(ctx, snapshot.Options{Root: o.Root, State: o.State,
		Layer: layer.Options{MaxBytes: o.MaxLayerBytes, MaxEntries: 8 << 20}})
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{opt: o, snaps: snaps, images: map[ID]*entry{}, progress: newProgress()}
	s.client = registry.New(registry.Config{HostsDir: o.HostsDir, Stall: o.Stall, UserAgent: o.UserAgent})
	s.pulls.init(ctx)
	if err := s.load(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open image store: %w", err), snaps.Close())
	}
	return s, nil
}

func (s *Store) load(ctx context.Context) (err error) {
	if s.records, err = content.OpenRecords(filepath.Join(s.opt.Root, "images"), true); err != nil {
		return err
	}
	if err := content.Each(ctx, s.records, s.loadImage); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.images {
		for ref, t := range e.rec.Tags {
			for _, o := range s.images {
				if t2, ok := o.rec.Tags[ref]; ok && t2.Seq < t.Seq {
					delete(o.rec.Tags, ref)
				}
			}
		}
	}
	s.publish()
	return s.snaps.Collect()
}

func (s *Store) loadImage(name string, r *record) error {
	if r.Version != recordVersion || recordName(r.ID) != name {
		return fmt.Errorf("image record %s: version %d, id %q", name, r.Version, r.ID)
	}
	if err := content.Check(r.Raw, Digest(r.ID)); err != nil {
		return fmt.Errorf("image record %s: %w", name, err)
	}
	e, err := newEntry(*r, nil)
	if err != nil {
		return err
	}
	if len(r.Layers) != len(e.image.DiffIDs) {
		return fmt.Errorf("image record %s: %d layers, want %d", name, len(r.Layers), len(e.image.DiffIDs))
	}
	for i, n := range r.Layers {
		l, ok := s.snaps.Find(n)
		if !ok || l.DiffID != e.image.DiffIDs[i] {
			return fmt.Errorf("image %s: layer %s: %w", r.ID, n, errors.Join(errdef.ErrNotFound, s.snaps.Drop(e.layers)))
		}
		e.layers = append(e.layers, l)
	}
	for _, t := range r.Tags {
		s.seq = max(s.seq, t.Seq)
	}
	s.images[r.ID] = e
	return nil
}

func recordName(id ID) string {
	return strings.ReplaceAll(string(id), ":", "-")
}

// newEntry decodes a record's config.
func newEntry(r record, layers []*snapshot.Layer) (*entry, error) {
	c, err := parseConfig(r.Raw)
	if err != nil {
		return nil, err
	}
	img := &Image{ID: r.ID, Config: c.plain(), DiffIDs: c.RootFS.DiffIDs, RawConfig: r.Raw}
	if n := len(img.DiffIDs); n > 0 {
		img.ChainID = chainIDs(img.DiffIDs)[n-1]
	}
	if c.Created != nil {
		img.Created = *c.Created
	}
	if r.Tags == nil {
		r.Tags = map[string]tagged{}
	}
	return &entry{rec: r, layers: layers, image: img}, nil
}

// publish rebuilds what readers see. The lock is held.
func (s *Store) publish() {
	v := &view{byID: map[ID]*Image{}, byRef: map[string]*Image{}}
	for id, e := range s.images {
		img := *e.image
		img.RepoTags = slices.Sorted(maps.Keys(e.rec.Tags))
		img.RepoDigests = slices.Sorted(slices.Values(e.rec.Digests))
		img.Size = int64(len(e.rec.Raw))
		for _, l := range e.layers {
			img.Size += int64(l.Bytes) // #nosec G115 -- bounded by the layer size limit
		}
		for _, ref := range slices.Concat(img.RepoTags, img.RepoDigests) {
			v.byRef[ref] = &img
			img.Pinned = img.Pinned || s.pinned(ref)
		}
		v.byID[id] = &img
		v.list = append(v.list, &img)
	}
	slices.SortFunc(v.list, func(a, b *Image) int { return cmp.Compare(a.ID, b.ID) })
	s.now.Store(v)
}

func (s *Store) pinned(ref string) bool {
	return slices.ContainsFunc(s.opt.Pinned, func(p string) bool {
		ok, err := path.Match(p, ref)
		return ok && err == nil
	})
}

// Close ends running pulls and measurements and waits for them. Snapshots stay.
func (s *Store) Close() error {
	s.pulls.close()
	return s.snaps.Close()
}

// List gives all images, sorted by ID. It never waits.
func (s *Store) List() []*Image { return slices.Clone(s.now.Load().list) }

// Resolve finds an image by reference, by ID, or by a unique beginning of an ID. It
// never waits and asks no registry.
func (s *Store) Resolve(ref string) (*Image, error) { return s.now.Load().resolve(ref) }

func (v *view) resolve(ref string) (*Image, error) {
	if img := v.byID[ID(ref)]; img != nil {
		return img, nil
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	isHex := hexPattern.MatchString(hex)
	if hex == ref && len(hex) < 64 || !isHex {
		r, err := parseRef(ref)
		if err != nil {
			return nil, err
		}
		if img := v.byRef[r.String()]; img != nil {
			return img, nil
		}
	}
	var found *Image
	if isHex {
		for _, img := range v.list {
			if !strings.HasPrefix(string(img.ID), "sha256:"+hex) {
				continue
			}
			if found != nil {
				return nil, fmt.Errorf("image id %q is that of several images: %w", ref, errdef.ErrInvalid)
			}
			found = img
		}
	}
	if found == nil {
		return nil, fmt.Errorf("image %.300q: %w", ref, errdef.ErrNotFound)
	}
	return found, nil
}

// Remove removes an image with all its tags. It is no error when there is none. Layers
// that a snapshot uses stay until it is released.
func (s *Store) Remove(_ context.Context, ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, err := s.Resolve(ref)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	e := s.images[img.ID]
	if err := s.records.Delete(recordName(img.ID)); err != nil {
		return fmt.Errorf("remove image %s: %w", img.ID, err)
	}
	delete(s.images, img.ID)
	s.publish()
	if err := s.snaps.Drop(e.layers); err != nil {
		return fmt.Errorf("remove image %s: %w", img.ID, err)
	}
	return nil
}

// addNames records that a reference stands for an image that is here, and takes the tag
// from the image that had it. It reports whether the image is here.
func (s *Store) addNames(id ID, r reference, d Digest) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[id]
	if e == nil {
		return false, nil
	}
	return true, s.nameLocked(e, r, d)
}

// insert makes an image known; its layers' holds pass to it.
func (s *Store) insert(e *entry, r reference, d Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.images[e.rec.ID]; old != nil { // another reference was quicker
		return errors.Join(s.nameLocked(old, r, d), s.snaps.Drop(e.layers))
	}
	s.images[e.rec.ID] = e
	if err := s.nameLocked(e, r, d); err != nil {
		delete(s.images, e.rec.ID)
		return errors.Join(err, s.snaps.Drop(e.layers))
	}
	return nil
}

func (s *Store) nameLocked(e *entry, r reference, d Digest) error {
	rec := e.rec
	rec.Tags = maps.Clone(rec.Tags)
	if r.tag != "" {
		s.seq++
		rec.Tags[r.String()] = tagged{d, s.seq}
	}
	if ref := r.name() + "@" + string(d); !slices.Contains(rec.Digests, ref) {
		rec.Digests = append(slices.Clone(rec.Digests), ref)
	}
	if err := s.records.Put(recordName(rec.ID), rec); err != nil {
		return fmt.Errorf("record image %s: %w", rec.ID, err)
	}
	e.rec = rec
	var err error
	for id, o := range s.images {
		if _, ok := o.rec.Tags[r.String()]; ok && id != rec.ID {
			delete(o.rec.Tags, r.String())
			err = errors.Join(err, s.records.Put(recordName(id), o.rec))
		}
	}
	s.publish()
	return err
}

// known gives the image that a reference stood for, if its digest was d.
func (s *Store) known(r reference, d Digest) (ID, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img := s.now.Load().byRef[r.String()]
	if img == nil {
		return "", false
	}
	if r.digest != "" {
		return img.ID, r.digest == d
	}
	return img.ID, s.images[img.ID].rec.Tags[r.String()].Digest == d
}

// Mismatches gives, by host, how often a registry or mirror served content that was not
// what its digest says.
func (s *Store) Mismatches() map[string]uint64 { return s.client.Mismatches() }

func (s *Store) has(r reference) bool { return s.now.Load().byRef[r.String()] != nil }
