package policy

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	typePayload  = "application/vnd.dev.cosign.simplesigning.v1+json"
	annotation   = "dev.cosignproject.cosign/signature"
	payloadType  = "cosign container image signature"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeDocker   = "application/vnd.docker.distribution.manifest.v2+json"

	maxSignatures = 128
	maxPayload    = 256 << 10
)

// signature is a payload and what signs it; neither is believed yet.
type signature struct {
	payload, sig []byte
	of           digest.Digest // of the manifest that it is attached to
}

// signatures fetches the signatures of a candidate, each digest's once.
type signatures struct {
	fetch Fetcher
	of    []digest.Digest
	have  bool
	found []signature
	notes []string // why there are not more
}

// all gives the signatures. An error is one of the registry's.
func (s *signatures) all(ctx context.Context) ([]signature, error) {
	if s.have {
		return s.found, nil
	}
	for _, d := range s.of {
		if err := s.attached(ctx, d); err != nil {
			return nil, fmt.Errorf("get signatures of %s: %w", d, err)
		}
	}
	s.have = true
	return s.found, nil
}

func (s *signatures) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// attached reads the signatures where cosign puts them: the layers of the manifest that
// a tag made of the image's digest names.
func (s *signatures) attached(ctx context.Context, d digest.Digest) error {
	tag := strings.Replace(string(d), ":", "-", 1) + ".sig"
	body, err := s.fetch.Manifest(ctx, tag)
	if errors.Is(err, errdef.ErrNotFound) {
		s.note("there is no tag %s", tag)
		return nil
	} else if err != nil {
		return err
	}
	layers, err := parseAttachment(body)
	if err != nil {
		s.note("tag %s: %v", tag, err)
		return nil
	}
	for i, l := range layers {
		sig, err := base64.StdEncoding.DecodeString(l.Annotations[annotation])
		switch {
		case l.MediaType != typePayload:
			s.note("tag %s: layer %d is of type %.100q", tag, i, l.MediaType)
			continue
		case err != nil || len(sig) == 0:
			s.note("tag %s: layer %d has no signature that is base64", tag, i)
			continue
		case l.Size < 0 || l.Size > maxPayload:
			s.note("tag %s: layer %d has %d bytes", tag, i, l.Size)
			continue
		}
		payload, err := s.fetch.Blob(ctx, l.Digest, l.Size)
		if errors.Is(err, errdef.ErrNotFound) || errors.Is(err, content.ErrMismatch) {
			s.note("tag %s: layer %d: %v", tag, i, err)
			continue
		} else if err != nil {
			return err
		}
		s.found = append(s.found, signature{payload, sig, d})
	}
	return nil
}

type attachment struct {
	MediaType   string            `json:"mediaType"`
	Digest      digest.Digest     `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
}

// parseAttachment reads a manifest of signatures. It is believed in nothing: what counts
// is in the payloads.
func parseAttachment(body []byte) ([]attachment, error) {
	var m struct {
		MediaType string       `json:"mediaType"`
		Layers    []attachment `json:"layers"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("decode manifest: %w: %w", err, errdef.ErrInvalid)
	}
	if m.MediaType != "" && m.MediaType != typeManifest && m.MediaType != typeDocker {
		return nil, fmt.Errorf("manifest of media type %.100q: %w", m.MediaType, errdef.ErrInvalid)
	}
	if len(m.Layers) > maxSignatures {
		return nil, fmt.Errorf("%d signatures are more than %d: %w", len(m.Layers), maxSignatures, errdef.ErrExhausted)
	}
	for i, l := range m.Layers {
		if _, err := content.Parse(string(l.Digest)); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return m.Layers, nil
}

// payload is what a signature says: this manifest, under this name.
type payload struct {
	manifest digest.Digest
	name     string
}

// parsePayload reads the signed document, of which everything that is critical must be
// known (containers-signature(5) has the same form and rule).
func parsePayload(data []byte) (payload, error) {
	doc, err := decode(data)
	if err != nil {
		return payload{}, err
	}
	f := object("", doc)
	f.take("optional") // the signer's own words
	critical, _ := f.take("critical")
	c := object("critical", critical)
	if t := c.need("type"); t != payloadType && len(c.errs) == 0 {
		c.wrong("critical.type", fmt.Sprintf("%.60q is not %q", t, payloadType))
	}
	image, _ := c.take("image")
	i := object("critical.image", image)
	id, _ := c.take("identity")
	n := object("critical.identity", id)
	p := payload{manifest: digest.Digest(i.need("docker-manifest-digest")), name: n.need("docker-reference")}
	if err := errors.Join(f.done(), c.done(), i.done(), n.done()); err != nil {
		return payload{}, err
	}
	if _, err := content.Parse(string(p.manifest)); err != nil {
		return payload{}, fmt.Errorf("critical.image.docker-manifest-digest: %w", err)
	}
	return p, nil
}

// sigstore asks for one signature by one of the requirement's keys that is for this
// image and this name. The result says why there is none.
func (q requirement) sigstore(ctx context.Context, c Candidate, s *signatures) error {
	found, err := s.all(ctx)
	if err != nil {
		return &registryError{err}
	}
	why := slices.Clone(s.notes)
	for i, sig := range found {
		err := q.accepts(c, sig)
		if err == nil {
			return nil
		}
		why = append(why, fmt.Sprintf("signature %d: %v", i, err))
	}
	if len(why) > maxWhy {
		why = append(why[:maxWhy], "and more")
	}
	return fmt.Errorf("no signature is accepted: %.1000s", strings.Join(why, "; "))
}

// maxWhy bounds the reasons in a message.
const maxWhy = 6

func (q requirement) accepts(c Candidate, s signature) error {
	if !slices.ContainsFunc(q.keys, func(k key) bool { return k.verify(s.payload, s.sig) }) {
		return fmt.Errorf("it is by none of the %d keys: %w", len(q.keys), errdef.ErrInvalid)
	}
	p, err := parsePayload(s.payload)
	if err != nil {
		return fmt.Errorf("payload: %w", err)
	}
	if p.manifest != s.of {
		return fmt.Errorf("it is for the manifest %s, want %s: %w", p.manifest, s.of, errdef.ErrInvalid)
	}
	return q.identity.check(c, p.name)
}

// registryError is no verdict: the registry did not answer.
type registryError struct{ err error }

func (e *registryError) Error() string { return e.err.Error() }
func (e *registryError) Unwrap() error { return e.err }
