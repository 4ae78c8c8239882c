package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/gzip"

	"github.com/cri-runtime/cri-runtime/image/archive"
	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// ArchiveFormat is the form in which Save writes images.
type ArchiveFormat string

// The formats.
const (
	FormatOCI     ArchiveFormat = "oci"      // an OCI layout, layers as they are stored: not compressed
	FormatOCIGzip ArchiveFormat = "oci-gzip" // an OCI layout, layers compressed, which takes two passes
	FormatDocker  ArchiveFormat = "docker"   // an OCI layout with Docker's manifest.json: what `docker save` writes since 25
)

// saved is an image on its way out.
type saved struct {
	*entry
	names []reference
}

// saving is one Save.
type saving struct {
	s      *Store
	w      *archive.Writer
	format ArchiveFormat
	packed map[Digest]outDescriptor // of layers, by diff ID
}

// outDescriptor, outManifest and outImage are what we write.
type outDescriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      Digest            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *outPlatform      `json:"platform,omitempty"`
}

type outPlatform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

type outManifest struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        *outDescriptor  `json:"config,omitempty"`
	Layers        []outDescriptor `json:"layers,omitzero"`
	Manifests     []outDescriptor `json:"manifests,omitzero"`
}

type outImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Save writes images as a tar archive, a stream that begins only when all of them were
// found. The configuration is written byte for byte, so that an image's ID survives; the
// manifest is a new one, and with it the digest that a registry knew the image by. Each
// layer is verified while it is written. Layers that are kept as directories cannot be
// saved: nobody can make the tar anew that they came from.
func (s *Store) Save(ctx context.Context, w io.Writer, refs []string, format ArchiveFormat) error {
	if err := s.save(ctx, w, refs, format); err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	return nil
}

func (s *Store) save(ctx context.Context, w io.Writer, refs []string, format ArchiveFormat) (err error) {
	if !slices.Contains([]ArchiveFormat{FormatOCI, FormatOCIGzip, FormatDocker}, format) {
		return fmt.Errorf("format %.40q is none of oci, oci-gzip, docker: %w", format, errdef.ErrInvalid)
	}
	images, err := s.hold(refs)
	defer func() {
		for _, i := range images {
			err = errors.Join(err, s.snaps.Drop(i.layers))
		}
	}()
	if err != nil {
		return err
	}
	for _, i := range images {
		for _, l := range i.layers {
			if l.Format() != snapshot.EROFS {
				return fmt.Errorf("image %s: layer %s is kept as a directory, of which its tar cannot be made again; "+
					"pull the image on a node with the EROFS layer store: %w: %w", i.rec.ID, l.DiffID, errors.ErrUnsupported, errdef.ErrInvalid)
			}
		}
	}
	v := &saving{s, archive.NewWriter(w), format, map[Digest]outDescriptor{}}
	if err := v.images(ctx, images); err != nil {
		return err
	}
	return v.w.Close()
}

// hold finds the images, each once with all the names asked for, and holds their layers.
func (s *Store) hold(refs []string) (images []*saved, err error) {
	if len(refs) == 0 {
		return nil, fmt.Errorf("no image is named: %w", errdef.ErrInvalid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		img, err := s.Resolve(ref)
		if err != nil {
			return images, err
		}
		i := slices.IndexFunc(images, func(x *saved) bool { return x.rec.ID == img.ID })
		if i < 0 {
			i = len(images)
			e := s.images[img.ID]
			s.snaps.Retain(e.layers)
			images = append(images, &saved{entry: e})
		}
		// A digest is that of a manifest that this archive does not have.
		r, err := parseRef(ref)
		if x := images[i]; err == nil && slices.Contains(img.RepoTags, r.String()) && !slices.Contains(x.names, r) {
			x.names = append(x.names, r)
		}
	}
	return images, nil
}

func (v *saving) images(ctx context.Context, images []*saved) error {
	for _, d := range []string{"blobs/", "blobs/sha256/"} {
		if err := v.w.Dir(d); err != nil {
			return err
		}
	}
	if err := v.document(fileLayout, map[string]string{"imageLayoutVersion": "1.0.0"}); err != nil {
		return err
	}
	index := outManifest{SchemaVersion: 2, MediaType: typeIndex}
	var docker []outImage
	for _, i := range images {
		m, err := v.image(ctx, i)
		if errors.Is(err, snapshot.ErrDamaged) {
			err = errors.Join(err, v.s.Verify(ctx, string(i.rec.ID))) // marks it
		}
		if err != nil {
			return fmt.Errorf("image %s: %w", i.rec.ID, err)
		}
		body, err := json.Marshal(m)
		if err != nil {
			return fmt.Errorf("encode manifest: %w", err)
		}
		d := outDescriptor{MediaType: typeManifest, Digest: digestOf(body), Size: int64(len(body)),
			Platform: &outPlatform{Architecture: i.image.Config.Arch, OS: i.image.Config.OS, Variant: i.image.Config.Variant}}
		if d.Platform.OS == "" || d.Platform.Architecture == "" {
			d.Platform = nil // the configuration does not say
		}
		if err := v.w.Bytes(archive.Blob(d.Digest), body); err != nil {
			return err
		}
		index.Manifests = append(index.Manifests, d.named(i.names)...)
		docker = append(docker, m.docker(i.names))
	}
	if err := v.document(fileIndex, index); err != nil || v.format != FormatDocker {
		return err
	}
	return v.document(fileManifest, docker)
}

// named gives a descriptor once for each name, as Docker and containerd do.
func (d outDescriptor) named(names []reference) (all []outDescriptor) {
	for _, r := range names {
		d.Annotations = map[string]string{annotationName: r.String(), annotationRef: r.tag}
		all = append(all, d)
	}
	if len(all) == 0 {
		all = append(all, d)
	}
	return all
}

func (m outManifest) docker(names []reference) outImage {
	o := outImage{Config: archive.Blob(m.Config.Digest), Layers: []string{}}
	for _, r := range names {
		o.RepoTags = append(o.RepoTags, r.String())
	}
	for _, l := range m.Layers {
		o.Layers = append(o.Layers, archive.Blob(l.Digest))
	}
	return o
}

func digestOf(b []byte) Digest { return Digest(fmt.Sprintf("sha256:%x", sha256.Sum256(b))) }

func (v *saving) document(name string, doc any) error {
	body, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return v.w.Bytes(name, body)
}

// image writes the blobs of an image and gives its manifest.
func (v *saving) image(ctx context.Context, i *saved) (outManifest, error) {
	m := outManifest{SchemaVersion: 2, MediaType: typeManifest, Layers: []outDescriptor{},
		Config: &outDescriptor{MediaType: typeConfig, Digest: Digest(i.rec.ID), Size: int64(len(i.rec.Raw))}}
	if err := v.w.Bytes(archive.Blob(m.Config.Digest), i.rec.Raw); err != nil {
		return m, err
	}
	for _, l := range i.layers {
		d, ok := v.packed[l.DiffID]
		if !ok {
			var err error
			if d, err = v.layer(ctx, l); err != nil {
				return m, fmt.Errorf("layer %s: %w", l.DiffID, err)
			}
			v.packed[l.DiffID] = d
		}
		m.Layers = append(m.Layers, d)
	}
	return m, nil
}

// layer writes a layer. An entry of an archive begins with its size, and nothing is
// kept on disk for it: to be compressed, a layer is read twice.
func (v *saving) layer(ctx context.Context, l *snapshot.Layer) (outDescriptor, error) {
	d := outDescriptor{MediaType: layerTypes[0], Digest: l.DiffID, Size: l.EROFS.Tar}
	put := copyAll
	if v.format == FormatOCIGzip {
		h, n := sha256.New(), counter(0)
		if err := v.open(ctx, l, io.MultiWriter(h, &n), compress); err != nil {
			return d, err
		}
		d.MediaType += "+gzip"
		d.Digest, d.Size = Digest(fmt.Sprintf("sha256:%x", h.Sum(nil))), int64(n)
		put = compress
	}
	return d, v.w.File(archive.Blob(d.Digest), d.Size, func(w io.Writer) error { return v.open(ctx, l, w, put) })
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func copyAll(w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(w, r, make([]byte, chunkSize))
	return err
}

func compress(w io.Writer, r io.Reader) error {
	z := gzip.NewWriter(w)
	if err := copyAll(z, r); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	return z.Close()
}

// open reads a layer's tar, verified on the way, into w.
func (v *saving) open(ctx context.Context, l *snapshot.Layer, w io.Writer, put func(io.Writer, io.Reader) error) error {
	f, err := v.s.snaps.OpenTar(l)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := content.Verify(&cancelled{ctx, f}, l.DiffID, l.EROFS.Tar)
	if err != nil {
		return err
	}
	err = put(w, r)
	if errors.Is(err, content.ErrMismatch) {
		return fmt.Errorf("%w: %w", snapshot.ErrDamaged, err)
	}
	return err
}

// cancelled ends with its context.
type cancelled struct {
	ctx context.Context //nolint:containedctx // of one stream: a Reader has no other place for it
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, fmt.Errorf("read layer: %w", context.Cause(c.ctx))
	}
	return c.r.Read(p)
}
