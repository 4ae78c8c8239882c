// Package images makes the images of the pull benchmark and serves them as a read-only
// registry: one like a real application on Debian, 20,000 small files, few big layers,
// many layers; with gzip and with zstd.
//
// It refuses uploads, and runs nothing of what it packs: Debian packages are unpacked
// file by file, without their scripts. Build owns the goroutines that compress, and
// waits for them; Serve's caller owns the server. On disk it leaves Debian packages and
// one OCI layout per recipe below its cache directory, about 1.3 GB; nothing else.
package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// recipe is raised with every change of what the images contain.
const recipe = 1

// stamp is the time on all files that are made here, and on the images.
var stamp = time.Unix(1700000000, 0).UTC()

// Layer is one compressed layer.
type Layer struct {
	Name     string `json:"name"`
	Digest   string `json:"digest"`
	DiffID   string `json:"diff_id"`
	Size     int64  `json:"size"`     // compressed
	Unpacked int64  `json:"unpacked"` // of the tar stream
	Entries  int    `json:"entries"`  // files, directories and links
	Media    string `json:"media"`
}

// Image is what a tag names.
type Image struct {
	Name   string  `json:"name"` // repository:tag
	Digest string  `json:"digest"`
	Layers []Layer `json:"layers"`
}

// Size is the compressed size of all layers.
func (i Image) Size() (n int64) {
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// Unpacked is the uncompressed size of all layers.
func (i Image) Unpacked() (n int64) {
	for _, l := range i.Layers {
		n += l.Unpacked
	}
	return n
}

// Entries is the number of files, directories and links of all layers.
func (i Image) Entries() (n int) {
	for _, l := range i.Layers {
		n += l.Entries
	}
	return n
}

// Set is all images, and what they were made from.
type Set struct {
	Dir    string   `json:"-"`
	Source string   `json:"source"`           // in words
	Inputs []string `json:"inputs,omitempty"` // files of the Debian packages, which hold their versions
	Images []Image  `json:"images"`
}

// Image returns the one of that name.
func (s *Set) Image(name string) (Image, bool) {
	for _, i := range s.Images {
		if i.Name == name {
			return i, true
		}
	}
	return Image{}, false
}

// Build returns the images of the cache directory, made at the first call: that takes
// some minutes and Debian's package mirror. Without a mirror, or on another release of
// Debian, the application image is made of this system's /usr, and Source says so. The
// same inputs give the same digests.
func Build(ctx context.Context, cache string, say func(format string, args ...any)) (*Set, error) {
	work := filepath.Join(cache, "bench")
	unlock, err := lock(work)
	if err != nil {
		return nil, err
	}
	defer unlock()
	files, source, err := inputs(ctx, filepath.Join(work, "debs"), say)
	if err != nil {
		return nil, err
	}
	final := filepath.Join(work, "images-"+key(files))
	if s, err := open(final); err == nil {
		return s, nil
	}
	say("making the images of the benchmark (minutes, once)")
	tmp, err := os.MkdirTemp(work, "build.")
	if err != nil {
		return nil, fmt.Errorf("make images: %w", err)
	}
	defer os.RemoveAll(tmp)
	s := &Set{Source: source}
	for _, f := range files {
		s.Inputs = append(s.Inputs, filepath.Base(f.path))
	}
	b := &builder{dir: tmp, say: say, layers: map[string]packed{}, command: []string{"/bin/true"}, arch: "amd64"}
	if s.Images, err = b.all(ctx, files); err != nil {
		return nil, fmt.Errorf("make images: %w", err)
	}
	if err := s.write(tmp); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, final); err != nil {
		return nil, fmt.Errorf("keep images: %w", err)
	}
	return open(final)
}

// Open returns the set in a directory that Build made.
func Open(dir string) (*Set, error) { return open(dir) }

func open(dir string) (*Set, error) {
	body, err := os.ReadFile(filepath.Join(dir, "set.json"))
	if err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	s := &Set{Dir: dir}
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	return s, nil
}

func (s *Set) write(dir string) error {
	body, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "set.json"), body, 0o644); err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	return nil
}

// key names everything that decides what the images contain: compressors change with Go.
func key(files []input) string {
	h := sha256.New()
	fmt.Fprintln(h, recipe, runtime.Version())
	for _, f := range files {
		fmt.Fprintln(h, f.layer, filepath.Base(f.path))
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// lock keeps two programs from building at once.
func lock(work string) (unlock func(), err error) {
	if err := os.MkdirAll(work, 0o755); err != nil {
		return nil, fmt.Errorf("create cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(work, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock cache: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock cache: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing unlocks
}
