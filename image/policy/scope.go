package policy

import (
	"fmt"
	"strings"

	"github.com/cri-runtime/cri-runtime/image/reference"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// checkScope refuses scopes that no image is in: whoever wrote one believes in a
// protection that is not there.
func checkScope(s string) error {
	never := func(why string) error { return fmt.Errorf("no image is in this scope: %s: %w", why, errdef.ErrInvalid) }
	if domain, ok := strings.CutPrefix(s, "*."); ok {
		if domain == "" || domain != strings.ToLower(domain) || strings.ContainsAny(domain, "/:@*[]") {
			return never("want *.DOMAIN, in lower case, without a port")
		}
		if _, err := reference.Parse(domain + "/x"); err != nil {
			return never("malformed domain")
		}
		return nil
	}
	host, path, hasPath := strings.Cut(s, "/")
	if !reference.ValidHost(host) {
		return never("want a full name that begins with the registry, such as docker.io/library/busybox")
	}
	if !hasPath {
		return nil
	}
	r, err := reference.Parse(s)
	switch {
	case err != nil:
		return never(err.Error())
	case r.Tag != "" && r.Digest != "":
		return never("want a tag or a digest, not both")
	case r.String() != s && (r.Tag != "" || r.Digest != ""):
		return never("its full name is " + r.String())
	case r.Host == "docker.io" && !strings.Contains(path, "/"):
		return nil // a namespace, which Parse takes for an official image
	}
	return nil
}

// reference is the name under which the image was asked for.
func (c Candidate) reference() reference.Reference {
	r := reference.Reference{Host: c.Host, Path: c.Repository, Tag: c.Tag}
	if c.Tag == "" {
		r.Digest = c.Digest
	}
	return r
}

// scopes lists the scopes that an image is in, the most specific first: its reference,
// its repository, namespaces, registry, and wildcards of the registry's domains.
func scopes(r reference.Reference) []string {
	all := []string{r.String()}
	for name := r.Name(); ; {
		all = append(all, name)
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			break
		}
		name = name[:i]
	}
	if strings.HasPrefix(r.Host, "[") {
		return all
	}
	domain, _, _ := strings.Cut(r.Host, ":")
	for {
		_, rest, ok := strings.Cut(domain, ".")
		if !ok {
			return all
		}
		domain = rest
		all = append(all, "*."+domain)
	}
}

// find gives the requirements of an image and the scope that they come from.
func (r *rules) find(c Candidate) ([]requirement, string) {
	for _, s := range append(scopes(c.reference()), "") {
		if reqs, ok := r.docker[s]; ok {
			return reqs, fmt.Sprintf("scope %q", s)
		}
	}
	return r.standard, "the default"
}
