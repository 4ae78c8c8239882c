package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/cri-runtime/cri-runtime/image/snapshot"
)

// Orphan is something in the store's directories that nobody owns.
type Orphan = snapshot.Orphan

// Garbage lists what nobody owns, and deletes it unless it is a dry run. What images and
// snapshots stop using is deleted at once, and what a crash left by Open, so there is
// nothing to be found but what is being deleted, what others put there, and the whole
// layers of damaged images, which wait for their next pull. Partial blobs are none: they
// wait for that, too, and their number and age are bounded.
func (s *Store) Garbage(ctx context.Context, dryRun bool) ([]Orphan, error) {
	s.mu.Lock()
	var found []Orphan
	var errs []error
	for id, e := range s.damaged {
		for _, l := range e.distinct() {
			if all, _ := s.snaps.Refs(l); all == 1 {
				found = append(found, Orphan{Path: "damaged image " + string(id) + ", layer " + string(l.DiffID), Bytes: l.Bytes, Inodes: l.Inodes})
			}
		}
		if !dryRun {
			delete(s.damaged, id)
			errs = append(errs, s.snaps.Drop(e.layers))
		}
	}
	s.mu.Unlock()
	rest, err := s.snaps.Garbage(ctx, dryRun)
	if err = errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("collect garbage: %w", err)
	}
	return append(found, rest...), nil
}
