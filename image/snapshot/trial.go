package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/linux/probe"
)

// chooseFormat settles what new layers are kept as. Whether the kernel can mount EROFS
// layers is tried in any case: there may be some of an earlier start.
func (s *Store) chooseFormat(ctx context.Context) error {
	e := &erofs{opt: s.opt.Layer, path: s.layerDir, dir: s.dir("l")}
	s.formats = map[Format]format{Directory: directory{s}, EROFS: e}
	m, err := probe.Remember(ctx, filepath.Join(s.opt.State, "found.json"), s.opt.Root)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	if e.missing = m.Try("EROFS layers", func() error { return trial(ctx, s.dir("trash")) }); e.missing != nil {
		s.reason = e.missing.Error()
	}
	m.Save(ctx)
	switch f := s.opt.Format; {
	case f == Directory:
	case f == EROFS && e.missing != nil:
		return fmt.Errorf("layer store %q: %w: %w", f, e.missing, errdef.ErrInvalid)
	case f == EROFS:
	case f == Auto || f == "":
		s.opt.Format = EROFS
		if e.missing != nil {
			s.opt.Format = Directory
			klog.FromContext(ctx).Info("Layers are kept as directories", "cause", s.reason)
		}
	default:
		return fmt.Errorf("layer store %q: want auto, erofs or directory: %w", f, errdef.ErrInvalid)
	}
	return nil
}

// trial makes two layers below dir and a container's root of them, as it is done for
// containers: EROFS from two files (6.12) on this filesystem, overlay over detached
// mounts (6.15), neither stacked too deep. What it leaves when it is killed is in the trash.
func trial(ctx context.Context, dir string) (err error) {
	tmp, err := os.MkdirTemp(dir, "trial-")
	if err != nil {
		return fmt.Errorf("try EROFS: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	e := &erofs{path: func(name string) string { return filepath.Join(tmp, name) }, dir: tmp}
	o := mount.Overlay{Upper: e.path("u"), Work: e.path("w"), Way: mount.Detached, Volatile: true}
	for _, d := range []string{o.Upper, o.Work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return fmt.Errorf("try EROFS: %w", err)
		}
	}
	for _, name := range []string{"a", "b"} {
		f, err := tryLayer(ctx, e, name)
		if err != nil {
			return fmt.Errorf("try an EROFS layer: %w", err)
		}
		defer f.Close()
		o.Lower = append(o.Lower, fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	}
	root, err := o.Mount()
	if err != nil {
		return fmt.Errorf("try an overlay of EROFS layers: %w", err)
	}
	defer root.Close()
	for _, name := range []string{"a", "b"} {
		if err := readBack(root, name); err != nil {
			return fmt.Errorf("try an overlay of EROFS layers: %w", err)
		}
	}
	return nil
}

// trialData is longer than a block and no multiple of it.
var trialData = bytes.Repeat([]byte("layer "), 200)

func tryLayer(ctx context.Context, e *erofs, name string) (*os.File, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(trialData))})
	if err == nil {
		_, err = w.Write(trialData)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	l := &Layer{Name: name}
	if err := e.unpack(ctx, l, &b); err != nil {
		return nil, err
	}
	f, err := e.mount(l, true)
	if err != nil {
		return nil, err
	}
	if err := readBack(f, name); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func readBack(root *os.File, name string) error {
	f, err := mount.OpenInRoot(root, name, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err == nil && !bytes.Equal(got, trialData) {
		err = fmt.Errorf("%s has %d wrong bytes", name, len(got))
	}
	return err
}
