// Package policy decides whether an image may be used, by a subset of
// containers-policy.json(5): insecureAcceptAnything, reject, and sigstoreSigned with
// public keys, for the transport "docker", which is all that a registry is, and the
// defaults of docker-archive and oci-archive.
//
// It refuses what it does not understand, with the field named: a policy that is misread
// is worse than none. GPG signatures (signedBy), Fulcio, Rekor and certificates are refused.
// The file and its keys are read again for each question, so that a change counts at
// once; while they cannot be read, nothing is accepted. It starts no goroutine and writes
// nothing to disk.
package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Candidate is an image that a pull has resolved and not yet fetched.
type Candidate struct {
	Host       string // "docker.io"
	Repository string // "library/busybox"
	Tag        string // empty when the image was asked for by digest
	// Digest is that of what the reference names: the index where there is one.
	Digest digest.Digest
	// Instance is the digest of the manifest for this machine, if it is known. A signature
	// of either will do.
	Instance digest.Digest
}

// A Fetcher reads from the candidate's repository, through the session of its pull.
type Fetcher interface {
	// Manifest gives the manifest that a tag or a digest names, or errdef.ErrNotFound.
	Manifest(ctx context.Context, ref string) ([]byte, error)
	// Blob gives a blob of a known size, verified.
	Blob(ctx context.Context, d digest.Digest, size int64) ([]byte, error)
}

// Policy is a policy file. It may be used by several goroutines.
type Policy struct {
	path string
	read func(string) ([]byte, error)

	mu       sync.Mutex
	now      *rules
	accepted map[Candidate]struct{} // by now's requirements: signatures need not be fetched again
}

// maxAccepted bounds what is remembered.
const maxAccepted = 4096

// Load reads a policy file and the keys that it names.
func Load(path string) (*Policy, error) {
	p := &Policy{path: path, read: readFile}
	r := reader{read: p.read}
	now, err := r.rules(path)
	if err != nil {
		return nil, fmt.Errorf("signature policy %s: %w", path, err)
	}
	p.now, p.accepted = now, map[Candidate]struct{}{}
	return p, nil
}

// String says in a few words what is asked of images.
func (p *Policy) String() string {
	if p == nil {
		return "none: every image is accepted"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	kinds := []string{}
	for _, q := range p.now.standard {
		kinds = append(kinds, string(q.kind))
	}
	return fmt.Sprintf("%s: %d scopes, default %s", p.path, len(p.now.docker), strings.Join(kinds, " and "))
}

// refresh reads the file again. What was accepted by other rules is forgotten.
func (p *Policy) refresh(ctx context.Context) (*rules, error) {
	r := reader{read: p.read}
	fresh, err := r.rules(p.path)
	if err != nil {
		return nil, refusal(fmt.Errorf("signature policy %s: %w", p.path, err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if fresh.sum != p.now.sum {
		klog.FromContext(ctx).Info("Signature policy changed", "file", p.path)
		p.now, p.accepted = fresh, map[Candidate]struct{}{}
	}
	return p.now, nil
}

func refusal(err error) error { return errdef.WithPrefix(errdef.SignatureValidationFailed, err) }

// Check says whether the policy accepts an image; a nil Policy accepts any. An error
// begins with the kubelet's SignatureValidationFailed, unless the registry did not answer.
func (p *Policy) Check(ctx context.Context, c Candidate, fetch Fetcher) error {
	if p == nil {
		return nil
	}
	now, err := p.refresh(ctx)
	if err != nil || p.knows(now, c) {
		return err
	}
	reqs, scope := now.find(c)
	s := &signatures{fetch: fetch, of: []digest.Digest{c.Digest}}
	if c.Instance != "" && c.Instance != c.Digest {
		s.of = append(s.of, c.Instance)
	}
	for _, q := range reqs {
		err := q.check(ctx, c, s)
		if _, ok := errors.AsType[*registryError](err); ok {
			return fmt.Errorf("check %s: %w", q.path, err)
		}
		if err != nil {
			return refusal(fmt.Errorf("image %s: policy %s, %s: %s: %w", c.reference(), p.path, scope, q.path, err))
		}
	}
	p.remember(now, c)
	return nil
}

func (q requirement) check(ctx context.Context, c Candidate, s *signatures) error {
	switch q.kind {
	case acceptAnything:
		return nil
	case sigstoreSigned:
		return q.sigstore(ctx, c, s)
	case reject, signedBy: // the latter does not get here
	}
	return fmt.Errorf("every image is rejected: %w", errdef.ErrDenied)
}

func (p *Policy) knows(now *rules, c Candidate) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.Instance = ""
	_, ok := p.accepted[c]
	return ok && p.now == now
}

// remember notes what a signature says of content: that does not change.
func (p *Policy) remember(now *rules, c Candidate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now != now {
		return
	}
	if len(p.accepted) >= maxAccepted {
		clear(p.accepted)
	}
	c.Instance = "" // Digest decides what it is
	p.accepted[c] = struct{}{}
}

// CheckArchive says whether images may come out of an archive, DockerArchive or OCIArchive.
// Archives bring no signatures, so a requirement of one refuses them.
func (p *Policy) CheckArchive(ctx context.Context, transport string) error {
	if p == nil {
		return nil
	}
	now, err := p.refresh(ctx)
	if err != nil {
		return err
	}
	reqs, scope := now.standard, "the default"
	if r, ok := now.archives[transport]; ok {
		reqs, scope = r, "transport "+transport
	}
	for _, q := range reqs {
		if q.kind != acceptAnything {
			return refusal(fmt.Errorf("policy %s, %s: %s: %s, and an archive has no signatures: %w", p.path, scope, q.path, q.kind, errdef.ErrDenied))
		}
	}
	return nil
}
