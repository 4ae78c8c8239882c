package images

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	godigest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

func digest(s string) godigest.Digest { return godigest.Digest(s) }

// layerWriter writes the tar stream of one layer.
type layerWriter struct {
	tar     *tar.Writer
	seen    map[string]bool
	entries int
	bytes   int64 // of files
}

// put writes one entry, after those of its parents.
func (w *layerWriter) put(h *tar.Header, body io.Reader) error {
	if w.seen[h.Name] {
		return nil
	}
	if err := w.parents(path.Clean(h.Name)); err != nil {
		return err
	}
	w.seen[h.Name] = true
	w.entries++
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	if h.Size == 0 || body == nil {
		return nil
	}
	n, err := io.CopyN(w.tar, body, h.Size)
	w.bytes += n
	return err
}

func (w *layerWriter) parents(name string) error {
	dir := path.Dir(name)
	if dir == "." || dir == "/" || w.seen[dir+"/"] {
		return nil
	}
	return w.put(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: stamp}, nil)
}

func (w *layerWriter) file(name string, body io.Reader, size int64) error {
	return w.put(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: stamp}, body)
}

func (w *layerWriter) program(name string, body io.Reader, size int64) error {
	return w.put(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: size, ModTime: stamp}, body)
}

// layer makes the blobs of one layer: fill is asked once, both compressions are made of it.
func (b *builder) layer(ctx context.Context, name string, fill func(*layerWriter) error) error {
	start := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	gz, err := b.newBlob(ctx, g, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.DefaultCompression) })
	if err != nil {
		return err
	}
	zst, err := b.newBlob(ctx, g, func(w io.Writer) (io.WriteCloser, error) {
		// One goroutine: the output must not depend on the number of processors.
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	})
	if err != nil {
		return errors.Join(err, gz.in.CloseWithError(err), g.Wait())
	}
	plain := &counter{Hash: sha256.New()}
	w := &layerWriter{tar: tar.NewWriter(io.MultiWriter(plain, gz.in, zst.in)), seen: map[string]bool{}}
	err = fill(w)
	if err == nil {
		err = w.tar.Close()
	}
	// CloseWithError(nil) is the end of file.
	err = errors.Join(err, gz.in.CloseWithError(err), zst.in.CloseWithError(err), g.Wait())
	if err != nil {
		return fmt.Errorf("layer %s: %w", name, err)
	}
	common := Layer{Name: name, DiffID: plain.digest(), Unpacked: plain.n, Entries: w.entries}
	p := packed{common, common}
	p.gzip.Media, p.zstd.Media = ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd
	if p.gzip.Digest, p.gzip.Size, err = gz.keep(b.dir); err != nil {
		return err
	}
	if p.zstd.Digest, p.zstd.Size, err = zst.keep(b.dir); err != nil {
		return err
	}
	b.layers[name] = p
	b.say("layer %-12s entries %6d, unpacked %6.1f MB, gzip %6.1f, zstd %6.1f MB, %.0f s", name, p.gzip.Entries,
		float64(p.gzip.Unpacked)/1e6, float64(p.gzip.Size)/1e6, float64(p.zstd.Size)/1e6, time.Since(start).Seconds())
	return nil
}

// counter hashes and counts.
type counter struct {
	hash.Hash
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.Hash.Write(p)
}

func (c *counter) digest() string { return "sha256:" + hex.EncodeToString(c.Sum(nil)) }

// blob is a compressed file in the making; what is written to in ends up in it.
type blob struct {
	in   *io.PipeWriter
	file string
	sum  *counter
}

func (b *builder) newBlob(ctx context.Context, g *errgroup.Group, compressor func(io.Writer) (io.WriteCloser, error)) (*blob, error) {
	f, err := os.CreateTemp(b.dir, "blob.")
	if err != nil {
		return nil, fmt.Errorf("create blob: %w", err)
	}
	out, in := io.Pipe()
	result := &blob{in, f.Name(), &counter{Hash: sha256.New()}}
	g.Go(func() (err error) {
		defer func() { err = errors.Join(err, f.Close(), out.CloseWithError(err)) }()
		w, err := compressor(io.MultiWriter(f, result.sum))
		if err != nil {
			return err
		}
		if _, err := io.Copy(w, &stopping{ctx, out}); err != nil {
			return err
		}
		return w.Close()
	})
	return result, nil
}

// stopping ends reading when its context does.
type stopping struct {
	ctx context.Context //nolint:containedctx // a reader has no other way to know
	io.Reader
}

func (s *stopping) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.Reader.Read(p)
}

// keep moves the blob to its place in the layout below dir.
func (b *blob) keep(dir string) (digest string, size int64, err error) {
	digest = b.sum.digest()
	place := blobPath(dir, digest)
	if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
		return "", 0, fmt.Errorf("keep blob: %w", err)
	}
	if err := os.Rename(b.file, place); err != nil {
		return "", 0, fmt.Errorf("keep blob: %w", err)
	}
	return digest, b.sum.n, nil
}

// document writes a configuration or a manifest.
func (b *builder) document(media string, v any) (ocispec.Descriptor, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encode: %w", err)
	}
	d := godigest.FromBytes(body)
	if err := os.WriteFile(blobPath(b.dir, d.String()), body, 0o644); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write: %w", err)
	}
	return ocispec.Descriptor{MediaType: media, Digest: d, Size: int64(len(body))}, nil
}
