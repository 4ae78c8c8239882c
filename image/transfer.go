package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// transfer reads a blob. If it is not what its digest says, all of it is read anew, from
// the next host that may have it: neither a mirror with a damaged disk nor a byte that
// flipped on its way shall stop the node. When a transfer breaks off for good, the next
// one goes on where it ended. The observer is told how it goes; nil is none.
func (s *Store) transfer(ctx context.Context, sess *registry.Session, d descriptor, o registry.Observer, use func(*content.Verifier) error) error {
	var wrong []string
	for {
		blob := sess.Blob(ctx, d.Digest, d.Size)
		blob.Observe(o)
		mismatch, err := read(blob, d, use)
		if !mismatch {
			_ = blob.Close() // a Read would have told
			if err != nil && len(wrong) > 0 {
				return fmt.Errorf("%w (the blob from %s did not match its digest)", err, strings.Join(wrong, ", "))
			}
			return err
		}
		who, more := blob.Mismatched()
		_ = blob.Close() // the same
		if !slices.Contains(wrong, who) {
			wrong = append(wrong, who)
		}
		if !more || ctx.Err() != nil {
			return fmt.Errorf("blob %s from %s: %w", d.Digest, strings.Join(wrong, ", then from "), err)
		}
		if o != nil {
			o.Restarted()
		}
	}
}

// read hands a blob to use, and tells whether a failure is one of the blob's own.
func read(blob *registry.Blob, d descriptor, use func(*content.Verifier) error) (mismatch bool, err error) {
	v, err := content.Verify(blob, d.Digest, d.Size)
	if err != nil {
		return false, err
	}
	err = use(v)
	switch {
	case err == nil:
		blob.Verified()
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		blob.NoSpace()
	case errors.Is(err, errdef.ErrInvalid):
		if blob.Resumed() {
			return true, err // before all else without what an earlier transfer left
		}
		// Damage shows itself in the decoder first; the digest tells whose fault it is.
		if e := v.Drain(); errors.Is(e, content.ErrMismatch) {
			return true, e
		}
	}
	return false, err
}
