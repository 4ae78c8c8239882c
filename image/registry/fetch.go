package registry

import (
	"context"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// acceptable are the media types asked for. Schema 1 is among them on purpose nowhere:
// a registry that has nothing else says so by 404 or sends it anyway.
var acceptable = strings.Join([]string{
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.v2+json",
}, ", ")

// Manifest fetches a manifest or index by tag or digest. What is asked for by digest is
// verified.
func (s *Session) Manifest(ctx context.Context, ref string) (Document, error) {
	q := ask{what: "get manifest " + s.name(ref), need: canResolve}
	if strings.Contains(ref, ":") { // a digest has one, a tag cannot
		q.need, q.digest = canPull, digest.Digest(ref)
	}
	var doc Document
	err := s.persist(ctx, q, func(h *host) error {
		resp, err := s.do(ctx, h, request{http.MethodGet, "manifests/" + ref, http.Header{"Accept": {acceptable}}})
		if err != nil {
			return err
		}
		defer closeBody(resp)
		if resp.StatusCode != http.StatusOK {
			return h.statusError(resp)
		}
		if err := genuine(resp); err != nil {
			return err
		}
		doc.MediaType = mediaType(resp)
		doc.Body, err = readBounded(resp.Body, MaxDocument)
		if err == nil && q.digest != "" {
			err = content.Check(doc.Body, q.digest)
		}
		return err
	})
	if err != nil {
		return Document{}, err
	}
	return doc, nil
}

// Digest asks what a tag stands for, without transferring it: registries with a quota
// count only transfers. It is an answer from the registry, verified by nothing.
func (s *Session) Digest(ctx context.Context, tag string) (digest.Digest, error) {
	var d digest.Digest
	err := s.each(ctx, ask{what: "resolve " + s.name(tag), need: canResolve}, func(h *host) error {
		resp, err := s.do(ctx, h, request{http.MethodHead, "manifests/" + tag, http.Header{"Accept": {acceptable}}})
		if err != nil {
			return err
		}
		defer closeBody(resp)
		if resp.StatusCode != http.StatusOK {
			return h.statusError(resp)
		}
		d = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if d.Validate() != nil {
			return fmt.Errorf("answer without digest: %w", errdef.ErrInvalid)
		}
		return nil
	})
	return d, err
}

// name writes a tag or digest of the repository as people do.
func (s *Session) name(ref string) string {
	sep := ":"
	if strings.Contains(ref, ":") {
		sep = "@"
	}
	return s.repo.Host + "/" + s.repo.Path + sep + ref
}

// genuine refuses what something between us and the registry made of the answer.
func genuine(resp *http.Response) error {
	if mt := mediaType(resp); mt == "text/html" {
		return fmt.Errorf("answered with a web page, as proxies and login portals do: %w", errdef.ErrInvalid)
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fmt.Errorf("answered in content encoding %s, which nobody asked for: %w", quote(e), errdef.ErrInvalid)
	}
	return nil
}

func mediaType(resp *http.Response) string {
	mt, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return mt
}
