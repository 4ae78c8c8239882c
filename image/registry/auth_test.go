package registry

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/test/faulty"
)

// tokenServer gives numbered tokens to those who show what it wants.
type tokenServer struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string // authorization and form of each request
	reply func(w http.ResponseWriter, q *http.Request, n int) bool
}

func newTokenServer(t *testing.T) *tokenServer {
	t.Helper()
	ts := &tokenServer{}
	ts.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_ = q.ParseForm()
		ts.mu.Lock()
		ts.asked = append(ts.asked, q.Method+" "+q.Header.Get("Authorization")+" "+q.Form.Encode())
		n := len(ts.asked)
		ts.mu.Unlock()
		if ts.reply == nil || !ts.reply(w, q, n) {
			_, _ = fmt.Fprintf(w, `{"token":"tok-%d"}`, n)
		}
	}))
	t.Cleanup(ts.Close)
	return ts
}

func (ts *tokenServer) requests() []string {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return slices.Clone(ts.asked)
}

// bearer lets those pass whose token is accepted, and challenges all others.
func bearer(realm string, accept func(token string) bool) faulty.Fault {
	return func(a *faulty.Answer) {
		if token, ok := strings.CutPrefix(a.Request.Header.Get("Authorization"), "Bearer "); ok && accept(token) {
			a.All()
			return
		}
		faulty.Status(401, "WWW-Authenticate", `Bearer realm="`+realm+`/token",service="svc",scope="repository:x:pull"`)(a)
	}
}

func any200(string) bool { return true }

// TestTokens: which requests a credential leads to, and no more than those.
func TestTokens(t *testing.T) {
	basicUP := base64.StdEncoding.EncodeToString([]byte("u:pass%word"))
	const get = "scope=repository%3Ax%3Apull&service=svc"
	for name, tc := range map[string]struct {
		cred  Credentials
		ok    func(string) bool
		reply func(w http.ResponseWriter, q *http.Request, n int) bool
		asked []string
		shown []string // at the registry
		fails bool
	}{
		"anonymous": {ok: any200, asked: []string{"GET  " + get}, shown: []string{"Bearer tok-1"}},
		"password": {cred: Credentials{Username: "u", Password: "pass%word"}, ok: any200,
			asked: []string{"GET Basic " + basicUP + " " + get}, shown: []string{"Bearer tok-1"}},
		"identity token": {cred: Credentials{IdentityToken: "refresh me"}, ok: any200,
			asked: []string{"POST  client_id=cri-runtime&grant_type=refresh_token&refresh_token=refresh+me&" + get}, shown: []string{"Bearer tok-1"}},
		"identity token, server knows only GET": {cred: Credentials{Username: "<token>", IdentityToken: "refresh me"}, ok: any200,
			reply: func(w http.ResponseWriter, q *http.Request, _ int) bool {
				if q.Method == http.MethodPost {
					w.WriteHeader(http.StatusMethodNotAllowed)
				}
				return q.Method == http.MethodPost
			}, asked: []string{"POST  client_id=cri-runtime&grant_type=refresh_token&refresh_token=refresh+me&" + get,
				"GET Basic " + base64.StdEncoding.EncodeToString([]byte("<token>:refresh me")) + " " + get}, shown: []string{"Bearer tok-2"}},
		"registry token":          {cred: Credentials{RegistryToken: "mine"}, ok: any200, shown: []string{"Bearer mine"}},
		"registry token, refused": {cred: Credentials{RegistryToken: "mine"}, ok: func(string) bool { return false }, shown: []string{"Bearer mine"}, fails: true},
		"no token is accepted":    {ok: func(string) bool { return false }, asked: []string{"GET  " + get}, shown: []string{"Bearer tok-1"}, fails: true},
		"expired in the middle": {ok: oneRequestEach(), asked: []string{"GET  " + get, "GET  " + get, "GET  " + get},
			shown: []string{"Bearer tok-1", "Bearer tok-2", "Bearer tok-3"}},
		"refused by the token server": {cred: Credentials{Username: "u", Password: "pass%word"}, ok: any200,
			reply: func(w http.ResponseWriter, _ *http.Request, _ int) bool {
				w.WriteHeader(http.StatusForbidden)
				return true
			},
			asked: []string{"GET Basic " + basicUP + " " + get}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			data := randomBytes(2 << 20)
			ts := newTokenServer(t)
			ts.reply = tc.reply
			r := faulty.New(t, faulty.Plain)
			r.PushBlob("x", data)
			r.Set(faulty.Rule{Path: "/blobs/", Do: bearer(ts.URL, tc.ok)})
			if name == "expired in the middle" {
				r.Set(faulty.Rule{Path: "/blobs/", Do: expiring(ts.URL, tc.ok)})
			}
			c := client(t, quick(t, ""))
			err := fetch(t.Context(), session(t, c, tc.cred, r), data, nil)
			if tc.fails != (err != nil) || tc.fails && !errors.Is(err, errdef.ErrDenied) {
				t.Errorf("got %v", err)
			}
			if got := ts.requests(); !slices.Equal(got, tc.asked) {
				t.Errorf("token server: got %q, want %q", got, tc.asked)
			}
			if got := r.Shown(); !slices.Equal(got, tc.shown) {
				t.Errorf("registry: got %q, want %q", got, tc.shown)
			}
		})
	}
}

// oneRequestEach accepts each token once.
func oneRequestEach() func(string) bool {
	seen := map[string]bool{}
	return func(token string) bool {
		was := seen[token]
		seen[token] = true
		return !was
	}
}

// expiring serves a part to each token that is good, and breaks off.
func expiring(realm string, ok func(string) bool) faulty.Fault {
	parts := 0
	pass := bearer(realm, ok)
	return func(a *faulty.Answer) {
		if a.Request.Header.Get("Authorization") == "" {
			pass(a)
			return
		}
		if !ok(strings.TrimPrefix(a.Request.Header.Get("Authorization"), "Bearer ")) {
			bearer(realm, func(string) bool { return false })(a)
			return
		}
		if parts++; parts < 3 {
			faulty.Truncate(512 << 10)(a)
		}
		a.All()
	}
}

// TestTokenServerStalls: it is waited for no longer than a registry.
func TestTokenServerStalls(t *testing.T) {
	cfg := quick(t, "")
	cfg.Stall, cfg.Attempts = stall, 2
	c := client(t, cfg)
	ts := newTokenServer(t)
	ts.reply = func(w http.ResponseWriter, q *http.Request, _ int) bool {
		_, _ = io.WriteString(w, `{"token":`)
		_ = http.NewResponseController(w).Flush()
		<-q.Context().Done()
		return true
	}
	r := faulty.New(t, faulty.Plain)
	r.Set(faulty.Rule{Do: bearer(ts.URL, any200)})
	start := time.Now()
	_, err := session(t, c, Credentials{}, r).Manifest(t.Context(), "1")
	if !unavailable(err) || time.Since(start) > 10*time.Second {
		t.Errorf("got %v after %v", err, time.Since(start))
	}
}

// TestCredentialsStay: no other server sees a credential, whatever is redirected where.
func TestCredentialsStay(t *testing.T) {
	const secret = "hunter2-secret"
	data := randomBytes(4096)
	evil, storage := newTokenServer(t), faulty.New(t, faulty.Plain)
	storage.PushBlob("x", data)
	ts := newTokenServer(t)
	ts.reply = func(w http.ResponseWriter, q *http.Request, _ int) bool {
		w.Header().Set("Location", evil.URL+"/token")
		w.WriteHeader(http.StatusTemporaryRedirect) // with the method and the body
		return true
	}
	r := faulty.New(t, faulty.Plain)
	r.PushBlob("x", data)
	for name, cred := range map[string]Credentials{"identity token": {IdentityToken: secret}, "password": {Username: "u", Password: secret}} {
		t.Run("token server that redirects/"+name, func(t *testing.T) {
			r.Set(faulty.Rule{Path: "/blobs/", Do: bearer(ts.URL, any200)})
			c := client(t, quick(t, ""))
			err := fetch(t.Context(), session(t, c, cred, r), data, nil)
			if name == "identity token" && err == nil {
				t.Error("a token of another server was taken")
			}
			for _, a := range evil.requests() {
				if strings.Contains(a, secret) || strings.Contains(a, "Basic") {
					t.Errorf("another server was shown %q", a)
				}
			}
		})
	}
	t.Run("storage server", func(t *testing.T) {
		r.Set(faulty.Rule{Path: "/blobs/", Do: func(a *faulty.Answer) {
			if a.Request.Header.Get("Authorization") == "" {
				faulty.Status(401, "WWW-Authenticate", `Basic realm="x"`)(a)
				return
			}
			faulty.Redirect(storage.URL)(a)
		}})
		storage.Set()
		c := client(t, quick(t, ""))
		s := session(t, c, Credentials{Username: "u", Password: secret}, r)
		s.hosts[0].Header = http.Header{"X-Api-Key": {secret}} // as from hosts.toml
		if err := fetch(t.Context(), s, data, nil); err != nil {
			t.Fatal(err)
		}
		for _, q := range storage.Requests("") {
			if strings.Contains(fmt.Sprint(q.Header), secret) || len(storage.Shown()) != 0 || q.Header.Get("Referer") != "" {
				t.Errorf("the storage server was shown %v", q.Header)
			}
		}
		if got := r.Requests("/blobs/"); len(got) != 2 || got[1].Header.Get("X-Api-Key") != secret {
			t.Errorf("the registry: got %v", got)
		}
	})
	t.Run("a realm without TLS", func(t *testing.T) {
		r := faulty.New(t, faulty.TLS)
		plain := newTokenServer(t)
		r.Set(faulty.Rule{Do: bearer(plain.URL, any200)})
		c := client(t, quick(t, ""))
		err := fetch(t.Context(), session(t, c, Credentials{Username: "u", Password: secret}, r), data, nil)
		if !errors.Is(err, errdef.ErrDenied) || len(plain.requests()) != 0 {
			t.Errorf("got %v and %q", err, plain.requests())
		}
	})
	t.Run("from https to http", func(t *testing.T) {
		r := faulty.New(t, faulty.TLS)
		storage.Set()
		r.Set(faulty.Rule{Do: faulty.Redirect(storage.URL)})
		c := client(t, quick(t, ""))
		err := fetch(t.Context(), session(t, c, Credentials{}, r), data, nil)
		if err == nil || unavailable(err) || len(storage.Requests("")) != 0 {
			t.Errorf("got %v and %v", err, storage.Requests(""))
		}
	})
}

// TestEchoedCredentials: servers that repeat what they were sent do not make us repeat it.
func TestEchoedCredentials(t *testing.T) {
	secrets := []string{"pa ss/w+ord", "identity&token", "registry-token", base64.StdEncoding.EncodeToString([]byte("user:pa ss/w+ord")), "tok-1"}
	for _, s := range secrets[:3] {
		secrets = append(secrets, url.QueryEscape(s))
	}
	echo := func(w http.ResponseWriter, q *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		form := q.Form.Encode()
		name, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(q.Header.Get("Authorization"), "Basic "))
		_, _ = io.WriteString(w, "you sent "+q.Header.Get("Authorization")+" "+string(name)+" "+form+" "+q.Form.Get("refresh_token"))
	}
	for name, cred := range map[string]Credentials{"password": {Username: "user", Password: secrets[0]}, "identity": {IdentityToken: secrets[1]}, "registry": {RegistryToken: secrets[2]}} {
		for _, scheme := range []string{"Basic", "Bearer", "Bearer, refused"} {
			ts := newTokenServer(t)
			if scheme == "Bearer, refused" {
				ts.reply = func(w http.ResponseWriter, q *http.Request, _ int) bool { echo(w, q); return true }
			}
			r := faulty.New(t, faulty.Plain)
			word, _, _ := strings.Cut(scheme, ",")
			r.Set(faulty.Rule{Do: func(a *faulty.Answer) {
				if a.Request.Header.Get("Authorization") == "" {
					faulty.Status(401, "WWW-Authenticate", word+` realm="`+ts.URL+`",service="svc"`)(a)
					return
				}
				echo(a.ResponseWriter, a.Request)
			}})
			c := client(t, quick(t, ""))
			err := fetch(t.Context(), session(t, c, cred, r), randomBytes(10), nil)
			if err == nil {
				t.Errorf("%s, %s: no error", name, scheme)
			}
			text := fmt.Sprintf("%v %+v %#v", err, err, cred)
			for _, s := range secrets {
				if strings.Contains(text, s) {
					t.Errorf("%s, %s: %q in %v", name, scheme, s, err)
				}
			}
		}
	}
}
