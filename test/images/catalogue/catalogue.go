// Package catalogue makes the images that the tests pull, from Debian packages
// and a few lines of configuration, and serves them as a read-only registry, so
// that no test needs the internet's registries.
//
// It refuses uploads, and architectures other than amd64 for critest's images.
// It starts no goroutine. On disk it leaves Debian packages and OCI layouts below
// its cache directory; a layout is named for everything that it was made from,
// so that a second use takes no time and a change of recipe makes another one.
package catalogue

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// recipe is everything here that decides what the images contain.
//
//go:embed image.go shell.go critest.go layer.go pause.go applets/main.go
var recipe embed.FS

// packages hold what critest's images are made from.
var packages = []string{"busybox-static", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "nginx", "nginx-common", "zlib1g"}

// CacheDir is where test tools and images are kept: outside of any clone.
func CacheDir() (string, error) {
	if dir := os.Getenv("CRI_RUNTIME_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	return filepath.Join(dir, "cri-runtime"), nil
}

// Critest returns the images that critest v1.36.0 pulls, built at the first
// call: that takes some ten seconds and Debian's package mirror.
func Critest(ctx context.Context, cache string) (*Store, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("build critest's images for %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	work := filepath.Join(cache, "images")
	unlock, err := lock(work)
	if err != nil {
		return nil, err
	}
	defer unlock()
	debs, err := download(ctx, filepath.Join(work, "debs"), packages)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(debs))
	for i, deb := range debs {
		names[i] = filepath.Base(deb) // holds the version
	}
	return once(work, "critest", names, func(dir string) error {
		w, err := newWriter(filepath.Join(dir, "layout"))
		if err != nil {
			return err
		}
		w.root = filepath.Join(dir, "root")
		for _, deb := range debs {
			if err := run(ctx, "", "dpkg-deb", "-x", deb, w.root); err != nil {
				return err
			}
		}
		if w.applets, err = buildApplets(ctx, dir); err != nil {
			return err
		}
		return w.critestImages()
	})
}

// Example returns one image, called name, with a shell and a web server on port 8080.
// It needs Debian's busybox-static, which it downloads where it is not installed.
func Example(ctx context.Context, cache, name string) (*Store, error) {
	work := filepath.Join(cache, "images")
	unlock, err := lock(work)
	if err != nil {
		return nil, err
	}
	defer unlock()
	busybox, from := findBusybox(), ""
	if busybox == "" {
		debs, err := download(ctx, filepath.Join(work, "debs"), []string{"busybox-static"})
		if err != nil {
			return nil, err
		}
		from = debs[0]
	} else if body, err := os.ReadFile(busybox); err == nil {
		sum := sha256.Sum256(body)
		from = hex.EncodeToString(sum[:])
	}
	return once(work, "example", []string{name, from}, func(dir string) error {
		w, err := newWriter(filepath.Join(dir, "layout"))
		if err != nil {
			return err
		}
		if busybox == "" {
			busybox = filepath.Join(dir, "root/bin/busybox")
			if err := run(ctx, "", "dpkg-deb", "-x", from, filepath.Join(dir, "root")); err != nil {
				return err
			}
		}
		return w.exampleImage(name, busybox)
	})
}

// lock keeps two programs from building in work at once.
func lock(work string) (unlock func(), err error) {
	if err := os.MkdirAll(work, 0o755); err != nil {
		return nil, fmt.Errorf("create image cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(work, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock image cache: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock image cache: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing unlocks
}

// once opens the layout that build makes, making it where this recipe with these
// inputs has not been followed yet. Older layouts of the same kind are removed.
func once(work, kind string, inputs []string, build func(dir string) error) (*Store, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH, inputs)
	if err := fs.WalkDir(recipe, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := recipe.ReadFile(p)
		h.Write(body)
		return err
	}); err != nil {
		return nil, fmt.Errorf("read recipe: %w", err)
	}
	final := filepath.Join(work, kind+"-"+hex.EncodeToString(h.Sum(nil))[:16])
	if _, err := os.Stat(final); err == nil {
		return open(final)
	}
	tmp, err := os.MkdirTemp(work, "build.")
	if err != nil {
		return nil, fmt.Errorf("build images: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := build(tmp); err != nil {
		return nil, fmt.Errorf("build images: %w", err)
	}
	if kind == "critest" { // example images of several names may be in use at once
		old, _ := filepath.Glob(filepath.Join(work, kind+"-*"))
		for _, dir := range old {
			if err := os.RemoveAll(dir); err != nil {
				return nil, fmt.Errorf("remove old images: %w", err)
			}
		}
	}
	if err := os.Rename(filepath.Join(tmp, "layout"), final); err != nil {
		return nil, fmt.Errorf("keep images: %w", err)
	}
	return open(final)
}

// open reads which references a layout holds.
func open(dir string) (*Store, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	s := &Store{dir: dir, digests: map[string]string{}, tags: map[string]string{}}
	for _, d := range manifest.Manifests {
		reference := d.Annotations[refName]
		s.digests[reference] = d.Digest.String()
		_, local, ok := strings.Cut(reference, "/")
		if was := s.tags[local]; !ok || was != "" && was != d.Digest.String() {
			return nil, fmt.Errorf("open images: %q: no registry host, or two images of one name", reference)
		}
		s.tags[local] = d.Digest.String()
	}
	return s, nil
}

// download fetches the packages with apt-get, each once, and returns their files.
func download(ctx context.Context, dir string, names []string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create package cache: %w", err)
	}
	debs := make([]string, 0, len(names))
	for _, name := range names {
		find := func() []string {
			found, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
			return found
		}
		if len(find()) == 0 {
			if err := run(ctx, dir, "apt-get", "-q", "download", name); err != nil {
				// Package lists of last month name files that the mirror no longer has.
				err = errors.Join(err, run(ctx, dir, "apt-get", "-q", "update"))
				if again := run(ctx, dir, "apt-get", "-q", "download", name); again != nil {
					return nil, errors.Join(err, again)
				}
			}
		}
		found := find()
		if len(found) == 0 {
			return nil, fmt.Errorf("download %s: apt-get left no file", name)
		}
		debs = append(debs, slices.Max(found))
	}
	return debs, nil
}

// buildApplets compiles the applets program from the source that is part of the recipe.
func buildApplets(ctx context.Context, dir string) (string, error) {
	source, err := recipe.ReadFile("applets/main.go")
	if err != nil {
		return "", fmt.Errorf("read applets: %w", err)
	}
	file, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "applets")
	if err := os.WriteFile(file, source, 0o600); err != nil {
		return "", fmt.Errorf("write applets: %w", err)
	}
	return program, run(ctx, dir, "env", "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=", "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", program, file)
}

// run runs a command in dir; its error holds the end of what it printed.
func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), err, out[max(0, len(out)-2000):])
	}
	return nil
}

var critestDigest = regexp.MustCompile(`/test-image-digest@sha256:[0-9a-f]{64}`)

// PatchCritest makes a critest binary expect this store's copy of the one image that
// it names by content: nobody can make local content with the upstream digest.
func (s *Store) PatchCritest(binary string) error {
	digest, ok := s.Digest(digestImage)
	if !ok {
		return fmt.Errorf("patch %s: these images lack %s", binary, digestImage)
	}
	body, err := os.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("patch critest: %w", err)
	}
	if n := len(critestDigest.FindAll(body, -1)); n != 1 {
		return fmt.Errorf("patch %s: found the test image's digest %d times, want once", binary, n)
	}
	body = critestDigest.ReplaceAllLiteral(body, []byte("/test-image-digest@"+digest))
	if err := os.WriteFile(binary, body, 0o755); err != nil {
		return fmt.Errorf("patch critest: %w", err)
	}
	return nil
}
