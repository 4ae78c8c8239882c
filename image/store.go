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
	"github.com/cri-runtime/cri-runtime/image/policy"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const recordVersion = 1

// maxEntries bounds the entries of a layer, which are in memory while it is unpacked, with
// 210 bytes each. Large layers in the field have some 300,000.
const maxEntries = 1 << 20

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
	LayerStore    snapshot.Format // of new layers; "" is auto
	Policy        *policy.Policy  // of signatures; nil accepts any image
	Settled       func()          // called behind pulls and loads, once all that they brought is durable
}

// Store keeps images and the snapshots made of them. Readers never wait for writers.
type Store struct {
	opt     Options
	client  *registry.Client
	snaps   *snapshot.Store
	records *content.Records // durable
	recent  *content.Records // on tmpfs: newer than the durable ones of the same name
	seen    *content.Records // on tmpfs: images that were compared with their digests in this boot
	sync    syncer
	scrub   scrubber

	mu      sync.Mutex // held to change images and their records
	images  map[ID]*entry
	damaged map[ID]*entry // not listed; they keep their whole layers and their names for the next pull
	seq     uint64
	now     atomic.Pointer[view]

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
	snaps, err := snapshot.Open(ctx, snapshot.Options{Root: o.Root, State: o.State, Format: o.LayerStore,
		Layer: layer.Options{MaxBytes: o.MaxLayerBytes, MaxEntries: maxEntries}})
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{opt: o, snaps: snaps, images: map[ID]*entry{}, damaged: map[ID]*entry{}, progress: newProgress()}
	partials, err := content.OpenPartials(filepath.Join(o.Root, "partial"), content.PartialLimits{})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open image store: %w", err), snaps.Close())
	}
	s.client = registry.New(registry.Config{HostsDir: o.HostsDir, Stall: o.Stall, UserAgent: o.UserAgent, Partials: partials})
	s.pulls.init(ctx)
	s.sync.init()
	if err := s.load(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open image store: %w", err), snaps.Close())
	}
	s.sync.done.Go(func() { s.runSync(context.WithoutCancel(ctx)) })
	s.startScrub(ctx)
	return s, nil
}

func (s *Store) load(ctx context.Context) (err error) {
	if s.records, err = content.OpenRecords(filepath.Join(s.opt.Root, "images"), true); err != nil {
		return err
	}
	if s.recent, err = content.OpenRecords(filepath.Join(s.opt.State, "images"), false); err != nil {
		return err
	}
	if s.seen, err = content.OpenRecords(filepath.Join(s.opt.State, "verified"), false); err != nil {
		return err
	}
	if err := content.Each(ctx, s.recent, s.loadImage); err != nil {
		return err
	}
	recent := slices.Collect(maps.Keys(s.images))
	if err := content.Each(ctx, s.records, func(name string, r *record) error {
		if s.images[r.ID] != nil && recordName(r.ID) == name {
			return nil // there is a newer one
		}
		return s.loadImage(name, r)
	}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range recent {
		s.syncLater(id)
	}
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

// distinct gives the layers of an image, each once: equal ones may follow each other.
func (e *entry) distinct() []*snapshot.Layer {
	var ls []*snapshot.Layer
	for _, l := range e.layers {
		if !slices.ContainsFunc(ls, func(o *snapshot.Layer) bool { return o.Name == l.Name }) {
			ls = append(ls, l)
		}
	}
	return ls
}

// publish rebuilds what readers see. The lock is held.
func (s *Store) publish() {
	v := &view{byID: map[ID]*Image{}, byRef: map[string]*Image{}}
	users := map[string]int{} // images of each layer
	for _, e := range s.images {
		for _, l := range e.distinct() {
			users[l.Name]++
		}
	}
	for id, e := range s.images {
		img := *e.image
		img.RepoTags = slices.Sorted(maps.Keys(e.rec.Tags))
		img.RepoDigests = slices.Sorted(slices.Values(e.rec.Digests))
		img.Size, img.Unique = int64(len(e.rec.Raw)), int64(len(e.rec.Raw))
		for _, l := range e.distinct() {
			img.Size += int64(l.Bytes) // #nosec G115 -- bounded by the layer size limit
			if users[l.Name] == 1 {
				img.Unique += int64(l.Bytes) // #nosec G115 -- the same
			}
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

// Close ends running pulls and measurements and waits for them, and for images to become
// durable. Snapshots stay.
func (s *Store) Close() error {
	s.pulls.close()
	s.client.Close()
	s.scrub.cancel()
	s.scrub.done.Wait()
	s.sync.once.Do(func() { close(s.sync.stop) })
	s.sync.done.Wait()
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

// Remove removes an image with all its tags. It is no error when there is none. One that
// a snapshot was made of is ErrPhase: its containers could not be started again.
func (s *Store) Remove(_ context.Context, ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, err := s.Resolve(ref)
	if errors.Is(err, errdef.ErrNotFound) {
		return s.removeDamaged(ref)
	} else if err != nil {
		return err
	}
	users := slices.DeleteFunc(s.snaps.Keys(), func(key string) bool { return s.snaps.ImageOf(key) != string(img.ID) })
	if len(users) > 0 {
		return fmt.Errorf("remove image %s: in use by %s: %w", img.ID, strings.Join(users, ", "), errdef.ErrPhase)
	}
	e := s.images[img.ID]
	if err := s.unrecord(img.ID); err != nil {
		return fmt.Errorf("remove image %s: %w", img.ID, err)
	}
	if err := s.snaps.Drop(e.layers); err != nil {
		return fmt.Errorf("remove image %s: %w", img.ID, err)
	}
	return nil
}

// unrecord takes an image from records and lists; its layers' holds are the caller's.
func (s *Store) unrecord(id ID) error {
	name := recordName(id)
	err := errors.Join(s.records.Delete(name), s.recent.Delete(name), s.seen.Delete(name))
	if err != nil {
		return err
	}
	delete(s.images, id)
	s.publish()
	return nil
}

// removeDamaged gives up what is kept of a damaged image for its next pull.
func (s *Store) removeDamaged(ref string) error {
	for id, e := range s.damaged {
		_, tagged := e.rec.Tags[ref]
		if tagged || string(id) == ref || slices.Contains(e.rec.Digests, ref) {
			delete(s.damaged, id)
			return s.snaps.Drop(e.layers)
		}
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
	s.usedLocked(id)
	return true, s.nameLocked(e, r, d)
}

// insert makes an image known; its layers' holds pass to it.
func (s *Store) insert(e *entry, r reference, d Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.images[e.rec.ID]; old != nil { // another reference was quicker
		return errors.Join(s.nameLocked(old, r, d), s.snaps.Drop(e.layers))
	}
	broken := s.damaged[e.rec.ID]
	if broken != nil {
		e.rec.Tags, e.rec.Digests = broken.rec.Tags, broken.rec.Digests
	}
	s.images[e.rec.ID] = e
	if err := s.nameLocked(e, r, d); err != nil {
		delete(s.images, e.rec.ID)
		return errors.Join(err, s.snaps.Drop(e.layers))
	}
	if err := s.seen.Put(recordName(e.rec.ID), seen{recordVersion}); err != nil {
		return fmt.Errorf("record image %s: %w", e.rec.ID, err)
	}
	if broken != nil {
		delete(s.damaged, e.rec.ID)
		return s.snaps.Drop(broken.layers)
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
	// An image out of an archive may have no name, or no manifest.
	if ref := r.name() + "@" + string(d); r.host != "" && d != "" && !slices.Contains(rec.Digests, ref) {
		rec.Digests = append(slices.Clone(rec.Digests), ref)
	}
	if err := s.putLocked(rec); err != nil {
		return err
	}
	e.rec = rec
	var err error
	for id, o := range s.images {
		if _, ok := o.rec.Tags[r.String()]; ok && id != rec.ID {
			o.rec.Tags = maps.Clone(o.rec.Tags) // the syncer may be writing it
			delete(o.rec.Tags, r.String())
			err = errors.Join(err, s.putLocked(o.rec))
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
