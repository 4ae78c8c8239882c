package reference

import (
	"errors"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

var hex = strings.Repeat("0a", 32)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"busybox":                     "docker.io/library/busybox",
		"busybox:1":                   "docker.io/library/busybox:1",
		"a/b":                         "docker.io/a/b",
		"index.docker.io/b":           "docker.io/library/b",
		"index.docker.io/library/b:1": "docker.io/library/b:1",
		"localhost/x":                 "localhost/x",
		"localhost:5000/x:y":          "localhost:5000/x:y",
		"HOST/x":                      "host/x",
		"[::1]:5000/x":                "[::1]:5000/x",
		"r.example/a/b__c/d-e.f:V_1@sha256:" + hex: "r.example/a/b__c/d-e.f:V_1@sha256:" + hex,
	} {
		r, err := Parse(in)
		if err != nil || r.String() != want {
			t.Errorf("parse %q: got %q, %v, want %q", in, r, err, want)
		}
	}
	for _, in := range []string{"", "/", "a//b", "A", "a:", "a:b:c", "a@sha256:12", "a@md5:" + hex, "a@", "-a/b", "r.example:99999999/a", "a..b",
		"r.example/", "r.example/../x", "a b", "a:" + strings.Repeat("x", 129), hex, "r.example/" + strings.Repeat("a", 250), "a\x00"} {
		if r, err := Parse(in); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("parse %q: got %q, %v, want invalid", in, r, err)
		}
	}
}

func TestValidHost(t *testing.T) {
	for s, want := range map[string]bool{"docker.io": true, "localhost": true, "h:5000": true, "localhost:1": true, "[::1]:1": true, "10.0.0.1": true,
		"busybox": false, "index.docker.io": false, "R.example": false, "": false, "h:latest": false, "https://h.io": false, "a.b/c": false} {
		if got := ValidHost(s); got != want {
			t.Errorf("ValidHost(%q): got %v, want %v", s, got, want)
		}
	}
}

// FuzzParse: what is accepted is in normal form, and the normal form means the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"busybox", "a.b/c:d@sha256:" + hex, "localhost:1/x", "[::1]/x", "index.docker.io/x", "A.b/c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			if !errors.Is(err, errdef.ErrInvalid) {
				t.Fatalf("parse %q: %v is not invalid", s, err)
			}
			return
		}
		if !ValidHost(r.Host) && r.Host != "docker.io" {
			// A host is told by a capital letter only, which normalising takes away.
			if strings.ContainsAny(r.Host, ".:") || r.Host == "localhost" {
				t.Fatalf("parse %q: host %q is not valid", s, r.Host)
			}
			return
		}
		again, err := Parse(r.String())
		if err != nil || again != r {
			t.Fatalf("parse %q gives %q, which gives %+v, %v", s, r, again, err)
		}
	})
}
