package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/image/policy"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// sign attaches a signature of cosign's form to a digest.
func (r *reg) sign(t *testing.T, repo, digest string, key *ecdsa.PrivateKey) {
	t.Helper()
	doc := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, r.host()+"/"+repo, digest)
	h := sha256.Sum256(doc)
	sig, err := ecdsa.SignASN1(rand.Reader, key, h[:])
	if err != nil {
		t.Fatal(err)
	}
	d, cfg := r.blob(t, repo, doc), r.blob(t, repo, []byte("{}"))
	d["mediaType"], cfg["mediaType"] = "application/vnd.dev.cosign.simplesigning.v1+json", typeConfig
	d["annotations"] = map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}
	r.put(t, "/v2/"+repo+"/manifests/"+strings.Replace(digest, ":", "-", 1)+".sig", typeManifest,
		marshal(map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": cfg, "layers": []any{d}}))
}

// TestSignedImages: what the policy refuses is not fetched, and what is here is refused
// when the policy has become stricter.
func TestSignedImages(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	pub := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	file := filepath.Join(t.TempDir(), "policy.json")
	write := func(requirement string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(`{"default":[`+requirement+`]}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	signed := `{"type":"sigstoreSigned","keyData":"` + pub + `","signedIdentity":{"type":"matchRepository"}}`
	write(signed)
	p, err := policy.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	r := newReg(t)
	top, id := r.push(t, "index", "1", testImage{layers: [][]byte{base(t)}})
	r.sign(t, "index", top, key)
	top2, id2 := r.push(t, "inner", "1", testImage{label: "2", layers: [][]byte{base(t)}})
	r.sign(t, "inner", inner(t, r, "inner", top2), key)
	_, unsigned := r.push(t, "unsigned", "1", testImage{label: "3", layers: [][]byte{base(t)}})
	s := openTest(t, Options{Policy: p})
	pull := func(ref string, want string) {
		t.Helper()
		got, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + ref})
		if want != "" {
			if err != nil || string(got) != want {
				t.Errorf("pull %s: got %s, %v, want %s", ref, got, err, want)
			}
			return
		}
		if pre, ok := errors.AsType[*errdef.Prefixed](err); !ok || pre.Prefix != errdef.SignatureValidationFailed {
			t.Errorf("pull %s: got %s, %v, want SignatureValidationFailed", ref, got, err)
		}
	}
	pull("/unsigned:1", "")
	if n := r.count("GET /v2/unsigned/blobs/"+unsigned) + r.count("GET /v2/unsigned/blobs/"+sum(base(t))); n != 0 {
		t.Errorf("%d blobs of a refused image were fetched", n)
	}
	checkNothing(t, s)
	for range 2 {
		pull("/index:1", id)
		pull("/index@"+top, id)
		pull("/inner:1", id2)
	}
	// Another process knows nothing of what was accepted.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if p, err = policy.Load(file); err != nil {
		t.Fatal(err)
	}
	o := s.opt
	o.Policy = p
	s = openTest(t, o)
	pull("/inner:1", id2)
	write(`{"type":"insecureAcceptAnything"}`)
	pull("/unsigned:1", unsigned)
	write(signed)
	pull("/unsigned:1", "")
	pull("/index:1", id)
	write(`{"type":"reject"}`)
	pull("/index:1", "")
	write(`{"type":"rejekt"}`)
	pull("/index:1", "")
}

// inner gives the digest of this machine's manifest in an index: the second.
func inner(t *testing.T, r *reg, repo, top string) string {
	t.Helper()
	sess, err := openTest(t, Options{}).client.Open(registry.Repository{Host: r.host(), Path: repo}, registry.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	doc, err := sess.Manifest(t.Context(), top)
	if err != nil {
		t.Fatal(err)
	}
	var m manifest
	if err := json.Unmarshal(doc.Body, &m); err != nil || len(m.Manifests) != 2 {
		t.Fatal(err, m)
	}
	return string(m.Manifests[1].Digest)
}
