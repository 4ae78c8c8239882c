package image

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// transfer reads a blob. If it is not what its digest says, all of it is read anew from
// the next host that may have it: a mirror with a damaged disk shall not stop the node.
// The observer is told how it goes; nil is none.
func (s *Store) transfer(ctx context.Context, sess *registry.Session, d descriptor, o registry.Observer, use func(*content.Verifier) error) error {
	var wrong []string
	for {
		blob := sess.Blob(ctx, d.Digest, d.Size)
		blob.Observe(o)
		v, err := content.Verify(blob, d.Digest, d.Size)
		if err != nil {
			return err
		}
		err = use(v)
		mismatch := false
		if errors.Is(err, errdef.ErrInvalid) {
			// Damage shows itself in the decoder first; the digest tells whose fault it is.
			if e := v.Drain(); errors.Is(e, content.ErrMismatch) {
				err, mismatch = e, true
			}
		}
		_ = blob.Close() // a Read would have told
		if mismatch {
			host, more := blob.Mismatched()
			wrong = append(wrong, host)
			if more {
				continue
			}
			return fmt.Errorf("blob %s from %s: %w", d.Digest, strings.Join(wrong, ", then from "), err)
		}
		if err != nil && len(wrong) > 0 {
			return fmt.Errorf("%w (the blob from %s did not match its digest)", err, strings.Join(wrong, ", "))
		}
		return err
	}
}
