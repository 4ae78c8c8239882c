package archive

import (
	"archive/tar"
	"fmt"
	"io"
	"time"
)

// Writer packs files. It is not safe for several goroutines.
type Writer struct {
	tw   *tar.Writer
	seen map[string]bool
}

// NewWriter begins an archive of blobs.
func NewWriter(w io.Writer) *Writer { return &Writer{tar.NewWriter(w), map[string]bool{}} }

// epoch is every entry's time: the same images give the same archive.
var epoch = time.Unix(0, 0)

// File adds a file of a known size, once; write has to write all of it.
func (w *Writer) File(name string, size int64, write func(io.Writer) error) error {
	if w.seen[name] {
		return nil
	}
	w.seen[name] = true
	err := w.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: epoch})
	if err == nil {
		err = write(w.tw)
	}
	if err == nil {
		err = w.tw.Flush() // fails if something is missing
	}
	if err != nil {
		return fmt.Errorf("write archive entry %s: %w", name, err)
	}
	return nil
}

// Bytes adds a small file, once.
func (w *Writer) Bytes(name string, data []byte) error {
	return w.File(name, int64(len(data)), func(to io.Writer) error {
		_, err := to.Write(data)
		return err
	})
}

// Dir adds a directory, once. Some readers want to see those of their files.
func (w *Writer) Dir(name string) error {
	if w.seen[name] {
		return nil
	}
	w.seen[name] = true
	if err := w.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: epoch}); err != nil {
		return fmt.Errorf("write archive entry %s: %w", name, err)
	}
	return nil
}

// Close ends the archive; w is the caller's to close. An archive that is not closed is
// cut off, and said to be by who reads it.
func (w *Writer) Close() error {
	if err := w.tw.Close(); err != nil {
		return fmt.Errorf("end archive: %w", err)
	}
	return nil
}
