package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// The images that Small makes.
const (
	SmallName = "bench/small:1" // /bench and /bin/true
	PauseName = "bench/pause:1" // /pause, for the runtimes that want one
)

// workload is C for the compiler of Debian's gcc, without any library: a Go program takes
// a millisecond to start and a megabyte to hold, which would count in every figure.
//
//go:embed workload/bench.c
var workload embed.FS

// smallRecipe is raised with every change of what the small images contain beside the
// program, whose source and compiler are in the key.
const smallRecipe = 1

// Small returns the images of the pod benchmark, made at the first call: they need gcc and
// no network.
func Small(ctx context.Context, cache string) (*Set, error) {
	work := filepath.Join(cache, "bench")
	unlock, err := lock(work)
	if err != nil {
		return nil, err
	}
	defer unlock()
	source, err := workload.ReadFile("workload/bench.c")
	if err != nil {
		return nil, fmt.Errorf("read workload: %w", err)
	}
	compiler, err := exec.CommandContext(ctx, "gcc", "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("small images need gcc: %w", err)
	}
	h := sha256.New()
	fmt.Fprintln(h, smallRecipe, runtime.Version(), runtime.GOARCH)
	h.Write(source)
	h.Write(compiler)
	final := filepath.Join(work, "small-"+hex.EncodeToString(h.Sum(nil))[:16])
	if s, err := open(final); err == nil {
		return s, nil
	}
	tmp, err := os.MkdirTemp(work, "build.")
	if err != nil {
		return nil, fmt.Errorf("make small images: %w", err)
	}
	defer os.RemoveAll(tmp)
	s, err := makeSmall(ctx, tmp, source)
	if err != nil {
		return nil, fmt.Errorf("make small images: %w", err)
	}
	if err := s.write(tmp); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, final); err != nil {
		return nil, fmt.Errorf("keep small images: %w", err)
	}
	return open(final)
}

func makeSmall(ctx context.Context, dir string, source []byte) (*Set, error) {
	program, err := compile(ctx, dir, source)
	if err != nil {
		return nil, err
	}
	b := &builder{dir: dir, say: func(string, ...any) {}, layers: map[string]packed{}}
	for layer, names := range map[string][]string{"small": {"bench", "bin/true"}, "pause": {"pause"}} {
		if err := b.layer(ctx, layer, func(w *layerWriter) error {
			if err := w.skeleton(); err != nil {
				return err
			}
			for _, name := range names {
				if err := w.program(name, bytes.NewReader(program), int64(len(program))); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	for _, i := range []struct{ name, layer, command string }{{SmallName, "small", "/bench"}, {PauseName, "pause", "/pause"}} {
		b.command, b.arch = []string{i.command}, runtime.GOARCH
		if err := b.image(i.name, false, []string{i.layer}); err != nil {
			return nil, err
		}
	}
	return &Set{Source: "workload/bench.c", Images: b.images}, nil
}

// skeleton is what every usual image has, so that no runtime has to make mount points.
func (w *layerWriter) skeleton() error {
	for _, dir := range []string{"dev/", "proc/", "sys/", "tmp/"} {
		if err := w.put(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: stamp}, nil); err != nil {
			return err
		}
	}
	const users = "root:x:0:0:root:/:/bench\n"
	return w.file("etc/passwd", strings.NewReader(users), int64(len(users)))
}

// compile makes the program: static, without libc, a start that is an execve and nothing else.
func compile(ctx context.Context, dir string, source []byte) (program []byte, err error) {
	out := filepath.Join(dir, "bench")
	cmd := exec.CommandContext(ctx, "gcc", "-x", "c", "-", "-o", out, "-Os", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-s",
		"-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-tree-loop-distribute-patterns", "-Wl,--build-id=none,-z,noseparate-code")
	cmd.Stdin = bytes.NewReader(source)
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile workload: %w: %s", err, text)
	}
	defer func() { err = errors.Join(err, os.Remove(out)) }()
	return os.ReadFile(out)
}
