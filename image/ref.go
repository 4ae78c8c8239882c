package image

import (
	"regexp"

	ref "github.com/cri-runtime/cri-runtime/image/reference"
)

// hexPattern is an image's ID or the beginning of one.
var hexPattern = regexp.MustCompile(`^[a-f0-9]{4,64}$`)

// reference is a normalised image name with a tag or a digest, never both.
type reference struct {
	host, path string
	tag        string
	digest     Digest
}

func (r reference) name() string { return r.host + "/" + r.path }

// String writes the reference as it stands in an image's RepoTags or RepoDigests.
func (r reference) String() string {
	if r.digest != "" {
		return r.name() + "@" + string(r.digest)
	}
	return r.name() + ":" + r.tag
}

// version is what a registry is asked for.
func (r reference) version() string {
	if r.digest != "" {
		return string(r.digest)
	}
	return r.tag
}

// parseRef reads a reference: "busybox" is docker.io/library/busybox:latest. A tag beside
// a digest is dropped, as Docker and containerd do: the digest says it all, and nobody
// would check the tag.
func parseRef(s string) (reference, error) {
	p, err := ref.Parse(s)
	if err != nil {
		return reference{}, err
	}
	r := reference{host: p.Host, path: p.Path, tag: p.Tag, digest: p.Digest}
	if r.digest != "" {
		r.tag = ""
	} else if r.tag == "" {
		r.tag = "latest"
	}
	return r, nil
}
