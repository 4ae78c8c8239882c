package image

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func unavailable(err error) bool {
	p, ok := errors.AsType[*errdef.Prefixed](err)
	return ok && p.Prefix == errdef.RegistryUnavailable
}

// transferCase is a way for a registry to serve a blob, n counting the requests.
type transferCase struct {
	serve func(w http.ResponseWriter, q *http.Request, n int) bool // true: answered
	fails func(error) bool                                         // nil: the pull succeeds
	gets  int
}

func bigLayer(t *testing.T) []byte {
	t.Helper()
	return makeTar(t, file{name: "big", body: strings.Repeat("0123456789", 100000)})
}

func TestInterruptedTransfers(t *testing.T) {
	l := bigLayer(t)
	runTransfers(t, l, map[string]transferCase{
		"broken off twice, with ranges": {func(w http.ResponseWriter, q *http.Request, n int) bool {
			from := 0
			if rg := q.Header.Get("Range"); rg != "" {
				from, _ = strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(rg, "bytes="), "-"))
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(l)-1, len(l)))
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(l)-from))
			if from > 0 {
				w.WriteHeader(http.StatusPartialContent)
			}
			end := len(l)
			if n < 3 {
				end = min(end, from+300000)
			}
			_, _ = w.Write(l[from:end])
			return true
		}, nil, 3},
		"broken off once, no ranges": {func(w http.ResponseWriter, q *http.Request, n int) bool {
			w.Header().Set("Content-Length", strconv.Itoa(len(l)))
			if n == 1 {
				_, _ = w.Write(l[:400000])
			} else {
				_, _ = w.Write(l)
			}
			return true
		}, nil, 2},
		"stands still": {func(w http.ResponseWriter, q *http.Request, n int) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(l)))
			_, _ = w.Write(l[:100000])
			_ = http.NewResponseController(w).Flush()
			<-q.Context().Done()
			return true
		}, nil, 3},
		"server error once": {func(w http.ResponseWriter, q *http.Request, n int) bool {
			if n == 1 {
				w.WriteHeader(http.StatusBadGateway)
			}
			return n == 1
		}, nil, 2},
		"longer than its descriptor": {func(w http.ResponseWriter, q *http.Request, n int) bool {
			_ = http.NewResponseController(w).Flush() // chunked: no length
			_, _ = w.Write(append(append([]byte(nil), l...), 0))
			return true
		}, nil, 1}, // what is beyond is not read
	})
}

func TestRefusedTransfers(t *testing.T) {
	l := bigLayer(t)
	kind := func(k error) func(error) bool { return func(err error) bool { return errors.Is(err, k) } }
	runTransfers(t, l, map[string]transferCase{
		"server error for ever": {func(w http.ResponseWriter, q *http.Request, n int) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}, unavailable, 5},
		"other content": {func(w http.ResponseWriter, q *http.Request, n int) bool {
			b := append([]byte(nil), l...)
			b[600] ^= 1
			_, _ = w.Write(b)
			return true
		}, kind(errdef.ErrInvalid), 2}, // damage on the way happens once
		"wrong length in the header": {func(w http.ResponseWriter, q *http.Request, n int) bool {
			w.Header().Set("Content-Length", strconv.Itoa(len(l)-512))
			_, _ = w.Write(l[:len(l)-512])
			return true
		}, kind(errdef.ErrInvalid), 1},
		"not there": {func(w http.ResponseWriter, q *http.Request, n int) bool {
			w.WriteHeader(http.StatusNotFound)
			return true
		}, kind(errdef.ErrNotFound), 1},
		"forbidden": {func(w http.ResponseWriter, q *http.Request, n int) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		}, kind(errdef.ErrDenied), 1},
	})
}

func runTransfers(t *testing.T, l []byte, cases map[string]transferCase) {
	t.Helper()
	r := newReg(t)
	_, id := r.push(t, "x", "1", testImage{layers: [][]byte{l}})
	path := "/v2/x/blobs/" + sum(l)
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			n := 0
			r.setHook(func(w http.ResponseWriter, q *http.Request) bool {
				if q.URL.Path != path {
					return false
				}
				mu.Lock()
				n++
				k := n
				mu.Unlock()
				return tc.serve(w, q, k)
			})
			s := openTest(t, Options{Stall: 300 * time.Millisecond})
			got, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/x:1"})
			if tc.fails == nil && (err != nil || string(got) != id) {
				t.Errorf("pull: got %s, %v, want %s", got, err, id)
			}
			if tc.fails != nil && !tc.fails(err) {
				t.Errorf("pull: got kind of %v", err)
			}
			mu.Lock()
			if n != tc.gets {
				t.Errorf("requests: got %d, want %d", n, tc.gets)
			}
			mu.Unlock()
			_ = s.Close()
			if tc.fails != nil {
				checkEmpty(t, s.opt.Root)
			}
		})
	}
}

func TestRefusedDocuments(t *testing.T) {
	r := newReg(t)
	s := openTest(t, Options{})
	layers := [][]byte{base(t)}
	edit := func(k string, v any) testImage {
		return testImage{single: true, layers: layers, edit: func(m map[string]any) { m[k] = v }}
	}
	for name, tc := range map[string]struct {
		im   testImage
		word string
	}{
		"manifest that is an index too": {edit("manifests", []any{map[string]any{"digest": sum(nil), "size": 1, "mediaType": typeManifest}}), "at once"},
		"other media type than served":  {edit("mediaType", typeManifestV2), "served as"},
		"schema 1":                      {edit("schemaVersion", 1), "schema 1"},
		"artifact":                      {edit("config", map[string]any{"mediaType": "application/vnd.helm", "digest": sum([]byte("{}")), "size": 2}), "artifact"},
		"unknown layer type":            {edit("layers", []any{map[string]any{"mediaType": "application/x-evil", "digest": sum(nil), "size": 0}}), "not supported"},
		"layers missing":                {edit("layers", []any{}), "0 layers"},
		"config too large":              {edit("config", map[string]any{"mediaType": typeConfig, "digest": sum(nil), "size": 5 << 20}), "larger"},
	} {
		t.Run(name, func(t *testing.T) {
			r.blob(t, "x", nil)
			r.push(t, "x", "1", tc.im)
			_, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/x:1"})
			if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(fmt.Sprint(err), tc.word) {
				t.Errorf("pull: got %v, want invalid with %q", err, tc.word)
			}
		})
	}
	many := make([][]byte, maxLayers+1)
	for i := range many {
		many[i] = layers[0]
	}
	r.push(t, "x", "many", testImage{layers: many})
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/x:many"}); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), "127") {
		t.Errorf("128 layers: got %v", err)
	}
	for _, ref := range []string{"", "x/UPPER", "x:", "x@sha256:12", "a//b", "http://x/y", "x y", "x@md5:" + strings.Repeat("0", 32)} {
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("reference %q: got %v", ref, err)
		}
	}
	_ = s.Close()
	checkEmpty(t, s.opt.Root)
}

func TestUnreachable(t *testing.T) {
	s := openTest(t, Options{})
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	host := strings.TrimPrefix(down.URL, "http://")
	_, err := s.Pull(t.Context(), PullRequest{Ref: host + "/x:1"})
	if !unavailable(err) || !strings.Contains(err.Error(), host) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("pull: got %v", err)
	}
	r := newReg(t)
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/x:1"}); !errors.Is(err, errdef.ErrNotFound) || unavailable(err) {
		t.Errorf("pull of nothing: got %v", err)
	}
}

func writeHosts(t *testing.T, dir, host, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestMirrors(t *testing.T) {
	r, empty := newReg(t), newReg(t)
	_, id := r.simple(t, "library/busybox", "latest", "x")
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	certs := t.TempDir()
	s := openTest(t, Options{HostsDir: certs})
	pull := func() error {
		t.Helper()
		got, err := s.Pull(t.Context(), PullRequest{Ref: "busybox", Auth: Auth{Username: "u", Password: "p"}})
		if err == nil && string(got) != id {
			t.Errorf("pull: got %s, want %s", got, id)
		}
		return err
	}
	var mu sync.Mutex
	var seen []string
	r.setHook(func(_ http.ResponseWriter, q *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if q.Header.Get("Authorization") != "" || q.URL.Query().Get("ns") != "docker.io" || q.Header.Get("X-Key") != "v" {
			seen = append(seen, fmt.Sprint(q.URL, q.Header))
		}
		return false
	})
	writeHosts(t, certs, "docker.io", fmt.Sprintf(`server = %q
[host.%q]
capabilities = ["pull", "resolve"]
[host.%q]
[host.%q]
  [host.%q.header]
  x-key = "v"
`, down.URL, down.URL, empty.URL, r.URL, r.URL))
	if err := pull(); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 0 {
		t.Errorf("requests with credentials, or without ns or header: %v", seen)
	}
	if empty.count("GET /v2/library/busybox/manifests/latest") != 1 {
		t.Error("the second host was not asked before the third")
	}
	// Without the right to resolve, only digests are asked of it.
	mustRemove(t, s, id)
	r.setHook(func(http.ResponseWriter, *http.Request) bool { return false })
	writeHosts(t, certs, "docker.io", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", down.URL, r.URL))
	if err := pull(); !unavailable(err) || strings.Contains(err.Error(), r.host()) {
		t.Errorf("mirror that may not resolve: got %v", err)
	}
	writeHosts(t, certs, "docker.io", "server = 7\n")
	if err := pull(); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), "hosts.toml") {
		t.Errorf("broken file: got %v", err)
	}
	_ = os.RemoveAll(filepath.Join(certs, "docker.io"))
	writeHosts(t, certs, "_default", fmt.Sprintf("[host.%q]\noverride_path = true\n", r.URL+"/v2"))
	if err := pull(); err != nil {
		t.Errorf("_default with override_path: got %v", err)
	}
}

// guard demands a token or a password, and records what it was shown.
type guard struct {
	mu    sync.Mutex
	shown map[string]bool
}

func (g *guard) note(q *http.Request) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shown[q.Header.Get("Authorization")] = true
	return q.Header.Get("Authorization")
}

func TestAuth(t *testing.T) {
	const basicUP = "Basic dTpw" // u:p
	for name, tc := range map[string]struct {
		scheme string
		auth   Auth
		form   string // wanted at the token server
		denied bool
	}{
		"basic":                     {"Basic", Auth{Username: "u", Password: "p"}, "", false},
		"basic, encoded":            {"Basic", Auth{Auth: "dTpw"}, "", false},
		"basic, wrong":              {"Basic", Auth{Username: "u", Password: "x"}, "", true},
		"basic, none":               {"Basic", Auth{}, "", true},
		"bearer by password":        {"Bearer", Auth{Username: "u", Password: "p"}, "GET " + basicUP, false},
		"bearer, wrong password":    {"Bearer", Auth{Username: "u", Password: "x"}, "GET " + basicUP, true},
		"bearer by identity token":  {"Bearer", Auth{IdentityToken: "idt"}, "POST idt", false},
		"identity token by GET":     {"Bearer", Auth{IdentityToken: "idt"}, "GET Basic OmlkdA==", false}, // :idt
		"identity token, refused":   {"Bearer", Auth{IdentityToken: "other"}, "GET Basic OmlkdA==", true},
		"bearer, token given":       {"Bearer", Auth{RegistryToken: "good"}, "none", false},
		"meant for another server":  {"Basic", Auth{Username: "u", Password: "p", ServerAddress: "https://other.example/v1/"}, "", true},
		"meant for this one by url": {"Basic", Auth{Username: "u", Password: "p", ServerAddress: "THIS"}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			r, storage := newReg(t), &guard{shown: map[string]bool{}}
			_, id := r.simple(t, "x", "1", "x")
			away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				storage.note(q)
				r.store.ServeHTTP(w, q)
			}))
			defer away.Close()
			tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				got := q.Method + " " + q.Header.Get("Authorization")
				if q.Method == http.MethodPost {
					got = "POST " + q.PostFormValue("refresh_token")
				}
				if got != tc.form || q.FormValue("scope") != "repository:x:pull" || q.FormValue("service") != "svc" {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				_, _ = io.WriteString(w, `{"token":"good"}`)
			}))
			defer tokens.Close()
			r.setHook(func(w http.ResponseWriter, q *http.Request) bool {
				if a := q.Header.Get("Authorization"); a == basicUP && tc.scheme == "Basic" || a == "Bearer good" {
					if strings.Contains(q.URL.Path, "/blobs/") {
						http.Redirect(w, q, away.URL+q.URL.Path, http.StatusTemporaryRedirect)
						return true
					}
					return false
				}
				w.Header().Set("WWW-Authenticate", tc.scheme+` realm="`+tokens.URL+`/token",service="svc",scope="repository:x:pull"`)
				w.WriteHeader(http.StatusUnauthorized)
				_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`)
				return true
			})
			if tc.auth.ServerAddress == "THIS" {
				tc.auth.ServerAddress = r.URL
			}
			s := openTest(t, Options{})
			got, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/x:1", Auth: tc.auth})
			if tc.denied {
				if !errors.Is(err, errdef.ErrDenied) || strings.Contains(err.Error(), "dTp") {
					t.Errorf("pull: got %v, want denied", err)
				}
			} else if err != nil || string(got) != id {
				t.Errorf("pull: got %s, %v, want %s", got, err, id)
			}
			for a := range storage.shown {
				if a != "" {
					t.Errorf("the storage server was shown %q", a)
				}
			}
			if text := fmt.Sprintf("%v %+v %#v %s", tc.auth, tc.auth, tc.auth, tc.auth); strings.ReplaceAll(text, "[redacted]", "") != "   " {
				t.Errorf("auth prints as %s", text)
			}
		})
	}
}
