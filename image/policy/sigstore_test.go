package policy

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	greg "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// signer is a key pair.
type signer struct {
	private crypto.Signer
	pem     []byte
}

func newSigner(t testing.TB, kind string) signer {
	t.Helper()
	var s signer
	var err error
	switch kind {
	case "p224":
		s.private, err = ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	case "p256":
		s.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		s.private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa":
		s.private, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa1024":
		t.Setenv("GODEBUG", "rsa1024min=0")
		s.private, err = rsa.GenerateKey(rand.Reader, 1024)
	case "ed25519":
		_, s.private, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(s.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	s.pem = pemBlock("PUBLIC KEY", der)
	return s
}

func (s signer) sign(t testing.TB, payload []byte) []byte {
	t.Helper()
	msg, opt := payload, crypto.SignerOpts(crypto.Hash(0))
	if _, ok := s.private.(ed25519.PrivateKey); !ok {
		h := sha256.Sum256(payload)
		msg, opt = h[:], crypto.SHA256
	}
	sig, err := s.private.Sign(rand.Reader, msg, opt)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// server is a registry with the session of a pull.
type server struct {
	*httptest.Server
	t     testing.TB
	store http.Handler
	sess  *registry.Session
	asked atomic.Int32
	hook  atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{t: t, store: greg.New(greg.Logger(log.New(io.Discard, "", 0)))}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if h := s.hook.Load(); h != nil && (*h)(w, r) {
			return
		}
		s.store.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	var err error
	s.sess, err = registry.New(registry.Config{Attempts: 1}).Open(registry.Repository{Host: s.host(), Path: "app"}, registry.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.sess.Close)
	return s
}

func (s *server) host() string { return strings.TrimPrefix(s.URL, "http://") }

func (s *server) Manifest(ctx context.Context, ref string) ([]byte, error) {
	doc, err := s.sess.Manifest(ctx, ref)
	return doc.Body, err
}

func (s *server) Blob(ctx context.Context, d digest.Digest, size int64) ([]byte, error) {
	b := s.sess.Blob(ctx, d, size)
	defer b.Close()
	v, err := content.Verify(b, d, size)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(v)
}

func (s *server) put(method, path, mt string, body []byte) {
	s.t.Helper()
	q := httptest.NewRequest(method, path, bytes.NewReader(body))
	q.Header.Set("Content-Type", mt)
	w := httptest.NewRecorder()
	s.store.ServeHTTP(w, q)
	if w.Code >= 300 {
		s.t.Fatalf("put %s: %d %s", path, w.Code, w.Body)
	}
}

// attach stores signatures as cosign does.
func (s *server) attach(d digest.Digest, sigs ...[2][]byte) {
	s.t.Helper()
	layers := []any{}
	for _, p := range sigs {
		s.put(http.MethodPost, "/v2/app/blobs/uploads/?digest="+digest.FromBytes(p[0]).String(), "application/octet-stream", p[0])
		layers = append(layers, map[string]any{"mediaType": typePayload, "digest": digest.FromBytes(p[0]), "size": len(p[0]),
			"annotations": map[string]string{annotation: base64.StdEncoding.EncodeToString(p[1])}})
	}
	s.manifest(d, map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "layers": layers,
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest.FromString("{}"), "size": 2}})
}

func (s *server) manifest(d digest.Digest, m map[string]any) {
	s.t.Helper()
	body, err := json.Marshal(m)
	if err != nil {
		s.t.Fatal(err)
	}
	s.put(http.MethodPost, "/v2/app/blobs/uploads/?digest="+digest.FromString("{}").String(), "application/octet-stream", []byte("{}"))
	s.put(http.MethodPut, "/v2/app/manifests/"+strings.Replace(string(d), ":", "-", 1)+".sig", typeManifest, body)
}

// payloadOf is what cosign signs.
func payloadOf(name string, d digest.Digest) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":%q},"optional":null}`, name, d, payloadType)
}

var (
	top   = digest.FromString("top")
	inner = digest.FromString("inner")
	alien = digest.FromString("alien")
)

func signedPolicy(host, identity string) string {
	if identity != "" {
		identity = `,"signedIdentity":` + identity
	}
	return `{"default":[{"type":"reject"}],"transports":{"docker":{"` + host + `":[{"type":"sigstoreSigned","keyPath":"DIR/key.pub"` + identity + `}]}}}`
}

const repository = `{"type":"matchRepository"}`

func TestKeys(t *testing.T) {
	for _, kind := range []string{"p256", "p384", "rsa", "ed25519"} {
		t.Run(kind, func(t *testing.T) {
			k, other, srv := newSigner(t, kind), newSigner(t, kind), newServer(t)
			c := Candidate{Host: srv.host(), Repository: "app", Tag: "1", Digest: top}
			doc := payloadOf(srv.host()+"/app", top)
			load := func(k signer) *Policy {
				p, err := Load(write(t, signedPolicy(srv.host(), repository), k.pem))
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			srv.attach(top, [2][]byte{doc, other.sign(t, doc)}, [2][]byte{doc, k.sign(t, doc)})
			if err := load(k).Check(t.Context(), c, srv); err != nil {
				t.Errorf("signed: %v", err)
			}
			wantRefusal(t, load(newSigner(t, kind)).Check(t.Context(), c, srv), "none of the 1 keys")
			for i := range 4 { // each altered somewhere
				sig := k.sign(t, doc)
				sig[i*len(sig)/4] ^= 1
				if (key{k.private.Public()}).verify(doc, sig) {
					t.Errorf("altered signature (%d) is accepted", i)
				}
			}
		})
	}
}

func wantRefusal(t *testing.T, err error, part string) {
	t.Helper()
	p, ok := errors.AsType[*errdef.Prefixed](err)
	if !ok || p.Prefix != errdef.SignatureValidationFailed || !strings.Contains(err.Error(), part) {
		t.Errorf("got %v, want SignatureValidationFailed with %q", err, part)
	}
}

func TestSignatures(t *testing.T) { // long: a table
	k, other := newSigner(t, "p256"), newSigner(t, "ed25519")
	byTag := Candidate{Repository: "app", Tag: "1", Digest: top, Instance: inner}
	byDigest := Candidate{Repository: "app", Digest: top}
	type sig = [2][]byte
	signed := func(doc []byte) sig { return sig{doc, k.sign(t, doc)} }
	cosign := func(d digest.Digest) func(string) []sig {
		return func(host string) []sig { return []sig{signed(payloadOf(host+"/app", d))} }
	}
	named := func(name string) func(string) []sig {
		return func(host string) []sig { return []sig{signed(payloadOf(strings.ReplaceAll(name, "HOST", host), top))} }
	}
	raw := func(doc string) func(string) []sig {
		return func(host string) []sig { return []sig{signed([]byte(strings.ReplaceAll(doc, "HOST", host)))} }
	}
	for name, tc := range map[string]struct {
		identity string
		c        Candidate
		on       digest.Digest // where they are attached
		sigs     func(host string) []sig
		want     string // part of the refusal; "": accepted
	}{
		"by cosign":                       {repository, byTag, top, cosign(top), ""},
		"by cosign, by digest":            {"", byDigest, top, cosign(top), ""},
		"by cosign, default identity":     {"", byTag, top, cosign(top), "matchRepository accepts them"},
		"none":                            {repository, byTag, alien, cosign(alien), "there is no tag " + strings.Replace(string(top), ":", "-", 1) + ".sig"},
		"of the manifest in an index":     {repository, byTag, inner, cosign(inner), ""},
		"of another image, moved":         {repository, byTag, top, cosign(alien), "it is for the manifest " + string(alien)},
		"of the inner, on the index":      {repository, byTag, top, cosign(inner), "it is for the manifest " + string(inner)},
		"of another repository":           {repository, byTag, top, named("HOST/other"), "it is for HOST/other"},
		"of another registry":             {repository, byTag, top, named("elsewhere.io/app"), "it is for elsewhere.io/app"},
		"with the tag":                    {"", byTag, top, named("HOST/app:1"), ""},
		"with another tag":                {"", byTag, top, named("HOST/app:2"), "it is for HOST/app:2, want HOST/app:1"},
		"with another tag, by repository": {repository, byTag, top, named("HOST/app:2"), ""},
		"with another tag, by digest":     {"", byDigest, top, named("HOST/app:2"), ""},
		"exact, by digest":                {`{"type":"matchExact"}`, byDigest, top, named("HOST/app:2"), "matchExact"},
		"exact reference":                 {`{"type":"exactReference","dockerReference":"up.io/x:3"}`, byTag, top, named("up.io/x:3"), ""},
		"exact reference, other":          {`{"type":"exactReference","dockerReference":"up.io/x:3"}`, byTag, top, named("up.io/x:4"), "want up.io/x:3"},
		"exact repository":                {`{"type":"exactRepository","dockerRepository":"busybox"}`, byTag, top, named("index.docker.io/library/busybox"), ""},
		"remapped":                        {`{"type":"remapIdentity","prefix":"HOST","signedPrefix":"up.io/mirrored"}`, byTag, top, named("up.io/mirrored/app:1"), ""},
		"remapped, other tag":             {`{"type":"remapIdentity","prefix":"HOST","signedPrefix":"up.io"}`, byTag, top, named("up.io/app:2"), "remapIdentity"},
		"remapped, no match":              {`{"type":"remapIdentity","prefix":"HOST/ap","signedPrefix":"up.io/ap"}`, byTag, top, named("HOST/app:1"), ""},
		"second is good": {repository, byTag, top, func(host string) []sig {
			doc := payloadOf(host+"/app", top)
			return []sig{{doc, other.sign(t, doc)}, {[]byte("{}"), k.sign(t, []byte("{}"))}, signed(doc)}
		}, ""},
		"signature of another payload": {repository, byTag, top, func(host string) []sig {
			return []sig{{payloadOf(host+"/app", top), k.sign(t, payloadOf(host+"/app", inner))}}
		}, "none of the 1 keys"},
		"payload is no JSON":    {repository, byTag, top, raw(`x`), "payload: decode"},
		"payload is empty":      {repository, byTag, top, raw(`{}`), "critical: want an object"},
		"payload of other type": {repository, byTag, top, raw(`{"critical":{"identity":{"docker-reference":"HOST/app"},"image":{"docker-manifest-digest":"` + string(top) + `"},"type":"atomic container signature"}}`), "critical.type"},
		"payload with two digests": {repository, byTag, top, raw(`{"critical":{"identity":{"docker-reference":"HOST/app"},"image":{"docker-manifest-digest":"` + string(alien) + `","docker-manifest-digest":"` + string(top) +
			`"},"type":"` + payloadType + `"}}`), "is there twice"},
		"payload with unknown critical": {repository, byTag, top, raw(`{"critical":{"identity":{"docker-reference":"HOST/app"},"image":{"docker-manifest-digest":"` + string(top) +
			`"},"type":"` + payloadType + `","expires":"2020"}}`), "critical.expires: is not known"},
		"payload without name": {repository, byTag, top, raw(`{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":"` + string(top) + `"},"type":"` + payloadType + `"}}`), "docker-reference"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newServer(t)
			srv.attach(tc.on, tc.sigs(srv.host())...)
			tc.c.Host = srv.host()
			p, err := Load(write(t, signedPolicy(srv.host(), strings.ReplaceAll(tc.identity, "HOST", srv.host())), k.pem))
			if err != nil {
				t.Fatal(err)
			}
			err = p.Check(t.Context(), tc.c, srv)
			if tc.want == "" {
				if err != nil {
					t.Fatalf("check: %v", err)
				}
				n := srv.asked.Load() // it need not be asked again
				if err := p.Check(t.Context(), tc.c, srv); err != nil || srv.asked.Load() != n {
					t.Errorf("again: %v, %d requests", err, srv.asked.Load()-n)
				}
				return
			}
			wantRefusal(t, err, strings.ReplaceAll(tc.want, "HOST", srv.host()))
			wantRefusal(t, err, fmt.Sprintf("scope %q", srv.host()))
		})
	}
}

// TestAttachmentsThatLie: what stands in the place of signatures is hostile, too.
func TestAttachmentsThatLie(t *testing.T) {
	k := newSigner(t, "p256")
	doc := payloadOf("r.io/app", top)
	layer := func(edit map[string]any) map[string]any {
		l := map[string]any{"mediaType": typePayload, "digest": digest.FromBytes(doc), "size": len(doc),
			"annotations": map[string]string{annotation: base64.StdEncoding.EncodeToString(k.sign(t, doc))}}
		maps.Copy(l, edit)
		return l
	}
	many := make([]any, maxSignatures+1)
	for i := range many {
		many[i] = layer(nil)
	}
	for name, tc := range map[string]struct {
		layers any
		want   string
	}{
		"no layers":       {[]any{}, "no signature is accepted"},
		"too many":        {many, "129 signatures"},
		"other type":      {[]any{layer(map[string]any{"mediaType": "text/plain"})}, `of type "text/plain"`},
		"no annotation":   {[]any{layer(map[string]any{"annotations": nil})}, "no signature that is base64"},
		"bad annotation":  {[]any{layer(map[string]any{"annotations": map[string]string{annotation: "%%"}})}, "no signature that is base64"},
		"huge payload":    {[]any{layer(map[string]any{"size": maxPayload + 1})}, "bytes"},
		"negative":        {[]any{layer(map[string]any{"size": -1})}, "bytes"},
		"bad digest":      {[]any{layer(map[string]any{"digest": "sha256:../x"})}, "digest"},
		"missing payload": {[]any{layer(map[string]any{"digest": alien})}, "layer 0"},
		"layers is text":  {"x", "decode manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newServer(t)
			srv.put(http.MethodPost, "/v2/app/blobs/uploads/?digest="+digest.FromBytes(doc).String(), "application/octet-stream", doc)
			body, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "layers": tc.layers})
			if err != nil {
				t.Fatal(err)
			}
			hook := func(w http.ResponseWriter, r *http.Request) bool { // the registry itself would refuse some
				if !strings.HasSuffix(r.URL.Path, ".sig") {
					return false
				}
				w.Header().Set("Content-Type", typeManifest)
				_, _ = w.Write(body)
				return true
			}
			srv.hook.Store(&hook)
			p, err := Load(write(t, `{"default":[{"type":"sigstoreSigned","keyPath":"DIR/key.pub","signedIdentity":{"type":"matchRepository"}}]}`, k.pem))
			if err != nil {
				t.Fatal(err)
			}
			wantRefusal(t, p.Check(t.Context(), Candidate{Host: "r.io", Repository: "app", Tag: "1", Digest: top}, srv), tc.want)
		})
	}
}

// TestRegistryFailureIsNoVerdict: the kubelet shall not tell people that a signature is
// wrong when nobody could look at it.
func TestRegistryFailureIsNoVerdict(t *testing.T) {
	k, srv := newSigner(t, "p256"), newServer(t)
	srv.attach(top, [2][]byte{payloadOf("x.io/app", top), []byte("x")})
	p, err := Load(write(t, signedPolicy(srv.host(), ""), k.pem))
	if err != nil {
		t.Fatal(err)
	}
	for code, kind := range map[int]error{http.StatusForbidden: errdef.ErrDenied, http.StatusTooManyRequests: errdef.ErrRetry} {
		hook := func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
		srv.hook.Store(&hook)
		err := p.Check(t.Context(), Candidate{Host: srv.host(), Repository: "app", Tag: "1", Digest: top}, srv)
		if pre, ok := errors.AsType[*errdef.Prefixed](err); ok && pre.Prefix == errdef.SignatureValidationFailed || !errors.Is(err, kind) {
			t.Errorf("%d: got %v, want %v without prefix", code, err, kind)
		}
	}
	srv.Close()
	err = p.Check(t.Context(), Candidate{Host: srv.host(), Repository: "app", Tag: "1", Digest: top}, srv)
	if pre, ok := errors.AsType[*errdef.Prefixed](err); !ok || pre.Prefix != errdef.RegistryUnavailable {
		t.Errorf("registry down: got %v", err)
	}
}

func TestChangesCountAtOnce(t *testing.T) {
	k, srv := newSigner(t, "p256"), newServer(t)
	c := Candidate{Host: srv.host(), Repository: "app", Tag: "1", Digest: top}
	doc := payloadOf(srv.host()+"/app", top)
	srv.attach(top, [2][]byte{doc, k.sign(t, doc)})
	file := write(t, signedPolicy(srv.host(), repository), k.pem)
	p, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keyFile := strings.TrimSuffix(file, "policy.json") + "key.pub"
	for i, step := range []struct {
		name string
		data []byte
		want string
	}{
		{file, good, ""},
		{file, []byte(`{"default":[{"type":"reject"}]}`), "every image is rejected"},
		{file, []byte(`{"default":[{"type":"rejekt"}]}`), "default[0].type"},
		{file, good, ""},
		{keyFile, newSigner(t, "p256").pem, "none of the 1 keys"},
		{keyFile, nil, "key is not in PEM"},
		{keyFile, k.pem, ""},
	} {
		put(step.name, step.data)
		err := p.Check(t.Context(), c, srv)
		if step.want == "" && err != nil {
			t.Errorf("step %d: %v", i, err)
		} else if step.want != "" {
			wantRefusal(t, err, step.want)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, p.Check(t.Context(), c, srv), "no such file")
	if err := (*Policy)(nil).Check(t.Context(), c, nil); err != nil {
		t.Errorf("no policy: %v", err)
	}
}

// FuzzPayload: what is read says one thing only, and says it to encoding/json, too.
func FuzzPayload(f *testing.F) {
	f.Add(payloadOf("r.io/x", top))
	f.Add([]byte(`{"critical":{"type":"cosign container image signature","image":{"docker-manifest-digest":"sha256:00"},"identity":{"docker-reference":"x"}},"optional":{"a":[1,{"b":null}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parsePayload(data)
		if err != nil {
			if !errors.Is(err, errdef.ErrInvalid) {
				t.Fatalf("%v is not invalid", err)
			}
			return
		}
		var doc struct {
			Critical struct {
				Image    map[string]string
				Identity map[string]string
			}
		}
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Fatalf("accepted what encoding/json does not read: %v", err)
		}
		if doc.Critical.Image["docker-manifest-digest"] != string(p.manifest) || doc.Critical.Identity["docker-reference"] != p.name {
			t.Fatalf("got %+v, encoding/json reads %+v", p, doc)
		}
	})
}

func FuzzAttachment(f *testing.F) {
	f.Add([]byte(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":1,"annotations":{"a":"b"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		layers, err := parseAttachment(data)
		if err != nil && !errors.Is(err, errdef.ErrInvalid) && !errors.Is(err, errdef.ErrExhausted) {
			t.Fatalf("%v is of no kind", err)
		}
		if len(layers) > maxSignatures {
			t.Fatalf("%d layers", len(layers))
		}
	})
}
