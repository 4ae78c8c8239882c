// Package archive reads and writes the files in which images travel without a registry:
// OCI layouts and docker-archives, packed with tar.
//
// An archive is read once, from start to end, and nothing of it is kept on disk: small
// JSON documents stay in memory, up to a total; what looks like a layer goes to the
// caller as it comes; all else is passed over. What a file is called is a key and never
// a path. It refuses names that lead upwards, two different files of one name, blobs that are not what
// their name says. What the documents mean is the caller's business. It starts no
// goroutine.
package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Limits of one archive. The largest that people have hold some thousand files and some
// MB of documents.
const (
	MaxDocument  = 4 << 20
	maxDocuments = 64 << 20 // documents and names together
	maxEntries   = 100_000
	maxLinks     = 16 // followed for one name
)

// File is what is known of a file of the archive.
type File struct {
	Name string
	Size int64
	Doc  []byte        // of a JSON document
	Diff digest.Digest // of a layer: what it unpacks to
	Why  error         // neither: why it is of no use
}

// Contents are the files of an archive.
type Contents struct {
	files map[string]*File
	links map[string]string
	bytes int64 // in memory
}

// LayerFunc takes a file that looks like a layer, packed or not, and gives the digest of
// what it unpacks to; Contents are what came before. It need not read a file that it
// knows already. An error that is
// errdef.ErrInvalid says that this is no layer, any other ends Read.
type LayerFunc func(ctx context.Context, c *Contents, f *File, r io.Reader) (digest.Digest, error)

// Find gives a file by name, through links.
func (c *Contents) Find(name string) (*File, error) {
	for range maxLinks {
		if f := c.files[name]; f != nil {
			return f, nil
		}
		to, ok := c.links[name]
		if !ok {
			return nil, fmt.Errorf("the archive has no %.300q: %w", name, errdef.ErrNotFound)
		}
		name = to
	}
	return nil, fmt.Errorf("more than %d links lead to %.300q: %w", maxLinks, name, errdef.ErrInvalid)
}

// Document gives a document by name.
func (c *Contents) Document(name string) ([]byte, error) {
	f, err := c.Find(name)
	if err != nil {
		return nil, err
	}
	if f.Doc == nil {
		return nil, fmt.Errorf("%.300q is no document: %w", name, f.why())
	}
	return f.Doc, nil
}

// Layer gives a layer by name.
func (c *Contents) Layer(name string) (*File, error) {
	f, err := c.Find(name)
	if err != nil {
		return nil, err
	}
	if f.Diff == "" {
		return nil, fmt.Errorf("%.300q is no layer: %w", name, f.why())
	}
	return f, nil
}

func (f *File) why() error {
	if f.Why != nil {
		return f.Why
	}
	return errdef.ErrInvalid
}

// Documents counts the documents: when it has not grown, nothing new can be known.
func (c *Contents) Documents() (n int) {
	for _, f := range c.files {
		if f.Doc != nil {
			n++
		}
	}
	return n
}

// Blob is the name of a blob in an OCI layout.
func Blob(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// blobDigest gives the digest that a name promises, "" if it is not that of a blob.
func blobDigest(name string) digest.Digest {
	rest, ok := strings.CutPrefix(name, "blobs/")
	if !ok {
		return ""
	}
	d, err := content.Parse(strings.Replace(rest, "/", ":", 1))
	if err != nil {
		return ""
	}
	return d
}

type reader struct {
	*Contents
	layer LayerFunc
	names int
}

// Read reads an archive that is not compressed to its end.
func Read(ctx context.Context, r io.Reader, layer LayerFunc) (*Contents, error) {
	a := &reader{&Contents{files: map[string]*File{}, links: map[string]string{}}, layer, 0}
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("read archive: %w", context.Cause(ctx))
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if errors.Is(err, tar.ErrHeader) {
			return nil, fmt.Errorf("read archive: this is no tar archive, or a damaged one: %w: %w", err, errdef.ErrInvalid)
		} else if err != nil {
			return nil, cutOff("read archive", err)
		}
		if err := a.entry(ctx, h, tr); err != nil {
			return nil, cutOff(fmt.Sprintf("archive entry %.300q", h.Name), err)
		}
	}
	// The compression around it ends after the archive, with a checksum.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, cutOff("read end of archive", err)
	}
	return a.Contents, nil
}

// cutOff says what a stream means that ended early.
func cutOff(what string, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, errdef.ErrInvalid) {
		return fmt.Errorf("%s: the archive is cut off: %w: %w", what, err, errdef.ErrInvalid)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (a *reader) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	if a.names++; a.names > maxEntries {
		return fmt.Errorf("more than %d entries: %w", maxEntries, errdef.ErrExhausted)
	}
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeXGlobalHeader:
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if err := a.keep(int64(len(name) + len(h.Linkname))); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return a.file(ctx, &File{Name: name, Size: h.Size}, r)
	case tar.TypeSymlink:
		return a.link(name, path.Dir(name), h.Linkname)
	case tar.TypeLink:
		return a.link(name, "", h.Linkname)
	}
	return fmt.Errorf("entries of type %q have no place in an archive of images: %w", h.Typeflag, errdef.ErrInvalid)
}

// keep counts what stays in memory.
func (a *reader) keep(n int64) error {
	if a.bytes += n; a.bytes > maxDocuments {
		return fmt.Errorf("documents of more than %d bytes in all: %w", maxDocuments, errdef.ErrExhausted)
	}
	return nil
}

// cleanName gives a name without "./".
func cleanName(name string) (string, error) {
	switch {
	case path.IsAbs(name), strings.IndexByte(name, 0) >= 0, len(name) > 4096:
	case name == "..", strings.HasPrefix(name, "../"), strings.HasSuffix(name, "/.."), strings.Contains(name, "/../"):
	default:
		if clean := path.Clean(name); clean != "." {
			return clean, nil
		}
	}
	return "", fmt.Errorf("a name must be relative and lead nowhere else: %w", errdef.ErrInvalid)
}

// link notes another name of a file: of old, Docker writes layers once and links to them.
func (a *reader) link(name, dir, target string) error {
	to := path.Join(dir, target)
	if target == "" || path.IsAbs(target) || to == "." || to == ".." || strings.HasPrefix(to, "../") {
		return fmt.Errorf("it links to %.300q, which is outside: %w", target, errdef.ErrInvalid)
	}
	if old, ok := a.links[name]; a.files[name] != nil || ok && old != to {
		return twice()
	}
	a.links[name] = to
	return nil
}

func twice() error { return fmt.Errorf("it is there twice: %w", errdef.ErrInvalid) }

func (a *reader) file(ctx context.Context, f *File, r io.Reader) error {
	d := blobDigest(f.Name)
	old := a.files[f.Name]
	if _, ok := a.links[f.Name]; ok || old != nil && d == "" && old.Doc == nil {
		return twice()
	}
	if old != nil && d != "" {
		return nil // its content is known by its name
	}
	var v *content.Verifier
	if d != "" {
		var err error
		if v, err = content.Verify(r, d, f.Size); err != nil {
			return err
		}
		r = v
	}
	if err := a.take(ctx, f, bufio.NewReaderSize(r, 64<<10), v); err != nil {
		return err
	}
	if old != nil && !bytes.Equal(old.Doc, f.Doc) {
		return twice()
	}
	a.files[f.Name] = f
	return nil
}

// take finds out what a file is and fills in what is to be known of it.
func (a *reader) take(ctx context.Context, f *File, r *bufio.Reader, v *content.Verifier) error {
	head, err := r.Peek(tarBlock)
	if err != nil && !errors.Is(err, io.EOF) { // a short file
		return err
	}
	switch sniff(head) {
	case aLayer:
		f.Diff, err = a.layer(ctx, a.Contents, f, r)
		if errors.Is(err, errdef.ErrInvalid) && ctx.Err() == nil {
			f.Diff, f.Why, err = "", err, verified(v)
		}
		return err
	case aDocument:
		return a.document(f, r)
	case unknown:
	}
	f.Why = fmt.Errorf("it has %d bytes and is neither JSON, tar, gzip nor zstd: %w", f.Size, errdef.ErrInvalid)
	return nil
}

// verified reads on to the end: a file that cannot be understood may be a damaged one.
func verified(v *content.Verifier) error {
	if v == nil {
		return nil
	}
	return v.Drain()
}

func (a *reader) document(f *File, r io.Reader) (err error) {
	if f.Size > MaxDocument {
		f.Why = fmt.Errorf("it has %d bytes, a document has at most %d: %w", f.Size, MaxDocument, errdef.ErrInvalid)
		return nil
	}
	if err := a.keep(f.Size); err != nil {
		return err
	}
	f.Doc, err = io.ReadAll(r)
	return err
}

type nature int

const (
	aLayer nature = iota + 1
	aDocument
	unknown
)

const tarBlock = 512

// sniff tells from a file's beginning what it is. Names and media types lie, or come later.
func sniff(head []byte) nature {
	if isTar(head) {
		return aLayer
	}
	for _, magic := range []string{"\x1f\x8b", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return aLayer
		}
	}
	if len(head) > 4 && head[0]&0xf0 == 0x50 && string(head[1:4]) == "\x2a\x4d\x18" { // a zstd skippable frame
		return aLayer
	}
	if text := bytes.TrimLeft(head, " \t\r\n"); len(text) > 0 && (text[0] == '{' || text[0] == '[') {
		return aDocument
	}
	return unknown
}

// isTar says whether a block is a tar header, by its checksum, or the end of an empty
// archive.
func isTar(b []byte) bool {
	const at, n = 148, 8
	if len(b) < tarBlock {
		return false
	}
	sum, zero := 0, true
	for i, c := range b[:tarBlock] {
		zero = zero && c == 0
		if i >= at && i < at+n {
			c = ' '
		}
		sum += int(c)
	}
	want, err := strconv.ParseInt(strings.Trim(string(b[at:at+n]), " \x00"), 8, 32)
	return zero || err == nil && int64(sum) == want
}
