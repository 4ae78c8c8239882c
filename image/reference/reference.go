// Package reference reads image names as people and Kubernetes write them, into one form:
// "busybox" is docker.io/library/busybox.
//
// It adds no tag where there is none: who needs "latest" says so. It is pure: it does no
// input or output and starts no goroutine.
package reference

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

var (
	hostPattern = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?$`)
	pathPattern = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	idPattern   = regexp.MustCompile(`^[a-f0-9]{64}$`)
)

// Reference is a normalised image name.
type Reference struct {
	Host, Path string // "docker.io", "library/busybox"; a valid reference has both
	Tag        string
	Digest     digest.Digest
}

// Name is the reference without tag and digest.
func (r Reference) Name() string { return r.Host + "/" + r.Path }

// String writes the reference with the tag and the digest that it has.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// Parse reads a reference and checks all its parts.
func Parse(s string) (Reference, error) {
	bad := func(why string) (Reference, error) {
		return Reference{}, fmt.Errorf("image reference %.300q: %s: %w", s, why, errdef.ErrInvalid)
	}
	rest, dig, hasDigest := strings.Cut(s, "@")
	var r Reference
	if hasDigest {
		d, err := content.Parse(dig)
		if err != nil {
			return Reference{}, fmt.Errorf("image reference %.300q: %w", s, err)
		}
		r.Digest = d
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, r.Tag = rest[:i], rest[i+1:]
		if !tagPattern.MatchString(r.Tag) {
			return bad("malformed tag")
		}
	}
	r.Host, r.Path = split(rest)
	switch {
	case !hostPattern.MatchString(r.Host):
		return bad("malformed registry host")
	case !pathPattern.MatchString(r.Path):
		return bad("malformed repository name")
	case len(r.Host)+len(r.Path) > 254:
		return bad("name is longer than 255 characters")
	case idPattern.MatchString(rest):
		return bad("name looks like an image id")
	}
	return r, nil
}

// ValidHost says whether s, already in lower case, is a registry as it stands at the
// beginning of a full name: with a dot or a port, or localhost.
func ValidHost(s string) bool {
	return hostPattern.MatchString(s) && isHost(s) && s == strings.ToLower(s) && s != "index.docker.io"
}

// isHost tells a registry from the first part of a path.
func isHost(first string) bool {
	return strings.ContainsAny(first, ".:") || first == "localhost" || strings.ToLower(first) != first
}

func split(name string) (host, path string) {
	first, rest, ok := strings.Cut(name, "/")
	if !ok || !isHost(first) {
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
