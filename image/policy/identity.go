package policy

import (
	"fmt"
	"strings"

	"github.com/cri-runtime/cri-runtime/image/reference"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

type identityKind string

const (
	matchExact             identityKind = "matchExact"
	matchRepoDigestOrExact identityKind = "matchRepoDigestOrExact"
	matchRepository        identityKind = "matchRepository"
	exactReference         identityKind = "exactReference"
	exactRepository        identityKind = "exactRepository"
	remapIdentity          identityKind = "remapIdentity"
)

// identity says which names a signature may be about.
type identity struct {
	kind   identityKind
	exact  reference.Reference // of exactReference and exactRepository
	prefix string              // of remapIdentity
	signed string              // what stands in the prefix' place in signatures
}

func parseIdentity(path string, v any) (identity, error) {
	f := object(path, v)
	id := identity{kind: identityKind(f.need("type"))}
	switch id.kind {
	case matchExact, matchRepoDigestOrExact, matchRepository:
	case exactReference:
		id.exact = f.name("dockerReference")
		if len(f.errs) == 0 && (id.exact.Tag == "") == (id.exact.Digest == "") {
			f.wrong(f.at("dockerReference"), "want a name with a tag or with a digest")
		}
	case exactRepository:
		id.exact = f.name("dockerRepository")
		if id.exact.Tag != "" || id.exact.Digest != "" {
			f.wrong(f.at("dockerRepository"), "want a name without tag and digest")
		}
	case remapIdentity:
		id.prefix, id.signed = f.prefix("prefix"), f.prefix("signedPrefix")
	default:
		if len(f.errs) == 0 {
			f.wrong(f.at("type"), fmt.Sprintf("%.60q is not known", id.kind))
		}
		f.m = nil
	}
	return id, f.done()
}

// name gives a member that is a full reference.
func (f *fields) name(member string) reference.Reference {
	s := f.need(member)
	if s == "" {
		return reference.Reference{}
	}
	r, err := reference.Parse(s)
	if err != nil {
		f.errs = append(f.errs, fmt.Errorf("%s: %w", f.at(member), err))
	}
	return r
}

// prefix gives a member that is a registry, a namespace or a repository.
func (f *fields) prefix(member string) string {
	s := f.need(member)
	if s == "" {
		return ""
	}
	if r, err := reference.Parse(s + "/x/x"); err != nil || r.String() != s+"/x/x" {
		f.wrong(f.at(member), "want a registry, a namespace or a repository in its full form")
	}
	return s
}

// check compares the name that a signature is about with the image's.
func (id identity) check(c Candidate, signedName string) error {
	signed, err := reference.Parse(signedName)
	if err != nil {
		return fmt.Errorf("signed name: %w", err)
	}
	want := c.reference()
	repository := false // the repository is enough
	switch id.kind {
	case matchExact:
	case matchRepoDigestOrExact:
		repository = want.Tag == ""
	case matchRepository:
		repository = true
	case exactReference:
		want = id.exact
	case exactRepository:
		want, repository = id.exact, true
	case remapIdentity:
		if want, err = id.remap(want); err != nil {
			return err
		}
		repository = want.Tag == ""
	}
	switch {
	case signed.Name() != want.Name():
		return fmt.Errorf("it is for %s, want %s (%s): %w", signed, want.Name(), id.kind, errdef.ErrInvalid)
	case repository || signed == want:
		return nil
	case signed.Tag == "" && signed.Digest == "":
		return fmt.Errorf("it is for the repository %s, want %s (%s; cosign signs repositories: matchRepository accepts them): %w",
			signed, want, id.kind, errdef.ErrInvalid)
	}
	return fmt.Errorf("it is for %s, want %s (%s): %w", signed, want, id.kind, errdef.ErrInvalid)
}

// remap replaces the beginning of a name, at a boundary.
func (id identity) remap(r reference.Reference) (reference.Reference, error) {
	rest, ok := strings.CutPrefix(r.String(), id.prefix)
	if !ok || rest != "" && !strings.ContainsAny(rest[:1], "/:@") || rest != "" && rest[0] == ':' && !strings.Contains(id.prefix, "/") {
		return r, nil // a port is a part of the registry: "host" is not a prefix of "host:5000"
	}
	to, err := reference.Parse(id.signed + rest)
	if err != nil {
		return r, fmt.Errorf("remap %s: %w", r, err)
	}
	return to, nil
}
