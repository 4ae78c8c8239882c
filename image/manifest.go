package image

import (
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/cpu"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	// maxLayers keeps mounts possible on kernels before 6.7, where all paths share a
	// page of mount options; the kernel's own bound is 500. Docker's is the same 127.
	maxLayers = 127
	// maxIndex bounds indexes of indexes.
	maxIndex = 3
)

const (
	typeIndex        = "application/vnd.oci.image.index.v1+json"
	typeList         = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeManifest     = "application/vnd.oci.image.manifest.v1+json"
	typeManifestV2   = "application/vnd.docker.distribution.manifest.v2+json"
	typeConfig       = "application/vnd.oci.image.config.v1+json"
	typeConfigDocker = "application/vnd.docker.container.image.v1+json"
)

// layerTypes are the media types of layers, without the compression: the stream's
// first bytes say that better.
var layerTypes = []string{
	"application/vnd.oci.image.layer.v1.tar",
	"application/vnd.oci.image.layer.nondistributable.v1.tar",
	"application/vnd.docker.image.rootfs.diff.tar",
	"application/vnd.docker.image.rootfs.foreign.diff.tar",
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
}

func (p platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

type descriptor struct {
	MediaType string    `json:"mediaType"`
	Digest    Digest    `json:"digest"`
	Size      int64     `json:"size"`
	Platform  *platform `json:"platform"`
}

type manifest struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	ArtifactType  string          `json:"artifactType"`
	Config        *descriptor     `json:"config"`
	Layers        []descriptor    `json:"layers"`
	Manifests     []descriptor    `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"` // schema 1
}

// parseManifest refuses documents that could be read in two ways (CVE-2021-41190):
// whoever signed or scanned the one reading must not get the other.
func parseManifest(doc registry.Document) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(doc.Body, &m); err != nil {
		return nil, fmt.Errorf("decode manifest: %w: %w", err, errdef.ErrInvalid)
	}
	if m.SchemaVersion == 1 || m.FSLayers != nil {
		return nil, fmt.Errorf("manifest is of Docker schema 1, which nobody can verify; push the image again with a newer client: %w", errdef.ErrInvalid)
	}
	switch doc.MediaType {
	case "", "application/json", "application/octet-stream", "text/plain": // a file server
	default:
		if m.MediaType == "" {
			m.MediaType = doc.MediaType
		}
		if m.MediaType != doc.MediaType {
			return nil, fmt.Errorf("manifest calls itself %.100q but was served as %.100q: %w", m.MediaType, doc.MediaType, errdef.ErrInvalid)
		}
	}
	switch m.MediaType {
	case typeIndex, typeList:
		if m.Config != nil || len(m.Layers) > 0 {
			return nil, fmt.Errorf("document is index and manifest at once: %w", errdef.ErrInvalid)
		}
	case typeManifest, typeManifestV2:
		if m.Manifests != nil {
			return nil, fmt.Errorf("document is manifest and index at once: %w", errdef.ErrInvalid)
		}
		return &m, m.check()
	default:
		return nil, fmt.Errorf("manifest of media type %.100q is not supported: %w", m.MediaType, errdef.ErrInvalid)
	}
	return &m, nil
}

func (m *manifest) isIndex() bool { return m.MediaType == typeIndex || m.MediaType == typeList }

// check looks at a manifest's descriptors.
func (m *manifest) check() error {
	if m.Config == nil {
		return fmt.Errorf("manifest without config: %w", errdef.ErrInvalid)
	}
	if t := m.Config.MediaType; t != typeConfig && t != typeConfigDocker {
		if m.ArtifactType != "" {
			t = m.ArtifactType
		}
		return fmt.Errorf("this is an artifact of type %.100q, not a container image: %w", t, errdef.ErrInvalid)
	}
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("image has %d layers, at most %d can be mounted: %w", len(m.Layers), maxLayers, errdef.ErrInvalid)
	}
	for _, d := range append([]descriptor{*m.Config}, m.Layers...) {
		if _, err := content.Parse(string(d.Digest)); err != nil {
			return err
		}
		if d.Size < 0 {
			return fmt.Errorf("blob %s has a negative size: %w", d.Digest, errdef.ErrInvalid)
		}
	}
	if m.Config.Size > registry.MaxDocument {
		return fmt.Errorf("config of %d bytes is larger than %d: %w", m.Config.Size, registry.MaxDocument, errdef.ErrInvalid)
	}
	for _, l := range m.Layers {
		base, suffix, _ := strings.Cut(l.MediaType, "+")
		base = strings.TrimSuffix(strings.TrimSuffix(base, ".gzip"), ".zstd")
		if !slices.Contains(layerTypes, base) || suffix != "" && suffix != "gzip" && suffix != "zstd" {
			return fmt.Errorf("layer of media type %.100q is not supported: %w", l.MediaType, errdef.ErrInvalid)
		}
	}
	return nil
}

// choose picks the manifest for this machine from an index.
func choose(ds []descriptor) (descriptor, error) {
	best, rank := -1, 0
	var have []string
	for i, d := range ds {
		r := 1 // says nothing about its platform: the config will
		if d.Platform != nil {
			have = append(have, d.Platform.String())
			r = platformRank(*d.Platform)
		}
		if d.MediaType != "" && !slices.Contains([]string{typeIndex, typeList, typeManifest, typeManifestV2}, d.MediaType) {
			continue
		}
		if r > rank {
			best, rank = i, r
		}
	}
	if best < 0 {
		return descriptor{}, fmt.Errorf("image has no manifest for linux/%s, only for %.300s: %w", runtime.GOARCH, strings.Join(have, ", "), errdef.ErrNotFound)
	}
	d := ds[best]
	if _, err := content.Parse(string(d.Digest)); err != nil {
		return descriptor{}, err
	}
	return d, nil
}

// platformRank is 0 for what does not run here, and higher for the better fit: the
// highest level of the processor family that this processor has.
func platformRank(p platform) int {
	if p.OS != "linux" || p.Architecture != runtime.GOARCH {
		return 0
	}
	low, high := variants()
	if p.Variant == "" {
		return 2 + low
	}
	n, err := strconv.Atoi(strings.TrimPrefix(p.Variant, "v"))
	if err != nil || n < 1 || n > high {
		return 0
	}
	return 2 + n
}

// variants gives the level that an unnamed variant means, and the highest that runs here.
func variants() (low, high int) {
	switch runtime.GOARCH {
	case "amd64":
		x := cpu.X86
		switch {
		case !x.HasSSE42 || !x.HasPOPCNT:
			return 1, 1
		case !x.HasAVX2 || !x.HasBMI2 || !x.HasFMA:
			return 1, 2
		case !x.HasAVX512F || !x.HasAVX512BW || !x.HasAVX512CD || !x.HasAVX512DQ || !x.HasAVX512VL:
			return 1, 3
		}
		return 1, 4
	case "arm64":
		return 8, 8
	case "arm":
		return 7, 7
	}
	return 0, 0
}

// ociConfig is the part of an image's configuration that we use.
type ociConfig struct {
	platform
	Created *time.Time `json:"created"`
	Config  struct {
		User         string              `json:"User"`
		ExposedPorts map[string]struct{} `json:"ExposedPorts"`
		Env          []string            `json:"Env"`
		Entrypoint   []string            `json:"Entrypoint"`
		Cmd          []string            `json:"Cmd"`
		Volumes      map[string]struct{} `json:"Volumes"`
		WorkingDir   string              `json:"WorkingDir"`
		Labels       map[string]string   `json:"Labels"`
		StopSignal   string              `json:"StopSignal"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []Digest `json:"diff_ids"`
	} `json:"rootfs"`
}

func parseConfig(data []byte) (*ociConfig, error) {
	var c ociConfig
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("decode image config: %w: %w", err, errdef.ErrInvalid)
	}
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != runtime.GOARCH {
		return nil, fmt.Errorf("image is for %.100s, this is linux/%s: %w", c.platform, runtime.GOARCH, errdef.ErrInvalid)
	}
	for _, d := range c.RootFS.DiffIDs {
		if _, err := content.Parse(string(d)); err != nil {
			return nil, fmt.Errorf("image config: diff id: %w", err)
		}
	}
	return &c, nil
}

// plain gives the config as callers see it.
func (c *ociConfig) plain() Config {
	return Config{
		User: c.Config.User, Env: c.Config.Env, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd,
		WorkingDir: c.Config.WorkingDir, StopSignal: c.Config.StopSignal, Labels: c.Config.Labels,
		Volumes:      slices.Sorted(maps.Keys(c.Config.Volumes)),
		ExposedPorts: slices.Sorted(maps.Keys(c.Config.ExposedPorts)),
		OS:           c.OS, Arch: c.Architecture, Variant: c.Variant,
	}
}

// chainIDs names the stack up to each layer, as the image specification does.
func chainIDs(diffs []Digest) []Digest {
	chains := make([]Digest, len(diffs))
	for i, d := range diffs {
		chains[i] = d
		if i > 0 {
			chains[i] = digest.FromString(string(chains[i-1]) + " " + string(d))
		}
	}
	return chains
}
