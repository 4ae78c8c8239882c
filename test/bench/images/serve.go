package images

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

var (
	route  = regexp.MustCompile(`^/v2/([a-z0-9._/-]+)/(manifests|blobs)/([\w.:-]+)$`)
	hashed = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// blobPath is the file of a digest; of anything else, one that does not exist.
func blobPath(dir, digest string) string {
	if !hashed.MatchString(digest) {
		return filepath.Join(dir, "blobs", "none")
	}
	return filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
}

// ServeHTTP answers as a read-only registry. Blobs go from the page cache to the socket
// by sendfile, with ranges: the registry must not be what is measured.
func (s *Set) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
		media = "application/vnd.oci.image.manifest.v1+json"
		if image, ok := s.Image(name + ":" + what); ok {
			what = image.Digest
		}
	}
	f, err := os.Open(blobPath(s.Dir, what))
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

// refuse answers with the error format of the distribution specification.
func refuse(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": code, "message": code, "detail": detail}}})
}
