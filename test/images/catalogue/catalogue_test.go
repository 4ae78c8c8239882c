package catalogue

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const exampleName = "example.test/web:1"

// example builds the example image into a cache of its own.
func example(t *testing.T) *Store {
	t.Helper()
	if findBusybox() == "" {
		if os.Getenv("CRI_TEST_STRICT") != "" {
			t.Fatal("this test needs Debian's busybox-static")
		}
		t.Skip("this test needs Debian's busybox-static")
	}
	s, err := Example(t.Context(), t.TempDir(), exampleName)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type descriptor struct {
	MediaType string
	Digest    string
	Platform  struct{ OS, Architecture string }
}

// get makes a request, "METHOD PATH [RANGE]", to the registry, and checks the content where the name is a digest.
func get(t *testing.T, server *httptest.Server, request string, want int) ([]byte, http.Header) {
	t.Helper()
	method, rest, _ := strings.Cut(request, " ")
	path, rang, _ := strings.Cut(rest, " ")
	req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rang != "" {
		req.Header.Set("Range", rang)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != want {
		t.Fatalf("%s %s: got %s, want %d: %s", method, path, resp.Status, want, body)
	}
	if _, sum, ok := strings.Cut(path, "sha256:"); ok && want == http.StatusOK && method == http.MethodGet {
		if got := sha256.Sum256(body); hex.EncodeToString(got[:]) != sum {
			t.Fatalf("%s: content has sha256 %x", path, got)
		}
	}
	return body, resp.Header
}

// TestPull walks from the tag to the files as a runtime does.
func TestPull(t *testing.T) {
	store := example(t)
	server := httptest.NewServer(store)
	defer server.Close()

	var index struct{ Manifests []descriptor }
	body, header := get(t, server, "GET /v2/web/manifests/1?ns=example.test", http.StatusOK)
	if err := json.Unmarshal(body, &index); err != nil {
		t.Fatal(err)
	}
	want, _ := store.Digest(exampleName)
	if got := header.Get("Docker-Content-Digest"); got != want {
		t.Errorf("digest of the tag: got %q, want %q", got, want)
	}
	if got := header.Get("Content-Type"); got != string(oci.index) {
		t.Errorf("type of the tag: got %q, want %q", got, oci.index)
	}
	here := slices.IndexFunc(index.Manifests, func(d descriptor) bool {
		return d.Platform.OS == "linux" && d.Platform.Architecture == runtime.GOARCH
	})
	if here < 0 || len(index.Manifests) < 2 {
		t.Fatalf("platforms: got %+v, want this one among others", index.Manifests)
	}

	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	body, _ = get(t, server, "GET /v2/web/manifests/"+index.Manifests[here].Digest, http.StatusOK)
	if err := json.Unmarshal(body, &manifest); err != nil {
		t.Fatal(err)
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	body, _ = get(t, server, "GET /v2/web/blobs/"+manifest.Config.Digest, http.StatusOK)
	if err := json.Unmarshal(body, &config); err != nil {
		t.Fatal(err)
	}
	if len(config.RootFS.DiffIDs) != len(manifest.Layers) {
		t.Fatalf("diff ids: got %d for %d layers", len(config.RootFS.DiffIDs), len(manifest.Layers))
	}
	var files []string
	for i, l := range manifest.Layers {
		body, _ = get(t, server, "GET /v2/web/blobs/"+l.Digest, http.StatusOK)
		files = append(files, list(t, body, config.RootFS.DiffIDs[i])...)
		part, _ := get(t, server, "GET /v2/web/blobs/"+l.Digest+" bytes=10-19", http.StatusPartialContent)
		if !bytes.Equal(part, body[10:20]) {
			t.Errorf("range of %s: got %x, want %x", l.Digest, part, body[10:20])
		}
	}
	for _, name := range []string{"bin/sh", "bin/httpd", "www/index.html", "tmp/"} {
		if !slices.Contains(files, name) {
			t.Errorf("image lacks %s", name)
		}
	}
}

// list reads a layer, checks its uncompressed digest and returns its names.
func list(t *testing.T, body []byte, diffID string) (names []string) {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(zip)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(plain); "sha256:"+hex.EncodeToString(sum[:]) != diffID {
		t.Errorf("diff id: got %x, want %s", sum, diffID)
	}
	for r := tar.NewReader(bytes.NewReader(plain)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeLink && !slices.Contains(names, h.Linkname) {
			t.Errorf("hard link %s stands before its target %s", h.Name, h.Linkname)
		}
		names = append(names, h.Name)
	}
}

func TestRefusals(t *testing.T) {
	server := httptest.NewServer(example(t))
	defer server.Close()
	for path, want := range map[string]int{
		"/v2/":                             http.StatusOK,
		"/v2/web/manifests/2":              http.StatusNotFound,
		"/v2/other/manifests/1":            http.StatusNotFound,
		"/v2/web/blobs/../../../index":     http.StatusNotFound,
		"/v2/web/blobs/sha256:..":          http.StatusNotFound,
		"/v2/web/blobs/..%2f..%2findex":    http.StatusNotFound,
		"/v2/web/tags/list":                http.StatusNotFound,
		"/v2/web/manifests/sha256:" + zero: http.StatusNotFound,
	} {
		get(t, server, "GET "+path, want)
	}
	get(t, server, "HEAD /v2/web/manifests/1", http.StatusOK)
	get(t, server, "POST /v2/web/blobs/uploads/", http.StatusMethodNotAllowed)
}

const zero = "0000000000000000000000000000000000000000000000000000000000000000"

// TestReproducible holds what the patch of critest and the cache rest on.
func TestReproducible(t *testing.T) {
	a, _ := example(t).Digest(exampleName)
	b, _ := example(t).Digest(exampleName)
	if a == "" || a != b {
		t.Errorf("digest: got %q, then %q", a, b)
	}
}

func TestPatchCritest(t *testing.T) {
	store := &Store{digests: map[string]string{digestImage: "sha256:" + zero}}
	for name, tc := range map[string]struct {
		body string
		ok   bool
	}{
		"one":  {"x/test-image-digest@sha256:" + strings.Repeat("9", 64) + "y", true},
		"none": {"x/test-image-digest@sha256:99", false},
		"two":  {strings.Repeat("/test-image-digest@sha256:"+strings.Repeat("9", 64), 2), false},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "critest")
			if err := os.WriteFile(file, []byte(tc.body), 0o600); err != nil {
				t.Fatal(err)
			}
			err := store.PatchCritest(file)
			got, _ := os.ReadFile(file)
			if !tc.ok {
				if err == nil || string(got) != tc.body {
					t.Errorf("patch: got error %v and content %q, want an error and no change", err, got)
				}
				return
			}
			if want := "x/test-image-digest@sha256:" + zero + "y"; err != nil || string(got) != want {
				t.Errorf("patch: got %q, %v, want %q", got, err, want)
			}
		})
	}
}
