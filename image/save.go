package image

import (
	"context"
	"fmt"
	"io"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// ArchiveFormat is the form in which Save writes images.
type ArchiveFormat string

// The formats.
const (
	FormatOCI     ArchiveFormat = "oci"      // an OCI layout, layers as they are stored: not compressed
	FormatOCIGzip ArchiveFormat = "oci-gzip" // an OCI layout, layers compressed, which takes two passes
	FormatDocker  ArchiveFormat = "docker"   // an OCI layout with Docker's manifest.json: what `docker save` writes since 25
)

// Save writes images as a tar archive, a stream that begins only when all of them were
// found. The configuration is written byte for byte, so that an image's ID survives; the
// manifest is a new one, and with it the digest that a registry knew the image by.
func (s *Store) Save(context.Context, io.Writer, []string, ArchiveFormat) error {
	return fmt.Errorf("save images: %w", errdef.ErrUnimplemented)
}
