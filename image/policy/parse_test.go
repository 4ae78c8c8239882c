package policy

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/image/reference"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// write puts a policy and a key, DIR/key.pub, into a new directory. "DIR" in the text
// stands for it.
func write(t testing.TB, text string, key []byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{"key.pub": string(key), "policy.json": strings.ReplaceAll(text, "DIR", dir)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "policy.json")
}

func TestPoliciesThatAreRefused(t *testing.T) { // long: a table
	k := newSigner(t, "p256")
	data := base64.StdEncoding.EncodeToString(k.pem)
	signed := func(members string) string {
		return `{"default":[{"type":"reject"}],"transports":{"docker":{"r.io/x":[{"type":"sigstoreSigned",` + members + `}]}}}`
	}
	scope := func(s string) string {
		return `{"default":[{"type":"reject"}],"transports":{"docker":{"` + s + `":[{"type":"reject"}]}}}`
	}
	const at = `transports.docker["r.io/x"][0]`
	for name, tc := range map[string]struct{ text, want string }{
		"empty":                   {``, "decode"},
		"cut":                     {`{"default":[{"type":"rej`, "decode"},
		"two documents":           {`{"default":[{"type":"reject"}]} {}`, "follows"},
		"not an object":           {`[]`, "the document: want an object"},
		"no default":              {`{}`, "default: is missing"},
		"empty default":           {`{"default":[]}`, "default: want a list"},
		"default is null":         {`{"default":null}`, "default: want a list"},
		"default not a list":      {`{"default":{"type":"reject"}}`, "default: want a list"},
		"unknown member":          {`{"default":[{"type":"reject"}],"Default":[]}`, "Default: is not known"},
		"member twice":            {`{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}`, "default: is there twice"},
		"scope twice":             {`{"default":[{"type":"reject"}],"transports":{"docker":{"a.b":[{"type":"reject"}],"a.b":[{"type":"reject"}]}}}`, `transports.docker["a.b"]: is there twice`},
		"unknown type":            {`{"default":[{"type":"insecureAcceptAnthing"}]}`, `default[0].type: "insecureAcceptAnthing" is not known`},
		"type of another case":    {`{"default":[{"type":"Reject"}]}`, `default[0].type: "Reject"`},
		"no type":                 {`{"default":[{}]}`, "default[0].type: is missing"},
		"type is a number":        {`{"default":[{"type":1}]}`, "default[0].type: want a string"},
		"requirement is null":     {`{"default":[null]}`, "default[0]: want an object"},
		"reject with more":        {`{"default":[{"type":"reject","keyPath":"/x"}]}`, "default[0].keyPath: is not known"},
		"gpg":                     {`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/x"}]}`, "default[0].type: signedBy (GPG)"},
		"unknown transport":       {`{"default":[{"type":"reject"}],"transports":{"dcoker":{}}}`, "transports.dcoker: is not known"},
		"archive scope":           {`{"default":[{"type":"reject"}],"transports":{"oci-archive":{"/x":[{"type":"reject"}]}}}`, `transports.oci-archive["/x"]: is not known`},
		"no key":                  {signed(`"signedIdentity":{"type":"matchExact"}`), at + ": want exactly one"},
		"two keys":                {signed(`"keyPath":"DIR/key.pub","keyData":"` + data + `"`), at + ": want exactly one"},
		"key is missing":          {signed(`"keyPath":"DIR/none"`), at + ".keyPath: read key"},
		"relative key":            {signed(`"keyPath":"key.pub"`), at + ".keyPath"},
		"empty key list":          {signed(`"keyPaths":[]`), at + ".keyPaths: want a list"},
		"one of the keys is bad":  {signed(`"keyPaths":["DIR/key.pub","DIR/policy.json"]`), at + ".keyPaths[1]: key is not in PEM"},
		"key data is not base64":  {signed(`"keyData":"%"`), at + ".keyData"},
		"key is private":          {signed(`"keyData":"` + base64.StdEncoding.EncodeToString(pemBlock("PRIVATE KEY", []byte("x"))) + `"`), `.keyData: this is a "PRIVATE KEY"`},
		"key is garbage":          {signed(`"keyData":"` + base64.StdEncoding.EncodeToString(pemBlock("PUBLIC KEY", []byte("x"))) + `"`), ".keyData: parse key"},
		"two keys in one":         {signed(`"keyData":"` + base64.StdEncoding.EncodeToString(append(k.pem, k.pem...)) + `"`), ".keyData: something follows"},
		"short RSA":               {signed(`"keyData":"` + base64.StdEncoding.EncodeToString(newSigner(t, "rsa1024").pem) + `"`), ".keyData: RSA key of 1024 bits"},
		"small curve":             {signed(`"keyData":"` + base64.StdEncoding.EncodeToString(newSigner(t, "p224").pem) + `"`), ".keyData: "},
		"keyless":                 {signed(`"fulcio":{"caPath":"/x","oidcIssuer":"x","subjectEmail":"x"}`), at + ".fulcio: keyless"},
		"rekor":                   {signed(`"keyPath":"DIR/key.pub","rekorPublicKeyPath":"/x"`), at + ".rekorPublicKeyPath: the transparency log"},
		"pki":                     {signed(`"pki":{}`), at + ".pki"},
		"unknown in signed":       {signed(`"keyPath":"DIR/key.pub","signedidentity":{"type":"matchRepository"}`), at + ".signedidentity: is not known"},
		"identity is text":        {signed(`"keyPath":"DIR/key.pub","signedIdentity":"matchRepository"`), at + ".signedIdentity: want an object"},
		"identity unknown":        {signed(`"keyPath":"DIR/key.pub","signedIdentity":{"type":"any"}`), at + `.signedIdentity.type: "any"`},
		"identity with more":      {signed(`"keyPath":"DIR/key.pub","signedIdentity":{"type":"matchExact","prefix":"x"}`), at + ".signedIdentity.prefix"},
		"exact without reference": {signed(`"keyPath":"DIR/key.pub","signedIdentity":{"type":"exactReference"}`), ".signedIdentity.dockerReference: is missing"},
		"exact without tag":       {signed(`"keyPath":"DIR/key.pub","signedIdentity":{"type":"exactReference","dockerReference":"r.io/x"}`), ".dockerReference: want a name with"},
		"repository with tag":     {signed(`"keyPath":"DIR/key.pub","signedIdentity":{"type":"exactRepository","dockerRepository":"r.io/x:1"}`), ".dockerRepository: want"},
		"remap of short name":     {signed(`"keyPath":"DIR/key.pub","signedIdentity":{"type":"remapIdentity","prefix":"busybox","signedPrefix":"r.io"}`), ".signedIdentity.prefix: want"},
		"short name":              {scope("busybox"), `transports.docker.busybox: no image is in this scope`},
		"official, short":         {scope("docker.io/busybox:1"), `its full name is docker.io/library/busybox:1`},
		"index.docker.io":         {scope("index.docker.io"), "no image"},
		"upper case":              {scope("R.io/x"), "no image"},
		"with scheme":             {scope("https://r.io"), "no image"},
		"trailing slash":          {scope("r.io/x/"), "no image"},
		"tag and digest":          {scope("r.io/x:1@sha256:" + strings.Repeat("0", 64)), "not both"},
		"short digest":            {scope("r.io/x@sha256:00"), "no image"},
		"star inside":             {scope("a*.r.io"), "no image"},
		"star with path":          {scope("*.r.io/x"), "no image"},
		"star with port":          {scope("*.r.io:5000"), "no image"},
		"star alone":              {scope("*"), "no image"},
		"deep":                    {`{"default":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "nested"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Load(write(t, tc.text, k.pem))
			if err == nil {
				t.Fatalf("load: got %v, want an error", p)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("load: got %v, want %q in it", err, tc.want)
			}
			if !errors.Is(err, errdef.ErrInvalid) && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("load: %v is of no kind", err)
			}
		})
	}
	if _, err := Load("/nonexistent/policy.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load without file: got %v", err)
	}
}

func TestPoliciesOfTheField(t *testing.T) {
	k := newSigner(t, "p256")
	for name, text := range map[string]string{
		"accept anything": `{"default":[{"type":"insecureAcceptAnything"}]}`,
		"of Debian":       `{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker-daemon":{"":[{"type":"insecureAcceptAnything"}]}}}`,
		"of the manual": `{"default":[{"type":"reject"}],"transports":{"docker":{"docker.io/openshift":[{"type":"insecureAcceptAnything"}],
			"*.temporary-project.example.com":[{"type":"insecureAcceptAnything"}],"":[{"type":"reject"}],"localhost:5000":[{"type":"reject"}],
			"hostname:5000/myns/a":[{"type":"sigstoreSigned","keyPath":"DIR/key.pub","signedIdentity":{"type":"matchRepository"}}]},
			"dir":{"":[{"type":"insecureAcceptAnything"}]},"oci-archive":{"":[{"type":"insecureAcceptAnything"}]},
			"atomic":{"hostname:5000/myns/official":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/path/to/official-pubkey.gpg"}]}}}`,
	} {
		if _, err := Load(write(t, text, k.pem)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestScopes(t *testing.T) {
	for name, want := range map[string]string{
		"r.example.com:5000/a/b:1": "r.example.com:5000/a/b:1 r.example.com:5000/a/b r.example.com:5000/a r.example.com:5000 *.example.com *.com",
		"busybox:1":                "docker.io/library/busybox:1 docker.io/library/busybox docker.io/library docker.io *.io",
		"localhost/x:1":            "localhost/x:1 localhost/x localhost",
		"[::1]:1/x:1":              "[::1]:1/x:1 [::1]:1/x [::1]:1",
	} {
		r, err := reference.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(scopes(r), " "); got != want {
			t.Errorf("scopes of %s: got %s, want %s", name, got, want)
		}
	}
}

func TestMostSpecificScopeWins(t *testing.T) {
	p, err := Load(write(t, `{"default":[{"type":"reject"}],"transports":{"docker":{
		"r.io":[{"type":"insecureAcceptAnything"}],"r.io/a":[{"type":"reject"}],"r.io/a/b":[{"type":"insecureAcceptAnything"}],
		"r.io/a/b:bad":[{"type":"reject"}],"*.example.com":[{"type":"insecureAcceptAnything"}],"x.example.com:5000":[{"type":"reject"}],
		"r.io/both":[{"type":"insecureAcceptAnything"},{"type":"reject"}]}}}`, nil))
	if err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{
		"r.io/x:1": true, "r.io/a/x:1": false, "r.io/ab:1": true, "r.io/a/b:1": true, "r.io/a/b/c:1": true, "r.io/a/b:bad": false,
		"r.io:5000/x:1": false, "a.example.com/x:1": true, "a.b.example.com:1/x:1": true, "x.example.com:5000/x:1": false,
		"example.com/x:1": false, "other.io/x:1": false, "r.io/both:1": false,
	} {
		r, err := reference.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		err = p.Check(t.Context(), Candidate{Host: r.Host, Repository: r.Path, Tag: r.Tag, Digest: "sha256:x"}, nil)
		if (err == nil) != ok {
			t.Errorf("%s: got %v, want accepted: %v", name, err, ok)
		}
	}
}

func TestArchives(t *testing.T) {
	for text, want := range map[string][2]bool{ // docker-archive, oci-archive
		`{"default":[{"type":"insecureAcceptAnything"}]}`: {true, true},
		`{"default":[{"type":"reject"}]}`:                 {},
		`{"default":[{"type":"reject"}],"transports":{"oci-archive":{"":[{"type":"insecureAcceptAnything"}]},"docker":{"":[{"type":"insecureAcceptAnything"}]}}}`: {false, true},
		`{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker-archive":{"":[{"type":"reject"}]}}}`:                                                {false, true},
		`{"default":[{"type":"sigstoreSigned","keyPath":"DIR/key.pub"}]}`:                                                                                         {},
	} {
		p, err := Load(write(t, text, newSigner(t, "p256").pem))
		if err != nil {
			t.Fatal(err)
		}
		for i, transport := range []string{DockerArchive, OCIArchive} {
			if err := p.CheckArchive(t.Context(), transport); (err == nil) != want[i] {
				t.Errorf("%s: %s: got %v, want accepted: %v", text, transport, err, want[i])
			}
		}
	}
	if err := (*Policy)(nil).CheckArchive(t.Context(), OCIArchive); err != nil {
		t.Errorf("no policy: %v", err)
	}
}

// FuzzPolicy: a policy is read or refused, and one that is read says something about
// every image.
func FuzzPolicy(f *testing.F) {
	k := newSigner(f, "p256")
	data := base64.StdEncoding.EncodeToString(k.pem)
	for _, s := range []string{
		`{"default":[{"type":"insecureAcceptAnything"}]}`,
		`{"default":[{"type":"reject"}],"transports":{"docker":{"":[{"type":"reject"}],"r.io/x:1":[{"type":"sigstoreSigned","keyData":"` + data + `"}],"*.io":[{"type":"sigstoreSigned","keyPaths":["/k"],"signedIdentity":{"type":"remapIdentity","prefix":"r.io","signedPrefix":"s.io/a"}}]},"oci-archive":{"":[{"type":"reject"}]},"dir":{}}}`,
		`{"default":[{"type":"sigstoreSigned","keyDatas":["` + data + `"],"signedIdentity":{"type":"exactReference","dockerReference":"a.b/c:d"}}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r := reader{read: func(path string) ([]byte, error) {
			if path == "/policy" {
				return text, nil
			}
			return k.pem, nil
		}}
		all, err := r.rules("/policy")
		if err != nil {
			if !errors.Is(err, errdef.ErrInvalid) {
				t.Fatalf("%v is not invalid", err)
			}
			return
		}
		for _, c := range []Candidate{{Host: "r.io", Repository: "x", Tag: "1", Digest: "sha256:1"}, {Host: "[::1]:1", Repository: "y", Digest: "sha256:1"}} {
			reqs, _ := all.find(c)
			if len(reqs) == 0 {
				t.Fatalf("nothing is asked of %v", c)
			}
			for _, q := range reqs {
				if q.kind == sigstoreSigned && len(q.keys) == 0 {
					t.Fatalf("%s: signed by nobody", q.path)
				}
				if q.kind == sigstoreSigned {
					_ = q.identity.check(c, "r.io/x:1")
				}
			}
		}
	})
}
