package image

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cri-runtime/cri-runtime/image/archive"
	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// The files that say what an archive holds, and annotations of index.json.
const (
	fileLayout   = "oci-layout"
	fileIndex    = "index.json"
	fileManifest = "manifest.json"

	annotationName = "io.containerd.image.name"          // a full reference; also Docker's
	annotationRef  = "org.opencontainers.image.ref.name" // a full reference, or a tag alone
)

// plan is an image of an archive, as its documents describe it.
type plan struct {
	id     ID
	raw    []byte // the configuration
	config *ociConfig
	layers []string // files, bottom first
	sizes  []int64  // of these, where the manifest says so
	names  []reference
	top    Digest // of what the names stand for; empty: there is no manifest
}

func (p plan) loaded() Loaded {
	l := Loaded{ID: p.id}
	for _, r := range p.names {
		l.Names = append(l.Names, r.String())
	}
	return l
}

func (p plan) title() string {
	if len(p.names) > 0 {
		return p.names[0].String()
	}
	return string(p.id)
}

func isLayout(c *archive.Contents) bool {
	_, err := c.Find(fileIndex)
	return err == nil
}

// plansOf reads the documents. A layout that is a docker-archive as well is read as a
// layout: it knows its manifests' digests.
func plansOf(c *archive.Contents) ([]plan, error) {
	var plans []plan
	var err error
	if isLayout(c) {
		plans, err = layoutPlans(c)
	} else if _, e := c.Find(fileManifest); e == nil {
		plans, err = dockerPlans(c)
	} else {
		return nil, fmt.Errorf("the archive has neither %s nor %s: %w", fileIndex, fileManifest, errdef.ErrInvalid)
	}
	if err == nil && len(plans) == 0 {
		err = fmt.Errorf("the archive has no image: %w", errdef.ErrInvalid)
	}
	return plans, err
}

func decodeDocument(c *archive.Contents, name string, v any) error {
	data, err := c.Document(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode %.300q: %w: %w", name, err, errdef.ErrInvalid)
	}
	return nil
}

// listed is an entry of index.json.
type listed struct {
	descriptor
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
}

func layoutPlans(c *archive.Contents) ([]plan, error) {
	var layout struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := decodeDocument(c, fileLayout, &layout); err != nil {
		return nil, err
	}
	if layout.Version != "1.0.0" {
		return nil, fmt.Errorf("OCI layout of version %.20q is not supported, want 1.0.0: %w", layout.Version, errdef.ErrInvalid)
	}
	var index struct {
		Manifests []listed `json:"manifests"`
	}
	if err := decodeDocument(c, fileIndex, &index); err != nil {
		return nil, err
	}
	var plans []plan
	var elsewhere []string
	for i, d := range index.Manifests {
		if d.Platform != nil && platformRank(*d.Platform) == 0 {
			elsewhere = append(elsewhere, d.Platform.String())
			continue
		}
		p, err := layoutPlan(c, d)
		if errors.Is(err, errNoImage) {
			continue // signatures and other artifacts travel with images
		} else if err != nil {
			return nil, fmt.Errorf("%s: manifests[%d]: %w", fileIndex, i, err)
		}
		plans = append(plans, p)
	}
	if len(plans) == 0 && len(elsewhere) > 0 {
		return nil, fmt.Errorf("the archive has only images for %.300s: %w", strings.Join(elsewhere, ", "), errdef.ErrNotFound)
	}
	return plans, nil
}

var errNoImage = errors.New("this is no image")

func layoutPlan(c *archive.Contents, d listed) (plan, error) {
	p := plan{top: d.Digest}
	m, err := layoutManifest(c, d.descriptor)
	if err != nil {
		return p, err
	}
	if p.names, err = layoutNames(d); err != nil {
		return p, err
	}
	for _, l := range m.Layers {
		p.layers, p.sizes = append(p.layers, archive.Blob(l.Digest)), append(p.sizes, l.Size)
	}
	p.id = ID(m.Config.Digest)
	return p, p.configure(c, archive.Blob(m.Config.Digest))
}

// layoutManifest finds the manifest for this machine.
func layoutManifest(c *archive.Contents, d descriptor) (*manifest, error) {
	for range maxIndex + 1 {
		if _, err := content.Parse(string(d.Digest)); err != nil {
			return nil, err
		}
		body, err := c.Document(archive.Blob(d.Digest)) // verified while it was read
		if err != nil {
			return nil, err
		}
		if d.Size != int64(len(body)) {
			return nil, fmt.Errorf("manifest %s has %d bytes, its descriptor says %d: %w", d.Digest, len(body), d.Size, errdef.ErrInvalid)
		}
		if isArtifact(body) {
			return nil, errNoImage
		}
		m, err := parseManifest(registry.Document{MediaType: d.MediaType, Body: body})
		if err != nil || !m.isIndex() {
			return m, err
		}
		if d, err = choose(m.Manifests); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("index within index, more than %d deep: %w", maxIndex, errdef.ErrInvalid)
}

// isArtifact tells whether a manifest is of something else than an image.
func isArtifact(body []byte) bool {
	var m struct {
		Config *struct {
			MediaType string `json:"mediaType"`
		} `json:"config"`
	}
	err := json.Unmarshal(body, &m)
	return err == nil && m.Config != nil && m.Config.MediaType != typeConfig && m.Config.MediaType != typeConfigDocker
}

// layoutNames reads an entry's names. A tag alone names no image.
func layoutNames(d listed) ([]reference, error) {
	name, isFull := d.Annotations[annotationName], true
	if name == "" {
		name = d.Annotations[annotationRef]
		isFull = strings.ContainsAny(name, "/:@")
	}
	if name == "" || !isFull {
		return nil, nil
	}
	r, err := parseRef(name)
	if err != nil {
		return nil, err
	}
	if r.digest != "" && r.digest != d.Digest {
		return nil, fmt.Errorf("it is called %s but is %s: %w", r, d.Digest, errdef.ErrInvalid)
	}
	return []reference{r}, nil
}

func dockerPlans(c *archive.Contents) ([]plan, error) {
	var images []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := decodeDocument(c, fileManifest, &images); err != nil {
		return nil, err
	}
	var plans []plan
	for i, m := range images {
		var p plan
		err := error(nil)
		for _, name := range m.Layers {
			p.layers = append(p.layers, path.Clean(name))
		}
		for _, tag := range m.RepoTags {
			r, e := parseRef(tag)
			if e == nil && r.digest != "" {
				e = fmt.Errorf("%s: a docker-archive has no manifest that a digest could be of: %w", r, errdef.ErrInvalid)
			}
			if err = errors.Join(err, e); !slices.Contains(p.names, r) {
				p.names = append(p.names, r)
			}
		}
		if err == nil {
			err = p.configure(c, path.Clean(m.Config))
		}
		if err != nil {
			return nil, fmt.Errorf("%s: [%d]: %w", fileManifest, i, err)
		}
		plans = append(plans, p)
	}
	return plans, nil
}

// configure reads the configuration, whose digest is the image's ID, and compares it
// with what else is known.
func (p *plan) configure(c *archive.Contents, file string) (err error) {
	if p.raw, err = c.Document(file); err != nil {
		return fmt.Errorf("image config: %w", err)
	}
	if p.id == "" {
		p.id = ID(fmt.Sprintf("sha256:%x", sha256.Sum256(p.raw)))
	}
	promised := strings.TrimPrefix(strings.TrimSuffix(path.Base(file), ".json"), "sha256:")
	if len(promised) == 64 && hexPattern.MatchString(promised) && string(p.id) != "sha256:"+promised {
		return fmt.Errorf("image config %.300q is %s: %w", file, p.id, errdef.ErrInvalid)
	}
	if p.config, err = parseConfig(p.raw); err != nil {
		return err
	}
	if got, want := len(p.layers), len(p.config.RootFS.DiffIDs); got != want {
		return fmt.Errorf("image %s has %d layers, its configuration says %d: %w", p.id, got, want, errdef.ErrInvalid)
	}
	if len(p.layers) > maxLayers {
		return fmt.Errorf("image has %d layers, at most %d can be mounted: %w", len(p.layers), maxLayers, errdef.ErrInvalid)
	}
	return nil
}
