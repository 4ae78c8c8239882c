package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

type entry struct {
	name, link, body string
	kind             byte
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if err := w.WriteHeader(&tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Size: int64(len(e.body)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// hashing takes everything for a layer.
func hashing(_ context.Context, _ *Contents, _ *File, r io.Reader) (digest.Digest, error) {
	return digest.FromReader(r)
}

func TestSniff(t *testing.T) {
	layer := pack(t, entry{name: "x", body: "y"})
	odd := pack(t, entry{name: "{\"a\":1}", body: "y"})
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	altered := bytes.Clone(layer)
	altered[10] ^= 1
	for name, tc := range map[string]struct {
		head []byte
		want nature
	}{
		"tar":                     {layer, aLayer},
		"tar with a name of JSON": {odd, aLayer},
		"empty tar":               {make([]byte, 1024), aLayer},
		"half a block of zeros":   {make([]byte, 256), unknown},
		"header altered":          {altered, unknown},
		"gzip":                    {[]byte("\x1f\x8b\x08"), aLayer},
		"zstd":                    {z.EncodeAll(layer, nil), aLayer},
		"zstd, skippable frame":   {append([]byte{0x5a, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, 0), aLayer},
		"object":                  {[]byte(" \n{"), aDocument},
		"list":                    {[]byte("[]"), aDocument},
		"text":                    {[]byte("1.0"), unknown},
		"nothing":                 {nil, unknown},
	} {
		if got := sniff(tc.head[:min(len(tc.head), tarBlock)]); got != tc.want {
			t.Errorf("%s: got %d, want %d", name, got, tc.want)
		}
	}
}

func TestLinks(t *testing.T) {
	l := string(pack(t, entry{name: "x"}))
	c, err := Read(t.Context(), bytes.NewReader(pack(t, entry{name: "a/", kind: tar.TypeDir},
		entry{name: "c/layer.tar", link: "../b/layer.tar", kind: tar.TypeSymlink}, entry{name: "./b/layer.tar", link: "a/layer.tar", kind: tar.TypeLink},
		entry{name: "a/layer.tar", body: l}, entry{name: "d", link: "nowhere", kind: tar.TypeSymlink}, entry{name: "doc", body: "{}"}, entry{name: "v", body: "1.0"})), hashing)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/layer.tar", "b/layer.tar", "c/layer.tar"} {
		if f, err := c.Layer(name); err != nil || f.Diff != digest.FromString(l) || f.Name != "a/layer.tar" {
			t.Errorf("%s: got %+v, %v", name, f, err)
		}
	}
	if b, err := c.Document("doc"); err != nil || string(b) != "{}" || c.Documents() != 1 {
		t.Errorf("doc: got %q, %v", b, err)
	}
	for name, kind := range map[string]error{"d": errdef.ErrNotFound, "none": errdef.ErrNotFound, "v": errdef.ErrInvalid, "doc": errdef.ErrInvalid} {
		if f, err := c.Layer(name); !errors.Is(err, kind) {
			t.Errorf("layer %s: got %+v, %v, want %v", name, f, err, kind)
		}
	}
}

func TestLimits(t *testing.T) {
	many := make([]entry, maxEntries+1)
	for i := range many {
		many[i] = entry{name: fmt.Sprint(i)}
	}
	if _, err := Read(t.Context(), bytes.NewReader(pack(t, many...)), hashing); !errors.Is(err, errdef.ErrExhausted) {
		t.Errorf("many entries: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ctx, bytes.NewReader(pack(t)), hashing); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	// A file that is no layer is passed over; any other failure is the end.
	boom := errors.New("boom")
	data := pack(t, entry{name: "x", body: string(pack(t, entry{name: "y"}))})
	for _, kind := range []error{errdef.ErrInvalid, boom} {
		final := !errors.Is(kind, errdef.ErrInvalid)
		c, err := Read(t.Context(), bytes.NewReader(data), func(context.Context, *Contents, *File, io.Reader) (digest.Digest, error) {
			return "", fmt.Errorf("layer: %w", kind)
		})
		if final && !errors.Is(err, boom) {
			t.Errorf("got %v, want %v", err, boom)
		} else if !final {
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Layer("x"); !errors.Is(err, kind) {
				t.Errorf("got %v, want %v", err, kind)
			}
		}
	}
}

func TestWriter(t *testing.T) {
	for name, write := range map[string]func(io.Writer) error{
		"too short": func(w io.Writer) error { _, err := io.WriteString(w, "abc"); return err },
		"too long":  func(w io.Writer) error { _, err := io.WriteString(w, "abcdef"); return err },
	} {
		if err := NewWriter(io.Discard).File("x", 4, write); err == nil || !strings.Contains(err.Error(), "entry x") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	var b bytes.Buffer
	w := NewWriter(&b)
	if err := errors.Join(w.Dir("d/"), w.Dir("d/"), w.Bytes("d/x", []byte("{}")), w.Bytes("d/x", []byte("{}")), w.Close()); err != nil {
		t.Fatal(err)
	}
	c, err := Read(t.Context(), &b, hashing)
	if err != nil {
		t.Fatal(err)
	}
	if doc, err := c.Document("d/x"); err != nil || string(doc) != "{}" {
		t.Errorf("got %q, %v", doc, err)
	}
}
