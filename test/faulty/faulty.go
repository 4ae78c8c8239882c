// Package faulty is a registry that misbehaves on command: a real server around
// go-containerregistry's handler, with rules that say which requests meet which fault.
//
// It is for tests only. It serves what was pushed to it and nothing else, remembers each
// request and how many bytes it got, and ends, with all its connections, when its test
// does. Its goroutines are the server's; it keeps everything in memory.
package faulty

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// A Rule says which requests meet a fault.
type Rule struct {
	Path  string                   // part of it; empty: any
	When  func(*http.Request) bool // nil: always
	Skip  int                      // so many matching requests are served well first
	Times int                      // then so many meet the fault; 0: all
	Do    Fault
}

// A Request is one that was answered, or is being.
type Request struct {
	Method, Path, Query string
	Header              http.Header
	Status              int
	Sent                int64 // bytes of the body
}

// Registry is a server. It may be used by several goroutines.
type Registry struct {
	*httptest.Server
	store http.Handler
	quit  chan struct{}

	mu     sync.Mutex
	rules  []Rule
	met    []int // matching requests, by rule
	log    []*Request
	bodies map[string]*httptest.ResponseRecorder // of the store, by path
}

// Transport selects how a Registry speaks.
type Transport int

// The transports. The certificate of the latter two is self-signed.
const (
	Plain Transport = iota
	TLS
	HTTP2
)

// New starts a registry that ends with the test.
func New(t testing.TB, how Transport) *Registry {
	t.Helper()
	quiet := log.New(io.Discard, "", 0)
	r := &Registry{store: registry.New(registry.Logger(quiet)), quit: make(chan struct{}), bodies: map[string]*httptest.ResponseRecorder{}}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.Config.ErrorLog = quiet
	r.EnableHTTP2 = how == HTTP2
	if how == Plain {
		r.Start()
	} else {
		r.StartTLS()
	}
	t.Cleanup(func() {
		close(r.quit)
		r.CloseClientConnections()
		r.Close()
	})
	return r
}

// Host is the address without the scheme.
func (r *Registry) Host() string { return r.Listener.Addr().String() }

// Set replaces the rules and forgets the requests. Of those that match, the first that is not
// used up counts.
func (r *Registry) Set(rules ...Rule) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rules, r.met, r.log = rules, make([]int, len(rules)), nil
}

// Requests lists those whose path has the part.
func (r *Registry) Requests(part string) (rs []Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.log {
		if strings.Contains(q.Path, part) {
			rs = append(rs, *q)
		}
	}
	return rs
}

// Sent counts the bytes of the bodies sent for paths with the part.
func (r *Registry) Sent(part string) (n int64) {
	for _, q := range r.Requests(part) {
		n += q.Sent
	}
	return n
}

// choose finds the fault that a request meets. The lock is held.
func (r *Registry) choose(q *http.Request) Fault {
	for i, rule := range r.rules {
		if !strings.Contains(q.URL.Path, rule.Path) || rule.When != nil && !rule.When(q) {
			continue
		}
		r.met[i]++
		if n := r.met[i] - rule.Skip; n > 0 && (rule.Times == 0 || n <= rule.Times) {
			return rule.Do
		}
	}
	return nil
}

func (r *Registry) serve(w http.ResponseWriter, q *http.Request) {
	if q.Method != http.MethodGet && q.Method != http.MethodHead {
		http.Error(w, "read only", http.StatusMethodNotAllowed)
		return
	}
	r.mu.Lock()
	entry := &Request{Method: q.Method, Path: q.URL.Path, Query: q.URL.RawQuery, Header: q.Header.Clone()}
	r.log = append(r.log, entry)
	fault := r.choose(q)
	body := r.body(q)
	r.mu.Unlock()
	a := &Answer{ResponseWriter: w, Request: q, registry: r, entry: entry, Header: body.Header().Clone(), Body: body.Body.Bytes(), Status: body.Code}
	if fault != nil {
		fault(a)
		return
	}
	a.All()
}

// body asks the store once for each path. The lock is held.
func (r *Registry) body(q *http.Request) *httptest.ResponseRecorder {
	rec := r.bodies[q.URL.Path]
	if rec == nil {
		rec = httptest.NewRecorder()
		plain := httptest.NewRequestWithContext(q.Context(), http.MethodGet, q.URL.Path, nil)
		plain.Header.Set("Accept", "*/*")
		r.store.ServeHTTP(rec, plain)
		if rec.Code == http.StatusOK && strings.Contains(q.URL.Path, "/blobs/") {
			r.bodies[q.URL.Path] = rec
		}
	}
	return rec
}

func (r *Registry) put(path, mediaType string, body []byte) {
	method := http.MethodPut
	if strings.Contains(path, "/blobs/uploads/") {
		method = http.MethodPost
	}
	q := httptest.NewRequest(method, path, bytes.NewReader(body)) //nolint:noctx // never sent
	q.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	r.store.ServeHTTP(w, q)
	if w.Code >= 300 {
		panic(fmt.Sprintf("put %s: %d %s", path, w.Code, w.Body)) // a wrong test
	}
}

// Digest names content.
func Digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

// PushBlob stores a blob.
func (r *Registry) PushBlob(repo string, b []byte) {
	r.put("/v2/"+repo+"/blobs/uploads/?digest="+Digest(b), "application/octet-stream", b)
}

// PushManifest stores a manifest under a tag and its digest.
func (r *Registry) PushManifest(repo, tag, mediaType string, b []byte) {
	for _, name := range []string{tag, Digest(b)} {
		r.put("/v2/"+repo+"/manifests/"+name, mediaType, b)
	}
}

// Push stores an image of uncompressed layers, made of tar streams, and gives its ID.
func (r *Registry) Push(repo, tag string, layers ...[]byte) (id string) {
	const vendor = "application/vnd.oci.image."
	ds, diffs := []descriptor{}, []string{}
	for _, l := range layers {
		r.PushBlob(repo, l)
		ds = append(ds, descriptor{vendor + "layer.v1.tar", Digest(l), len(l)})
		diffs = append(diffs, Digest(l))
	}
	config := mustJSON(map[string]any{"os": "linux", "architecture": runtime.GOARCH, "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	r.PushBlob(repo, config)
	r.PushManifest(repo, tag, vendor+"manifest.v1+json", mustJSON(map[string]any{"schemaVersion": 2, "mediaType": vendor + "manifest.v1+json",
		"config": descriptor{vendor + "config.v1+json", Digest(config), len(config)}, "layers": ds}))
	return Digest(config)
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a wrong test
	}
	return b
}

// Shown lists the credentials that came with requests, each once.
func (r *Registry) Shown() (as []string) {
	for _, q := range r.Requests("") {
		if a := q.Header.Get("Authorization"); a != "" && !slices.Contains(as, a) {
			as = append(as, a)
		}
	}
	return as
}
