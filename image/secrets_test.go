package image

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/test/faulty"
)

// TestCredentialsAreNowhere pulls with each field of Auth, well and badly, from servers
// that repeat what they are sent, and looks for the credential in errors, logs at every
// level, progress, and every file.
func TestCredentialsAreNowhere(t *testing.T) {
	const secret = "S3cr3t&word/+%"
	layer := makeTar(t, file{name: "f", body: strings.Repeat("x", 3<<20)})
	for name, auth := range map[string]Auth{
		"password":       {Username: "someone", Password: secret},
		"auth":           {Auth: base64.StdEncoding.EncodeToString([]byte("someone:" + secret))},
		"identity token": {IdentityToken: secret},
		"registry token": {RegistryToken: secret},
	} {
		for how, rules := range map[string][]faulty.Rule{
			"well":      {},
			"breaks":    {{Path: faulty.Digest(layer), Times: 1, Do: faulty.Truncate(2 << 20)}, {Path: faulty.Digest(layer), Do: echo}},
			"denied":    {{Path: "/manifests/", Do: echo}},
			"not HTTP":  {{Path: "/manifests/", Do: faulty.Garbage()}},
			"elsewhere": {{Path: "/blobs/", Do: faulty.Redirect("http://127.0.0.1:1")}},
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					_, _ = fmt.Fprintf(w, `{"access_token":%q}`, "issued-"+secret)
				}))
				defer tokens.Close()
				r := faulty.New(t, faulty.Plain)
				r.Push("x", "1", layer)
				r.Set(append([]faulty.Rule{challenge(tokens.URL)}, rules...)...)
				var log lockedBuffer
				ctx := klog.NewContext(t.Context(), funcr.New(func(prefix, args string) { _, _ = fmt.Fprintln(&log, prefix, args) }, funcr.Options{Verbosity: 10}))
				s := openTest(t, Options{})
				hasty(t, s, 20*time.Second)
				_, err := s.Pull(ctx, PullRequest{Ref: r.Host() + "/x:1", Auth: auth})
				if (err == nil) != (how == "well") {
					t.Errorf("pull: got %v", err)
				}
				if len(r.Shown()) == 0 {
					t.Error("the registry was shown no credential: the test is void")
				}
				_, _ = fmt.Fprintf(&log, "%v %+v %#v %+v", err, err, auth, s.Pulls())
				_ = s.Close()
				if how == "breaks" && len(partials(t, s.opt.Root)) == 0 {
					t.Error("no partial blob is left to be searched")
				}
				look(t, "errors and logs", log.Bytes(), secret)
				for _, dir := range []string{s.opt.Root, s.opt.State} {
					searchFiles(t, dir, secret)
				}
			})
		}
	}
}

// hasty makes a store that waits little between attempts.
func hasty(t *testing.T, s *Store, stall time.Duration) {
	t.Helper()
	s.client.Close()
	partials, err := content.OpenPartials(filepath.Join(s.opt.Root, "partial"), content.PartialLimits{})
	if err != nil {
		t.Fatal(err)
	}
	s.client = registry.New(registry.Config{HostsDir: s.opt.HostsDir, Stall: stall, Backoff: time.Millisecond, KeepAfter: -1, Partials: partials})
}

// echo refuses and repeats what came.
func echo(a *faulty.Answer) {
	a.Header = http.Header{}
	a.Reply(http.StatusForbidden)
	user, pass, _ := a.Request.BasicAuth()
	_, _ = fmt.Fprintf(a, "%s %s %s", a.Request.Header.Get("Authorization"), user, pass)
}

// challenge meets requests without a credential.
func challenge(realm string) faulty.Rule {
	return faulty.Rule{When: func(q *http.Request) bool { return q.Header.Get("Authorization") == "" },
		Do: faulty.Status(http.StatusUnauthorized, "WWW-Authenticate", `Bearer realm="`+realm+`/token",service="svc"`)}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

// look finds the secret in any form in which it travels.
func look(t *testing.T, where string, text []byte, secret string) {
	t.Helper()
	for _, s := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), base64.StdEncoding.EncodeToString([]byte("someone:" + secret)),
		base64.StdEncoding.EncodeToString([]byte(secret))} {
		if bytes.Contains(text, []byte(s)) {
			t.Errorf("%s hold %q: %.500s", where, s, text)
		}
	}
}

func searchFiles(t *testing.T, dir, secret string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		look(t, "file name", []byte(path), secret)
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		look(t, path, data, secret)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// partials lists what broken transfers left.
func partials(t *testing.T, root string) []fs.DirEntry {
	t.Helper()
	es, err := os.ReadDir(filepath.Join(root, "partial"))
	if err != nil {
		t.Fatal(err)
	}
	return es
}
