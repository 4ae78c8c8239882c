package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Orphan is something that nothing owns.
type Orphan struct {
	Path   string `json:"path"`
	Bytes  uint64 `json:"bytes"`
	Inodes uint64 `json:"inodes"`
}

// Garbage lists what is in the store without an owner: files of no known layer, layers
// that nothing holds, writable layers of no snapshot, and what waits in the trash. Unless
// it is a dry run, it is deleted too. Open and Drop leave nothing of that kind, so what
// it finds beside the trash is somebody else's doing, or a defect.
func (s *Store) Garbage(ctx context.Context, dryRun bool) ([]Orphan, error) {
	paths, err := s.orphans()
	if err != nil {
		return nil, err
	}
	var out []Orphan
	for _, p := range paths {
		bytes, inodes, err := walk(ctx, p)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("measure what is no longer used: %w", ctx.Err())
		}
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted meanwhile
		}
		// What cannot be measured is listed all the same.
		out = append(out, Orphan{p, bytes, inodes})
	}
	slices.SortFunc(out, func(a, b Orphan) int { return cmp.Compare(a.Path, b.Path) })
	if dryRun {
		return out, nil
	}
	// A second look, under the lock: what was listed may have found an owner.
	s.mu.Lock()
	defer s.mu.Unlock()
	return out, s.removeOrphansLocked(paths)
}

func (s *Store) orphans() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, d := range []string{"l", "s", "trash"} {
		es, err := os.ReadDir(s.dir(d))
		if err != nil {
			return nil, fmt.Errorf("list store: %w", err)
		}
		for _, e := range es {
			if d == "trash" || !s.owned(d, e.Name()) {
				out = append(out, filepath.Join(s.dir(d), e.Name()))
			}
		}
	}
	for _, h := range s.held {
		if h.refs > 0 {
			continue
		}
		for _, x := range suffixes {
			if s.owned("l", h.Name+x) {
				out = append(out, s.layerDir(h.Name)+x)
			}
		}
	}
	return out, nil
}

func (s *Store) removeOrphansLocked(paths []string) error {
	var errs []error
	for _, h := range s.held {
		if h.refs == 0 {
			errs = append(errs, s.deleteLocked(h))
		}
	}
	for _, p := range paths {
		d := filepath.Base(filepath.Dir(p))
		if d != "trash" && !s.owned(d, filepath.Base(p)) {
			errs = append(errs, s.trash.put(p))
		}
	}
	return errors.Join(errs...)
}
