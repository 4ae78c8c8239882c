package image

import (
	"context"
	"fmt"
	"io"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Loaded is an image that came out of an archive.
type Loaded struct {
	ID ID `json:"id"`
	// Names are the references that it is known by now; none: only by its ID.
	Names []string `json:"names,omitempty"`
}

// LoadProgress says how far a Load is.
type LoadProgress struct {
	Read   int64  `json:"read"`            // bytes of the archive, as it came
	Entry  string `json:"entry,omitempty"` // the entry being read
	Layers int    `json:"layers"`          // unpacked so far
}

// Load reads an OCI layout or a docker-archive, packed with tar and perhaps compressed,
// from start to end, once. What no image of the archive uses is dropped again; on failure
// nothing is left. progress may be nil; it is called from Load's own goroutine, at
// least once per entry.
func (s *Store) Load(context.Context, io.Reader, func(LoadProgress)) ([]Loaded, error) {
	return nil, fmt.Errorf("load images: %w", errdef.ErrUnimplemented)
}
