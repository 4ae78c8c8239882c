package content

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func TestVerify(t *testing.T) {
	data := []byte("some content")
	for name, tc := range map[string]struct {
		want digest.Digest
		size int64
		ok   bool
	}{
		"right":          {digest.FromBytes(data), 12, true},
		"right, sha512":  {digest.SHA512.FromBytes(data), 12, true},
		"length unknown": {digest.FromBytes(data), -1, true},
		"too long":       {digest.FromBytes(data), 11, false},
		"too short":      {digest.FromBytes(data), 13, false},
		"other content":  {digest.FromString("x"), 12, false},
		"other, unknown": {digest.FromString("x"), -1, false},
	} {
		t.Run(name, func(t *testing.T) {
			for how, r := range map[string]io.Reader{"whole": bytes.NewReader(data), "bytewise": iotest.OneByteReader(bytes.NewReader(data)),
				"with eof": iotest.DataErrReader(bytes.NewReader(data))} {
				v, err := Verify(r, tc.want, tc.size)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(v)
				if tc.ok && (err != nil || !bytes.Equal(got, data)) || !tc.ok && !errors.Is(err, ErrMismatch) {
					t.Errorf("%s: got %q, %v", how, got, err)
				}
				if tc.size >= 0 && int64(len(got)) > tc.size {
					t.Errorf("%s: %d bytes were passed on, the descriptor says %d", how, len(got), tc.size)
				}
				if err := v.Drain(); (err == nil) != tc.ok {
					t.Errorf("%s: drain: got %v", how, err)
				}
			}
		})
	}
	for _, s := range []string{"", "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:" + string(bytes.Repeat([]byte("A"), 64)), "../x"} {
		if d, err := Parse(s); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("parse %q: got %q, %v", s, d, err)
		}
	}
}

type doc struct{ A string }

func TestRecords(t *testing.T) {
	dir := t.TempDir()
	r, err := OpenRecords(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"1", "2"} {
		if err := r.Put("x", doc{v}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Put("bad", doc{"3"}); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"bad.json": `{"A":`, ".123.tmp": "half"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r, err = OpenRecords(dir, true); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	if err := Each(t.Context(), r, func(n string, d *doc) error { got[n] = d.A; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got["x"] != "2" {
		t.Errorf("records: got %v, want x: 2", got)
	}
	for range 2 {
		if err := r.Delete("x"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	var d doc
	if err := r.Get("x", &d); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("get: got %v", err)
	}
	if es, err := os.ReadDir(dir); err != nil || len(es) != 0 {
		t.Errorf("left: %v, %v", es, err)
	}
}
