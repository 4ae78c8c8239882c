package image

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

var (
	hostPattern = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?$`)
	pathPattern = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	hexPattern  = regexp.MustCompile(`^[a-f0-9]{4,64}$`)
)

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

// parseRef reads a reference as people and Kubernetes write it: "busybox" is
// docker.io/library/busybox:latest. A tag beside a digest is dropped, as Docker and
// containerd do: the digest says it all, and nobody would check the tag.
func parseRef(s string) (reference, error) {
	bad := func(why string) (reference, error) {
		return reference{}, fmt.Errorf("image reference %.300q: %s: %w", s, why, errdef.ErrInvalid)
	}
	rest, dig, hasDigest := strings.Cut(s, "@")
	var r reference
	if hasDigest {
		d, err := content.Parse(dig)
		if err != nil {
			return reference{}, fmt.Errorf("image reference %.300q: %w", s, err)
		}
		r.digest = d
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, r.tag = rest[:i], rest[i+1:]
		if !tagPattern.MatchString(r.tag) {
			return bad("malformed tag")
		}
	}
	r.host, r.path = splitHost(rest)
	switch {
	case !hostPattern.MatchString(r.host):
		return bad("malformed registry host")
	case !pathPattern.MatchString(r.path):
		return bad("malformed repository name")
	case len(r.host)+len(r.path) > 254:
		return bad("name is longer than 255 characters")
	case len(rest) == 64 && hexPattern.MatchString(rest):
		return bad("name looks like an image id")
	}
	if r.digest != "" {
		r.tag = ""
	} else if r.tag == "" {
		r.tag = "latest"
	}
	return r, nil
}

// splitHost tells a registry from the first part of a path: it has a dot or a port, or
// is localhost.
func splitHost(name string) (host, path string) {
	first, rest, ok := strings.Cut(name, "/")
	if !ok || !strings.ContainsAny(first, ".:") && first != "localhost" && strings.ToLower(first) == first {
		host, path = "docker.io", name
	} else {
		host, path = strings.ToLower(first), rest
	}
	if host == "index.docker.io" {
		host = "docker.io"
	}
	if host == "docker.io" && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	return host, path
}
