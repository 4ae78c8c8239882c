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
	var why string
	if domain, ok := strings.CutPrefix(s, "*."); ok {
		why = checkDomain(domain)
	} else {
		why = checkName(s)
	}
	if why != "" {
		return fmt.Errorf("no image is in this scope: %s: %w", why, errdef.ErrInvalid)
	}
	return nil
}

func checkDomain(domain string) string {
	if domain == "" || domain != strings.ToLower(domain) || strings.ContainsAny(domain, "/:@*[]") {
		return "want *.DOMAIN, in lower case, without a port"
	}
	if _, err := reference.Parse(domain + "/x"); err != nil {
		return "malformed domain"
	}
	return ""
}

// checkName says what is wrong with a registry, namespace, repository or image.
func checkName(s string) string {
	host, path, _ := strings.Cut(s, "/")
	if !reference.ValidHost(host) {
		return "want a full name that begins with the registry, such as docker.io/library/busybox"
	}
	if host == s {
		return ""
	}
	r, err := reference.Parse(s)
	switch {
	case err != nil:
		return err.Error()
	case r.Tag != "" && r.Digest != "":
		return "want a tag or a digest, not both"
	case r.Tag == "" && r.Digest == "" && host == "docker.io" && !strings.Contains(path, "/"):
		return "" // a namespace, which Parse takes for an official image
	case r.String() != s:
		return "its full name is " + r.String()
	}
	return ""
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
