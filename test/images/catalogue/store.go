package catalogue

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Store is a set of images on disk. It may be used by several goroutines.
type Store struct {
	dir     string
	digests map[string]string // by full reference
	tags    map[string]string // digest by reference less the registry
}

// References returns the names of all images, sorted.
func (s *Store) References() []string { return slices.Sorted(maps.Keys(s.digests)) }

// Digest returns the digest of the index that a full reference names.
func (s *Store) Digest(reference string) (string, bool) {
	digest, ok := s.digests[reference]
	return digest, ok
}

// WriteHosts makes dir a registry host folder (certs.d) that sends the pulls from
// every registry to address, over plain HTTP.
func WriteHosts(dir, address string) error {
	folder := filepath.Join(dir, "_default")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("write registry hosts: %w", err)
	}
	body := fmt.Sprintf("server = \"http://%[1]s\"\n\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", address)
	if err := os.WriteFile(filepath.Join(folder, "hosts.toml"), []byte(body), 0o600); err != nil {
		return fmt.Errorf("write registry hosts: %w", err)
	}
	return nil
}

var (
	route  = regexp.MustCompile(`^/v2/([a-z0-9._/-]+)/(manifests|blobs)/([\w.:-]+)$`)
	digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// ServeHTTP answers as a read-only registry: manifests by tag and digest, and
// blobs, with ranges. The host part of a reference is not looked at.
func (s *Store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", r.Method)
		return
	}
	if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
		_, _ = w.Write([]byte("{}"))
		return
	}
	m := route.FindStringSubmatch(r.URL.Path)
	if m == nil {
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN", r.URL.Path)
		return
	}
	name, kind, what := m[1], m[2], m[3]
	media := "application/octet-stream"
	if kind == "manifests" {
		if !digest.MatchString(what) {
			what = s.tags[name+":"+what]
		}
		if media = s.mediaType(what); media == "" {
			refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", r.URL.Path)
			return
		}
	}
	f, err := os.Open(s.blob(what))
	if err != nil {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", r.URL.Path)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", media)
	w.Header().Set("Docker-Content-Digest", what)
	w.Header().Set("Etag", `"`+what+`"`)
	http.ServeContent(w, r, "", time.Time{}, f)
}

// blob is the file of a digest; of anything else, one that does not exist.
func (s *Store) blob(what string) string {
	if !digest.MatchString(what) {
		return filepath.Join(s.dir, "blobs", "none")
	}
	return filepath.Join(s.dir, "blobs", strings.ReplaceAll(what, ":", string(filepath.Separator)))
}

// mediaType reads what kind of manifest a digest names; "" for none.
func (s *Store) mediaType(what string) string {
	body, err := os.ReadFile(s.blob(what))
	var manifest struct {
		MediaType string `json:"mediaType"`
	}
	if err != nil || json.Unmarshal(body, &manifest) != nil {
		return ""
	}
	return manifest.MediaType
}

// refuse answers with the error format of the distribution specification.
func refuse(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": code, "message": code, "detail": detail}}})
}
