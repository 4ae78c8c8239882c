package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/archive"
	"github.com/cri-runtime/cri-runtime/image/layer"
	"github.com/cri-runtime/cri-runtime/image/policy"
	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Loaded is an image that came out of an archive.
type Loaded struct {
	ID ID `json:"id"`
	// Names are the references that it is known by now; none: only by its ID.
	Names []string `json:"names,omitempty"`
}

// LoadProgress says how far a Load is.
type LoadProgress struct {
	Read   int64  `json:"read"`            // bytes of the archive, as it came
	Entry  string `json:"entry,omitempty"` // the entry being read
	Layers int    `json:"layers"`          // unpacked so far
}

// loadStep is how much of a layer is unpacked between two reports.
const loadStep = 8 << 20

// loading is one Load.
type loading struct {
	s        *Store
	progress func(LoadProgress)
	read     atomic.Int64 // a stage of its own reads
	now      LoadProgress
	unpacked map[Digest]*snapshot.Layer
	held     []*snapshot.Layer // each once; given up at the end, when images have theirs

	plans   []plan // as far as the documents tell that have come
	planned int    // the number of documents that plans were made of
	whole   bool   // plans are those of the whole archive
}

// Load reads an OCI layout or a docker-archive, packed with tar and perhaps compressed,
// from start to end, once. What no image of the archive uses is dropped again. When it
// fails, no image is new, though a name may have been taken from one that had it.
// progress may be nil; it is called from Load's own goroutine, at least once per layer.
//
// No registry vouches for an archive: the caller does, within what the signature policy
// says of docker-archive and oci-archive.
func (s *Store) Load(ctx context.Context, r io.Reader, progress func(LoadProgress)) ([]Loaded, error) {
	l := &loading{s: s, progress: progress, unpacked: map[Digest]*snapshot.Layer{}}
	images, err := l.run(ctx, r)
	err = errors.Join(err, s.snaps.Drop(l.held))
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("%w: %w", err, errdef.ErrExhausted)
	}
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	return images, nil
}

func (l *loading) run(ctx context.Context, r io.Reader) ([]Loaded, error) {
	if err := l.allowed(ctx, policy.DockerArchive); err != nil && l.allowed(ctx, policy.OCIArchive) != nil {
		return nil, err // whatever it is
	}
	in := &counted{r: r, n: &l.read}
	tar, err := layer.Decompress(in)
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	defer tar.Close()
	c, err := archive.Read(ctx, tar, l.layer)
	if err != nil {
		return nil, err
	}
	transport := policy.DockerArchive
	if isLayout(c) {
		transport = policy.OCIArchive
	}
	if err := l.allowed(ctx, transport); err != nil {
		return nil, err
	}
	plans, err := plansOf(c)
	if err != nil {
		return nil, err
	}
	return l.insert(ctx, c, plans)
}

func (l *loading) allowed(ctx context.Context, transport string) error {
	return l.s.opt.Policy.CheckArchive(ctx, transport)
}

func (l *loading) report() {
	if l.progress != nil {
		l.now.Read = l.read.Load()
		l.progress(l.now)
	}
}

// counted counts what was read of the archive.
type counted struct {
	r io.Reader
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// layer takes a file that may be a layer of an image: which, and whether of any, is said
// in documents that most writers put at the end.
func (l *loading) layer(ctx context.Context, c *archive.Contents, f *archive.File, r io.Reader) (Digest, error) {
	l.now.Entry = f.Name
	l.report()
	if diff, chain, known := l.expect(c, f.Name); known {
		if diff == "" {
			return "", fmt.Errorf("no image of this archive uses it: %w", errdef.ErrInvalid)
		}
		if ly, ok := l.s.snaps.Hold(diff, chain); ok {
			l.keep(ly)
			return diff, nil
		}
	}
	ly, err := l.unpack(ctx, r)
	if err != nil {
		return "", fmt.Errorf("unpack layer: %w", err)
	}
	l.keep(ly)
	l.now.Layers++
	l.report()
	return ly.DiffID, nil
}

func (l *loading) keep(ly *snapshot.Layer) {
	l.held = append(l.held, ly)
	if l.unpacked[ly.DiffID] == nil {
		l.unpacked[ly.DiffID] = ly
	}
}

// unpack is the pipeline of one layer, with the stages of a pull.
func (l *loading) unpack(ctx context.Context, r io.Reader) (*snapshot.Layer, error) {
	read := readAhead(r)
	defer read.Close()
	tar, err := layer.Decompress(read)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	unpacked := readAhead(tar)
	defer unpacked.Close()
	return l.s.snaps.UnpackUnknown(ctx, &reported{r: unpacked, packed: read, l: l})
}

// reported ends only when the packed stream, too, has ended well, and tells on the way
// how far it is.
type reported struct {
	r, packed io.Reader
	l         *loading
	since     int
}

// Read implements io.Reader.
func (p *reported) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if p.since += n; p.since >= loadStep {
		p.since = 0
		p.l.report()
	}
	if errors.Is(err, io.EOF) {
		if _, e := io.Copy(io.Discard, p.packed); e != nil {
			return n, e
		}
	}
	return n, err
}

// expect says what is known beforehand of a layer, when the documents came first: what
// it unpacks to and in which chain, or, with an empty digest, that nobody uses it.
func (l *loading) expect(c *archive.Contents, name string) (diff, chain Digest, known bool) {
	if n := c.Documents(); n != l.planned {
		plans, err := plansOf(c)
		l.plans, l.planned, l.whole = plans, n, err == nil
	}
	if !l.whole || !isLayout(c) {
		return "", "", false // a docker-archive may have links yet to come
	}
	for _, p := range l.plans {
		chains := chainIDs(p.config.RootFS.DiffIDs)
		for i, file := range p.layers {
			if file == name {
				return p.config.RootFS.DiffIDs[i], chains[i], true
			}
		}
	}
	return "", "", true
}

// insert makes the images known, all or none.
func (l *loading) insert(ctx context.Context, c *archive.Contents, plans []plan) (images []Loaded, err error) {
	var made []*entry
	defer func() {
		for _, e := range made {
			err = errors.Join(err, l.s.snaps.Drop(e.layers))
		}
	}()
	for _, p := range plans {
		e, err := l.entry(ctx, c, p)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", p.title(), err)
		}
		made = append(made, e)
	}
	var fresh []ID
	for i, p := range plans {
		e := made[0]
		made = made[1:] // its holds pass on
		isNew := !l.s.hasID(e.rec.ID)
		if err := l.s.insertNamed(e, p); err != nil {
			err = fmt.Errorf("image %s: %w", p.title(), err)
			for _, id := range fresh {
				err = errors.Join(err, l.s.Remove(context.WithoutCancel(ctx), string(id)))
			}
			return nil, err
		}
		if isNew {
			fresh = append(fresh, e.rec.ID)
		}
		images = append(images, plans[i].loaded())
	}
	return merge(images), nil
}

// hasID tells whether an image is here.
func (s *Store) hasID(id ID) bool { return s.now.Load().byID[id] != nil }

// insertNamed makes an image known under all its names, or by its ID alone.
func (s *Store) insertNamed(e *entry, p plan) error {
	names := p.names
	if len(names) == 0 {
		names = []reference{{}}
	}
	if err := s.insert(e, names[0], p.top); err != nil {
		return err
	}
	for _, r := range names[1:] {
		if ok, err := s.addNames(e.rec.ID, r, p.top); err != nil {
			return err
		} else if !ok {
			return fmt.Errorf("it was removed meanwhile: %w", errdef.ErrRetry)
		}
	}
	return nil
}

// merge joins the entries of one image, which a layout has once per name.
func merge(all []Loaded) (images []Loaded) {
	at := map[ID]int{}
	for _, x := range all {
		i, ok := at[x.ID]
		if !ok {
			i = len(images)
			at[x.ID] = i
			images = append(images, Loaded{ID: x.ID})
		}
		images[i].Names = append(images[i].Names, x.Names...)
	}
	return images
}

// entry puts an image together from what was unpacked; its layers are published and
// held.
func (l *loading) entry(ctx context.Context, c *archive.Contents, p plan) (*entry, error) {
	e, err := newEntry(record{Version: recordVersion, ID: p.id, Raw: p.raw}, nil)
	if err != nil {
		return nil, err
	}
	chains := chainIDs(e.image.DiffIDs)
	for i, name := range p.layers {
		var ly *snapshot.Layer
		f, err := c.Layer(name)
		if err == nil {
			ly, err = l.fit(ctx, f, [2]Digest{e.image.DiffIDs[i], chains[i]})
		}
		if err == nil && i < len(p.sizes) && p.sizes[i] != f.Size {
			err = fmt.Errorf("%q has %d bytes, the manifest says %d: %w", name, f.Size, p.sizes[i], errdef.ErrInvalid)
		}
		if ly != nil {
			e.layers = append(e.layers, ly)
			e.rec.Layers = append(e.rec.Layers, ly.Name)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("layer %d: %w", i, err), l.s.snaps.Drop(e.layers))
		}
	}
	if err := l.s.snaps.Publish(ctx, e.layers); err != nil {
		return nil, errors.Join(err, l.s.snaps.Drop(e.layers))
	}
	return e, nil
}

// fit gives a layer for one place in one image, held once. A layer that takes something
// from those below is good for one chain only: for another it is unpacked again.
func (l *loading) fit(ctx context.Context, f *archive.File, ids [2]Digest) (*snapshot.Layer, error) {
	if f.Diff != ids[0] {
		return nil, fmt.Errorf("%q unpacks to %s, the configuration says %s: %w", f.Name, f.Diff, ids[0], errdef.ErrInvalid)
	}
	if ly, ok := l.s.snaps.Hold(ids[0], ids[1]); ok {
		return ly, nil
	}
	ly := l.unpacked[f.Diff]
	if ly == nil {
		return nil, fmt.Errorf("%q is gone: %w", f.Name, errdef.ErrRetry)
	}
	if ly.Chain == "" || ly.Chain == ids[1] {
		l.s.snaps.Retain([]*snapshot.Layer{ly})
		return ly, nil
	}
	tar, err := l.s.snaps.OpenTar(ly)
	if err != nil {
		return nil, fmt.Errorf("%q stands on different layers in two images; load them one by one: %w", f.Name, err)
	}
	defer tar.Close()
	return l.s.snaps.Unpack(ctx, ids[0], ids[1], tar)
}
