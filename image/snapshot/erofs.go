package snapshot

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	tarSuffix   = ".tar"
	indexSuffix = ".idx"
)

// chooseFormat settles what new layers are kept as.
func (s *Store) chooseFormat(context.Context) error {
	s.formats = map[Format]format{Directory: directory{s}}
	switch s.opt.Format {
	case Auto, Directory, "":
		s.opt.Format = Directory
		return nil
	case EROFS:
	}
	return fmt.Errorf("layer store %q: %w", s.opt.Format, errdef.ErrInvalid)
}

func openTar(path string, size int64) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open tar of layer: %w", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, 0, size), f}, nil
}
