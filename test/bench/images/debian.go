package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// The packages of the application image, by layer: a small system, a toolchain as in
// the golang and gcc images, and an application in Python with its data.
var debian = []struct {
	layer    string
	packages []string
}{
	{"debian", []string{
		"apt", "base-files", "bash", "ca-certificates", "coreutils", "debianutils", "dpkg", "findutils", "grep", "gzip", "libc-bin", "libc6",
		"libgcc-s1", "libperl5.36", "libssl3", "libstdc++6", "openssl", "passwd", "perl-base", "perl-modules-5.36", "sed", "tar", "tzdata", "util-linux",
	}},
	{"toolchain", []string{"cpp-12", "git", "golang-1.19-src", "libgcc-12-dev", "linux-libc-dev"}},
	{"application", []string{
		"libpython3.11-minimal", "libpython3.11-stdlib", "python-babel-localedata", "python3-django", "python3-numpy", "python3-pandas", "python3-plotly",
		"python3.11-minimal",
	}},
}

// input is a file or directory that goes into a layer.
type input struct {
	layer, path string
}

// inputs finds the packages, downloading what is missing; or falls back.
func inputs(ctx context.Context, dir string, say func(string, ...any)) ([]input, string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, "", fmt.Errorf("create package cache: %w", err)
	}
	files, err := download(ctx, dir, say)
	if err == nil {
		return files, "packages of Debian 12", nil
	}
	if ctx.Err() != nil {
		return nil, "", err
	}
	say("no Debian packages (%v): the application image is made of this system's /usr, and compares with no other machine's", err)
	return []input{
		{"debian", "/usr/bin"}, {"debian", "/usr/share/zoneinfo"}, {"toolchain", "/usr/lib"}, {"application", "/usr/share"},
	}, "this system's /usr: no Debian packages could be had", nil
}

// download fetches each package once. What is in the cache stays, so that the images of
// a machine do not change with the mirror.
func download(ctx context.Context, dir string, say func(string, ...any)) ([]input, error) {
	var files []input
	var missing []string
	for _, l := range debian {
		for _, name := range l.packages {
			found, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
			if len(found) == 0 {
				missing = append(missing, name)
				continue
			}
			files = append(files, input{l.layer, slices.Max(found)})
		}
	}
	if len(missing) == 0 {
		return files, nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, err
	}
	say("downloading %d Debian packages", len(missing))
	get := append([]string{"-q", "download"}, missing...)
	if err := run(ctx, dir, "apt-get", get...); err != nil {
		// Package lists of last month name files that the mirror no longer has.
		err = errors.Join(err, run(ctx, dir, "apt-get", "-q", "update"))
		if again := run(ctx, dir, "apt-get", get...); again != nil {
			return nil, errors.Join(err, again)
		}
	}
	for _, name := range missing {
		if found, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb")); len(found) == 0 {
			return nil, fmt.Errorf("download %s: apt-get left no file", name)
		}
	}
	return download(ctx, dir, say)
}

// addPackage copies what a package holds, less the entries that are there already.
func (w *layerWriter) addPackage(ctx context.Context, file string) (err error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("unpack %s: %w", file, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("unpack %s: %w", file, err)
	}
	defer func() {
		_, _ = io.Copy(io.Discard, out) // to the end: dpkg-deb must not die of a closed pipe
		err = errors.Join(err, cmd.Wait())
	}()
	for in := tar.NewReader(out); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpack %s: %w", file, err)
		}
		h.Name = clean(h.Name, h.Typeflag)
		if h.Typeflag == tar.TypeLink {
			h.Linkname = clean(h.Linkname, h.Typeflag)
		}
		if h.Name == "./" || w.seen[h.Name] {
			continue
		}
		h.Format, h.Uname, h.Gname = tar.FormatUnknown, "", ""
		if err := w.put(h, in); err != nil {
			return fmt.Errorf("copy %s of %s: %w", h.Name, filepath.Base(file), err)
		}
	}
}

// clean is the form of names that image builders write: "usr/bin/", "usr/bin/sh".
func clean(name string, kind byte) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	switch {
	case name == "":
		return "./"
	case kind == tar.TypeDir:
		return name + "/"
	}
	return name
}

// treeLimit is about how much of a layer addTree fills: a system's /usr has any size.
const treeLimit = 180e6

// addTree copies a directory of this system: regular files, directories, symbolic links.
func (w *layerWriter) addTree(ctx context.Context, dir string) error {
	return filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if w.bytes+info.Size() > treeLimit && info.Mode().IsRegular() {
			return nil // smaller ones may fit
		}
		kind := info.Mode().Type()
		if kind != 0 && kind != os.ModeDir && kind != os.ModeSymlink {
			return nil
		}
		target := ""
		if kind == os.ModeSymlink {
			if target, err = os.Readlink(p); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		h.Name = clean(p, h.Typeflag)
		h.Uname, h.Gname, h.ModTime, h.Format = "", "", stamp, tar.FormatUnknown
		if kind != 0 {
			return w.put(h, nil)
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		return w.put(h, f)
	})
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
