package image

import (
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// private makes repository paths below /v2/private readable for ann only. bob has an account.
func private(r *reg) {
	r.setHook(func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.HasPrefix(q.URL.Path, "/v2/private") {
			return false
		}
		user, pass, ok := q.BasicAuth()
		switch {
		case ok && user == "ann" && pass == "secret-of-ann":
			return false
		case ok && user == "bob" && pass == "secret-of-bob":
			w.WriteHeader(http.StatusForbidden)
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
		return true
	})
}

var (
	ann = Auth{Username: "ann", Password: "secret-of-ann"}
	bob = Auth{Username: "bob", Password: "secret-of-bob"}
)

// TestPrivateImages: that an image is here is no right to it. Each request is decided by
// the registry, with the request's own credentials.
func TestPrivateImages(t *testing.T) {
	r := newReg(t)
	top, id := r.push(t, "private/x", "1", testImage{pack: "gzip", layers: [][]byte{base(t)}})
	private(r)
	s := openTest(t, Options{})
	byTag, byDigest := r.host()+"/private/x:1", r.host()+"/private/x@"+top
	pull := func(ref string, a Auth) error {
		t.Helper()
		got, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: a})
		if err == nil && string(got) != id {
			t.Errorf("pull %s: got %s, want %s", ref, got, id)
		}
		return err
	}
	refused := func(when string) {
		t.Helper()
		for who, a := range map[string]Auth{"bob": bob, "nobody": {}, "ann with another password": {Username: "ann", Password: "x"},
			"ann at another registry": {Username: "ann", Password: "secret-of-ann", ServerAddress: "other.example"}} {
			for _, ref := range []string{byTag, byDigest} {
				if err := pull(ref, a); !errors.Is(err, errdef.ErrDenied) || strings.Contains(err.Error(), "secret") {
					t.Errorf("%s, %s pulls %s: got %v, want denied", when, who, ref, err)
				}
			}
		}
	}
	refused("before")
	if err := pull(byTag, ann); err != nil {
		t.Fatal(err)
	}
	refused("while it is here")
	blobs := r.count("GET /v2/private/x/blobs/" + id)
	if err := errors.Join(pull(byTag, ann), pull(byDigest, ann)); err != nil {
		t.Errorf("ann, again: %v", err)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	// No credential outlives its request, in this process or the next.
	checkNoSecrets(t, s.opt.Root, s.opt.State)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, s.opt)
	refused("after a restart")
	if err := pull(byTag, ann); err != nil {
		t.Errorf("ann, after a restart: %v", err)
	}
	if n := r.count("GET /v2/private/x/blobs/"+id) - blobs; n != 0 {
		t.Errorf("what is here was transferred %d times", n)
	}
	if img, err := s.Resolve(byTag); err != nil || !slices.Equal(img.RepoTags, []string{byTag}) {
		t.Errorf("resolve: got %v, %v", img, err)
	}
}

func checkNoSecrets(t *testing.T, dirs ...string) {
	t.Helper()
	files := 0
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			files++
			b, err := os.ReadFile(p)
			for _, s := range []string{"secret", "YW5uOnNlY3JldC1vZi1hbm4"} { // in clear, and as an Authorization header has it
				if bytes.Contains(b, []byte(s)) {
					t.Errorf("%s contains %q", p, s)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if files == 0 {
		t.Error("no files were looked at")
	}
}

// TestPrivateRegistryIsDown: who calls PullImage wants the registry's word. The kubelet
// does not call where the image's being here is enough.
func TestPrivateRegistryIsDown(t *testing.T) {
	r := newReg(t)
	top, id := r.push(t, "private/x", "1", testImage{layers: [][]byte{base(t)}})
	private(r)
	s := openTest(t, Options{})
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/private/x:1", Auth: ann}); err != nil {
		t.Fatal(err)
	}
	r.CloseClientConnections()
	r.Close()
	for _, ref := range []string{"/private/x:1", "/private/x@" + top} {
		for _, a := range []Auth{ann, bob, {}} {
			_, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + ref, Auth: a})
			if p, ok := errors.AsType[*errdef.Prefixed](err); !ok || p.Prefix != errdef.RegistryUnavailable {
				t.Errorf("%s: got %v, want RegistryUnavailable", ref, err)
			}
		}
	}
	if img, err := s.Resolve(r.host() + "/private/x:1"); err != nil || string(img.ID) != id {
		t.Errorf("the image is gone: %v, %v", img, err)
	}
}

// TestPrivatePullIsNotShared: requests join a pull under way only with the same
// credentials.
func TestPrivatePullIsNotShared(t *testing.T) {
	r := newReg(t)
	l := base(t)
	_, id := r.push(t, "private/x", "1", testImage{layers: [][]byte{l}})
	private(r)
	auth := *r.hook.Load()
	started, gate := make(chan struct{}), make(chan struct{})
	r.setHook(func(w http.ResponseWriter, q *http.Request) bool {
		if auth(w, q) {
			return true
		}
		if strings.HasSuffix(q.URL.Path, sum(l)) {
			close(started)
			<-gate
		}
		return false
	})
	s := openTest(t, Options{})
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/private/x:1", Auth: ann})
		done <- err
	}()
	<-started
	for _, a := range []Auth{bob, {}} {
		if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/private/x:1", Auth: a}); !errors.Is(err, errdef.ErrDenied) {
			t.Errorf("while ann pulls: got %v, want denied", err)
		}
	}
	close(gate)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := s.Resolve(id); err != nil {
		t.Error(err)
	}
}

// TestIDIsNoRight: the ID of a private image stands in the status of pods. A manifest in
// a repository of one's own that names it must not be enough to get the image.
func TestIDIsNoRight(t *testing.T) {
	r := newReg(t)
	l := base(t)
	_, id := r.push(t, "private/x", "1", testImage{layers: [][]byte{l}})
	private(r)
	s := openTest(t, Options{})
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/private/x:1", Auth: ann}); err != nil {
		t.Fatal(err)
	}
	img, err := s.Resolve(id)
	if err != nil {
		t.Fatal(err)
	}
	m := marshal(map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "layers": []any{},
		"config": map[string]any{"mediaType": typeConfig, "digest": id, "size": len(img.RawConfig)}})
	r.put(t, "/v2/evil/manifests/1", typeManifest, m)
	r.setHook(func(w http.ResponseWriter, q *http.Request) bool { // blobs are those of a repository; this registry shares them
		evil := strings.HasPrefix(q.URL.Path, "/v2/evil/blobs/")
		if evil {
			w.WriteHeader(http.StatusNotFound)
		}
		return evil
	})
	if got, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/evil:1", Auth: bob}); err == nil {
		t.Errorf("bob got %s by its ID", got)
	}
	if img, err := s.Resolve(id); err != nil || len(img.RepoTags) != 1 {
		t.Errorf("names: got %v, %v", img.RepoTags, err)
	}
	// Who has the configuration had the image: the same in a public repository is known.
	_, pub := r.push(t, "public", "1", testImage{layers: [][]byte{l}})
	if got := mustPull(t, s, r.host()+"/public:1"); pub != id || string(got) != id {
		t.Errorf("public copy: got %s, want %s", got, id)
	}
	if n := r.count("GET /v2/public/blobs/" + sum(l)); n != 0 {
		t.Errorf("a layer that is here was transferred %d times", n)
	}
}
