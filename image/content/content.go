// Package content checks content against its digest, keeps small records durably and
// the beginnings of broken transfers for a while.
//
// It refuses content that is longer, shorter or other than its descriptor says. It
// keeps no whole blobs: a layer is unpacked while it is verified, and the configuration
// is part of the image's record. Records are files that are replaced atomically; what a
// crash leaves are files that start with a dot, deleted by the next OpenRecords. Partials
// are one file for each digest, bounded in size and age, trusted by nobody. The package
// starts no goroutine but the timer that ends a partial's life, which Partials.Close stops.
package content

import (
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// ErrMismatch says that content is not what its descriptor promised.
var ErrMismatch = fmt.Errorf("content does not match its descriptor: %w", errdef.ErrInvalid)

// Parse checks a digest and its algorithm; only sha256 and sha512 count as safe.
func Parse(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %.100q: %w: %w", s, err, errdef.ErrInvalid)
	}
	if _, err := newHash(d); err != nil {
		return "", err
	}
	return d, nil
}

func newHash(d digest.Digest) (hash.Hash, error) {
	// go-digest's Algorithm.Hash panics for what is not linked in; we link these two.
	switch d.Algorithm() {
	case digest.SHA256:
		return sha256.New(), nil
	case digest.SHA512:
		return sha512.New(), nil
	case digest.SHA384: // no registry uses it
	}
	return nil, fmt.Errorf("digest algorithm %.40q is not supported: %w", d.Algorithm(), errdef.ErrInvalid)
}

// Check compares a whole document with its digest.
func Check(data []byte, want digest.Digest) error {
	h, err := newHash(want)
	if err != nil {
		return err
	}
	h.Write(data)
	if got := digest.NewDigest(want.Algorithm(), h); got != want {
		return fmt.Errorf("got %s, want %s: %w", got, want, ErrMismatch)
	}
	return nil
}

// A Verifier passes on what it reads and turns the end of the stream into an error
// when length or digest differ. It hashes in the reader's goroutine.
type Verifier struct {
	r    io.Reader
	h    hash.Hash
	want digest.Digest
	left int64 // bytes still expected; meaningless with any
	any  bool  // the length is not known beforehand
	err  error
}

// Verify expects exactly size bytes that hash to want; a negative size means that
// the length is not known.
func Verify(r io.Reader, want digest.Digest, size int64) (*Verifier, error) {
	h, err := newHash(want)
	if err != nil {
		return nil, err
	}
	return &Verifier{r: r, h: h, want: want, left: size, any: size < 0}, nil
}

// Read implements io.Reader. io.EOF means that everything was as promised.
func (v *Verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	v.h.Write(p[:n])
	if !v.any {
		if v.left -= int64(n); v.left < 0 {
			v.err = fmt.Errorf("content of %s is longer than its descriptor says: %w", v.want, ErrMismatch)
			return 0, v.err
		}
	}
	if err == nil {
		return n, nil
	}
	v.err = err
	if errors.Is(err, io.EOF) {
		if e := v.check(); e != nil {
			v.err = e
		}
	}
	return n, v.err
}

func (v *Verifier) check() error {
	if !v.any && v.left > 0 {
		return fmt.Errorf("content of %s is %d bytes short: %w", v.want, v.left, ErrMismatch)
	}
	if got := digest.NewDigest(v.want.Algorithm(), v.h); got != v.want {
		return fmt.Errorf("got %s, want %s: %w", got, v.want, ErrMismatch)
	}
	return nil
}

// Drain reads the rest and reports whether all of it was as promised.
func (v *Verifier) Drain() error {
	if errors.Is(v.err, io.EOF) {
		return nil
	}
	_, err := io.Copy(io.Discard, v)
	return err
}
