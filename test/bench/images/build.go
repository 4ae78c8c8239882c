package images

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// packed is one layer in its two compressions.
type packed struct {
	gzip, zstd Layer
}

// builder makes layers and images below dir.
type builder struct {
	dir    string
	say    func(string, ...any)
	layers map[string]packed
	images []Image

	command []string // of the images
	arch    string
}

const smallFileCount = 20000

// all makes everything. Each image is there with gzip and, where it says so, with zstd.
func (b *builder) all(ctx context.Context, files []input) ([]Image, error) {
	steps := []func(context.Context) error{
		func(ctx context.Context) error {
			return b.layer(ctx, "small", func(w *layerWriter) error { return w.file("etc/motd", strings.NewReader("hello\n"), 6) })
		},
		func(ctx context.Context) error { return b.debianLayers(ctx, files) },
		func(ctx context.Context) error {
			return b.layer(ctx, "extra", func(w *layerWriter) error { return w.smallFiles(99, "srv", 2000) })
		},
		func(ctx context.Context) error {
			return b.layer(ctx, "node", func(w *layerWriter) error { return w.smallFiles(1, "app", smallFileCount) })
		},
		b.bigLayers,
		b.manyLayers,
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	many := make([]string, 20)
	for i := range many {
		many[i] = fmt.Sprintf("many%d", i)
	}
	app := []string{"small", "debian", "toolchain", "application"}
	second := append(slices.Clone(app), "extra")
	for _, i := range []struct {
		name   string
		layers []string
		zstd   bool
	}{
		{"bench/warm:1", []string{"small"}, false},
		{"bench/debian-app:a", app, false},
		{"bench/debian-app:b", second, false},
		{"bench/debian-app:a-zst", app, true},
		{"bench/debian-app:b-zst", second, true},
		{"bench/node:gz", []string{"small", "node"}, false},
		{"bench/node:zst", []string{"small", "node"}, true},
		{"bench/big:gz", []string{"small", "big0", "big1", "big2"}, false},
		{"bench/big:zst", []string{"small", "big0", "big1", "big2"}, true},
		{"bench/layers20:gz", many, false},
	} {
		if err := b.image(i.name, i.zstd, i.layers); err != nil {
			return nil, fmt.Errorf("%s: %w", i.name, err)
		}
	}
	return b.images, nil
}

// debianLayers packs the inputs, each into its layer, in their order.
func (b *builder) debianLayers(ctx context.Context, files []input) error {
	for _, l := range debian {
		if err := b.layer(ctx, l.layer, func(w *layerWriter) error {
			for _, f := range files {
				if f.layer != l.layer {
					continue
				}
				add := w.addTree
				if strings.HasSuffix(f.path, ".deb") {
					add = w.addPackage
				}
				if err := add(ctx, f.path); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// bigLayers are three of 100 MiB, half of it text, half incompressible.
func (b *builder) bigLayers(ctx context.Context) error {
	const half = 50 << 20
	for i := range int64(3) {
		if err := b.layer(ctx, fmt.Sprintf("big%d", i), func(w *layerWriter) error {
			if err := w.file(fmt.Sprintf("data/%d/text", i), newText(10+i), half); err != nil {
				return err
			}
			return w.file(fmt.Sprintf("data/%d/bin", i), newRandom(20+i), half)
		}); err != nil {
			return err
		}
	}
	return nil
}

// manyLayers are twenty of 8 MiB in 200 files each.
func (b *builder) manyLayers(ctx context.Context) error {
	const half = 20 << 10
	for i := range int64(20) {
		if err := b.layer(ctx, fmt.Sprintf("many%d", i), func(w *layerWriter) error {
			for j := range int64(200) {
				body := io.MultiReader(io.LimitReader(newText(1000*i+j), half), newRandom(1000*i+j))
				if err := w.file(fmt.Sprintf("opt/l%d/d%d/f%d", i, j%10, j), body, 2*half); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// image writes configuration and manifest of an image.
func (b *builder) image(name string, zstd bool, layers []string) error {
	config := ocispec.Image{Created: &stamp}
	config.OS, config.Architecture, config.Config.Cmd = "linux", b.arch, b.command
	config.RootFS.Type = "layers"
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	manifest.SchemaVersion = 2
	image := Image{Name: name}
	for _, l := range layers {
		layer := b.layers[l].gzip
		if zstd {
			layer = b.layers[l].zstd
		}
		image.Layers = append(image.Layers, layer)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest(layer.DiffID))
		config.History = append(config.History, ocispec.History{Created: &stamp, CreatedBy: "bench layer " + l})
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: layer.Media, Digest: digest(layer.Digest), Size: layer.Size})
	}
	var err error
	if manifest.Config, err = b.document(ocispec.MediaTypeImageConfig, config); err != nil {
		return err
	}
	d, err := b.document(ocispec.MediaTypeImageManifest, manifest)
	if err != nil {
		return err
	}
	image.Digest = d.Digest.String()
	b.images = append(b.images, image)
	b.say("%-24s layers %2d, entries %6d, compressed %6.1f MB, unpacked %6.1f MB", name, len(layers), image.Entries(), float64(image.Size())/1e6, float64(image.Unpacked())/1e6)
	return nil
}
