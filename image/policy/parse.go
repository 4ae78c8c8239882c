package policy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// maxFile bounds the policy file and each key.
const maxFile = 1 << 20

// foreign are the transports of containers-policy.json(5) that lead to no registry. They
// decide about nothing here, so what they say is not read, but a misspelled name is
// refused. Archives are asked about with CheckArchive.
var foreign = []string{"atomic", "containers-storage", "dir", "docker-daemon", "oci", "openshift", "ostree", "sif", "tarball"}

// Archives are the transports of images that come out of a file.
const (
	DockerArchive = "docker-archive"
	OCIArchive    = "oci-archive"
)

// rules are the contents of a policy file.
type rules struct {
	standard []requirement            // the global default
	docker   map[string][]requirement // by scope
	archives map[string][]requirement // by transport
	sum      [sha256.Size]byte        // of the file and its keys
}

// A requirement of a scope; all of a scope's must hold.
type requirement struct {
	path     string // within the file
	kind     kind
	keys     []key
	identity identity
}

type kind string

const (
	acceptAnything kind = "insecureAcceptAnything"
	reject         kind = "reject"
	sigstoreSigned kind = "sigstoreSigned"
	signedBy       kind = "signedBy"
)

// reader reads a policy and remembers what it was made of.
type reader struct {
	read func(path string) ([]byte, error)
	sum  []byte
}

// readFile reads a small file.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes: %w", path, maxFile, errdef.ErrInvalid)
	}
	return data, err
}

func (r *reader) file(path string) ([]byte, error) {
	data, err := r.read(path)
	h := sha256.Sum256(data)
	r.sum = append(r.sum, h[:]...)
	return data, err
}

// rules reads the policy file at path, and the keys it names.
func (r *reader) rules(path string) (*rules, error) {
	data, err := r.file(path)
	if err != nil {
		return nil, err
	}
	doc, err := decode(data)
	if err != nil {
		return nil, err
	}
	f := object("", doc)
	all := &rules{docker: map[string][]requirement{}, archives: map[string][]requirement{}}
	var errs []error
	if v, ok := f.take("default"); ok {
		all.standard, err = r.requirements("default", v)
		errs = append(errs, err)
	} else {
		f.wrong("default", "is missing")
	}
	if v, ok := f.take("transports"); ok {
		errs = append(errs, r.transports(all, v))
	}
	if err := errors.Join(append(errs, f.done())...); err != nil {
		return nil, err
	}
	all.sum = sha256.Sum256(r.sum)
	return all, nil
}

func (r *reader) transports(all *rules, v any) error {
	f := object("transports", v)
	for _, name := range foreign {
		f.take(name)
	}
	var errs []error
	if v, ok := f.take("docker"); ok {
		scopes := object(f.at("docker"), v)
		for _, scope := range slices.Sorted(maps.Keys(scopes.m)) {
			v, _ := scopes.take(scope)
			path := scopes.at(scope)
			if scope == "" {
				path += `[""]`
			} else if err := checkScope(scope); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", path, err))
			}
			reqs, err := r.requirements(path, v)
			all.docker[scope] = reqs
			errs = append(errs, err)
		}
		errs = append(errs, scopes.done())
	}
	for _, name := range []string{DockerArchive, OCIArchive} {
		v, ok := f.take(name)
		if !ok {
			continue
		}
		// A stream has no path that a scope could be about.
		scopes := object(f.at(name), v)
		if v, ok := scopes.take(""); ok {
			reqs, err := r.requirements(f.at(name)+`[""]`, v)
			all.archives[name] = reqs
			errs = append(errs, err)
		}
		errs = append(errs, scopes.done())
	}
	return errors.Join(append(errs, f.done())...)
}

func (r *reader) requirements(path string, v any) ([]requirement, error) {
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return nil, fmt.Errorf("%s: want a list of requirements that is not empty: %w", path, errdef.ErrInvalid)
	}
	var all []requirement
	var errs []error
	for i, e := range list {
		q, err := r.requirement(fmt.Sprintf("%s[%d]", path, i), e)
		all = append(all, q)
		errs = append(errs, err)
	}
	return all, errors.Join(errs...)
}

func (r *reader) requirement(path string, v any) (requirement, error) {
	f := object(path, v)
	q := requirement{path: path, kind: kind(f.need("type"))}
	switch q.kind {
	case acceptAnything, reject:
	case sigstoreSigned:
		r.sigstore(f, &q)
	case signedBy:
		f.m = nil // its members mean nothing here
		f.wrong(f.at("type"), "signedBy (GPG) is not supported; sign with cosign and a key, and use sigstoreSigned")
	default:
		if len(f.errs) == 0 {
			f.wrong(f.at("type"), fmt.Sprintf("%.60q is not known; want insecureAcceptAnything, reject or sigstoreSigned", q.kind))
		}
		f.m = nil
	}
	return q, f.done()
}

func (r *reader) sigstore(f *fields, q *requirement) {
	f.refuse("keyless signatures (Fulcio) are not supported; use keyPath or keyData", "fulcio")
	f.refuse("signatures by certificate are not supported; use keyPath or keyData", "pki")
	f.refuse("the transparency log (Rekor) is not supported; a key alone decides",
		"rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas")
	sources := 0
	for _, s := range []struct {
		one, many string
		get       func(string) ([]byte, error)
	}{{"keyPath", "keyPaths", r.keyFile}, {"keyData", "keyDatas", keyData}} {
		for _, name := range []string{s.one, s.many} {
			if _, ok := f.m[name]; !ok {
				continue
			}
			sources++
			var values []string
			if name == s.one {
				values = []string{f.text(name)}
			} else {
				values = f.texts(name)
			}
			for i, v := range values {
				at := f.at(name)
				if name == s.many {
					at = fmt.Sprintf("%s[%d]", at, i)
				}
				if v == "" {
					continue // said already
				}
				k, err := parseKey(v, s.get)
				if err != nil {
					f.errs = append(f.errs, fmt.Errorf("%s: %w", at, err))
				}
				q.keys = append(q.keys, k)
			}
		}
	}
	if sources != 1 && len(f.errs) == 0 {
		f.wrong(f.path, fmt.Sprintf("want exactly one of keyPath, keyPaths, keyData and keyDatas, there are %d", sources))
	}
	q.identity = identity{kind: matchRepoDigestOrExact}
	if v, ok := f.take("signedIdentity"); ok {
		id, err := parseIdentity(f.at("signedIdentity"), v)
		if err != nil {
			f.errs = append(f.errs, err)
		}
		q.identity = id
	}
}
