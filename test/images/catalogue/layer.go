package catalogue

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// stamp is the time on every file and image, so that digests are reproducible.
var stamp = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// tree is the content of one layer.
type tree struct {
	entries map[string]*entry // by path without a leading slash
	packed  *packed           // once packed, shared by all images that stack the tree
}

type entry struct {
	tar.Header
	body []byte
}

func newTree() *tree { return &tree{entries: map[string]*entry{}} }

func (t *tree) put(name string, h tar.Header, body []byte) {
	h.Name, h.ModTime, h.Format, h.Size = name, stamp, tar.FormatPAX, int64(len(body))
	t.entries[name] = &entry{h, body}
}

func (t *tree) dir(name string, mode int64) {
	t.put(name, tar.Header{Typeflag: tar.TypeDir, Mode: mode}, nil)
	t.entries[name].Name += "/"
}

func (t *tree) file(name string, mode int64, body []byte) {
	t.put(name, tar.Header{Typeflag: tar.TypeReg, Mode: mode}, body)
}

func (t *tree) symlink(name, target string) {
	t.put(name, tar.Header{Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, nil)
}

// hardlink makes name another name of target, a file of the same tree.
func (t *tree) hardlink(name, target string) {
	t.put(name, tar.Header{Typeflag: tar.TypeLink, Linkname: target, Mode: t.entries[target].Mode}, nil)
}

// copyFile adds a file of the host, following symbolic links.
func (t *tree) copyFile(name string, mode int64, hostPath string) error {
	body, err := os.ReadFile(hostPath)
	if err != nil {
		return err
	}
	t.file(name, mode, body)
	return nil
}

// copyMatching adds the files below root whose path relative to it matches a
// pattern; every pattern must find one.
func (t *tree) copyMatching(root string, mode int64, patterns ...string) error {
	for _, pattern := range patterns {
		found, err := fs.Glob(os.DirFS(root), pattern)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return fmt.Errorf("find %s below %s: nothing there", pattern, root)
		}
		for _, rel := range found {
			if err := t.copyFile(rel, mode, filepath.Join(root, rel)); err != nil {
				return err
			}
		}
	}
	return nil
}

// pack writes the tree as a gzip-compressed tar: parent directories first, hard links last.
func (t *tree) pack() (*packed, error) {
	if t.packed != nil {
		return t.packed, nil
	}
	for name := range t.entries {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if t.entries[dir] == nil {
				t.dir(dir, 0o755)
			}
		}
	}
	names := make([]string, 0, len(t.entries))
	for name := range t.entries {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if al, bl := t.entries[a].Typeflag == tar.TypeLink, t.entries[b].Typeflag == tar.TypeLink; al != bl {
			if al {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})

	var plain, small bytes.Buffer
	zip := gzip.NewWriter(&small)
	w := tar.NewWriter(io.MultiWriter(&plain, zip))
	for _, name := range names {
		e := t.entries[name]
		if err := w.WriteHeader(&e.Header); err != nil {
			return nil, fmt.Errorf("pack %s: %w", name, err)
		}
		if _, err := w.Write(e.body); err != nil {
			return nil, fmt.Errorf("pack %s: %w", name, err)
		}
	}
	for _, c := range []io.Closer{w, zip} {
		if err := c.Close(); err != nil {
			return nil, fmt.Errorf("pack layer: %w", err)
		}
	}
	t.packed = &packed{small: small.Bytes()}
	var err error
	if t.packed.diffID, _, err = v1.SHA256(&plain); err != nil {
		return nil, fmt.Errorf("hash layer: %w", err)
	}
	if t.packed.digest, _, err = v1.SHA256(bytes.NewReader(t.packed.small)); err != nil {
		return nil, fmt.Errorf("hash layer: %w", err)
	}
	return t.packed, nil
}

// packed is the content of a layer; with a media type it is a v1.Layer.
type packed struct {
	small          []byte
	digest, diffID v1.Hash
}

type layer struct {
	*packed
	media types.MediaType
}

var _ v1.Layer = layer{}

func (l layer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l layer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l layer) Size() (int64, error)                { return int64(len(l.small)), nil }
func (l layer) MediaType() (types.MediaType, error) { return l.media, nil }
func (l layer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.small)), nil
}
func (l layer) Uncompressed() (io.ReadCloser, error) { return gzip.NewReader(bytes.NewReader(l.small)) }

// text is a file body from lines.
func text(lines ...string) []byte {
	return []byte(strings.Join(lines, "\n") + "\n")
}
