package image

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// damage serves other bytes than the store has, of the same length, for paths with part.
func damage(r *reg, part string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, q *http.Request) bool {
		if q.Method != http.MethodGet || !strings.Contains(q.URL.Path, part) {
			return false
		}
		rec := httptest.NewRecorder()
		r.store.ServeHTTP(rec, q)
		body := rec.Body.Bytes()
		body[len(body)/2] ^= 1
		maps.Copy(w.Header(), rec.Header())
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
		return true
	}
}

// TestDamagedMirror pulls while a mirror serves damaged content of some kind.
func TestDamagedMirror(t *testing.T) {
	l := base(t)
	packed := pack(t, "gzip", l)
	for name, tc := range map[string]struct {
		part  func(id string) string
		wrong uint64
	}{
		"layer":    {func(string) string { return sum(packed) }, 1},
		"config":   {func(id string) string { return id }, 1},
		"manifest": {func(string) string { return "manifests/sha256" }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			mirror, up := newReg(t), newReg(t)
			_, id := up.push(t, "x", "1", testImage{pack: "gzip", layers: [][]byte{l}})
			mirror.push(t, "x", "1", testImage{pack: "gzip", layers: [][]byte{l}})
			mirror.setHook(damage(mirror, tc.part(id)))
			certs := t.TempDir()
			writeHosts(t, certs, "r.example", fmt.Sprintf("server = %q\n[host.%q]\n", up.URL, mirror.URL))
			s := openTest(t, Options{HostsDir: certs})
			got, err := s.Pull(t.Context(), PullRequest{Ref: "r.example/x:1"})
			if err != nil || string(got) != id {
				t.Fatalf("pull: got %s, %v, want %s", got, err, id)
			}
			if m := s.Mismatches(); m[mirror.host()] != tc.wrong || len(m) != 1 {
				t.Errorf("mismatches: got %v, want %d of %s", m, tc.wrong, mirror.host())
			}
			if up.total() == 0 {
				t.Error("the registry itself was not asked")
			}
			// Both: the error names them.
			mustRemove(t, s, id)
			up.setHook(damage(up, tc.part(id)))
			_, err = s.Pull(t.Context(), PullRequest{Ref: "r.example/x:1"})
			if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(fmt.Sprint(err), mirror.host()) || !strings.Contains(fmt.Sprint(err), up.host()) {
				t.Errorf("both damaged: got %v", err)
			}
			_ = s.Close()
			checkEmpty(t, s.opt.Root)
		})
	}
}

func (r *reg) total() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.gets {
		n += k
	}
	return n
}

// TestDeadMirrorIsAskedLast: what could not be dialled in one pull costs the next nothing.
func TestDeadMirrorIsAskedLast(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	up := newReg(t)
	_, id := up.simple(t, "x", "1", "x")
	_, id2 := up.simple(t, "y", "1", "y")
	certs := t.TempDir()
	writeHosts(t, certs, "r.example", fmt.Sprintf("server = %q\n[host.\"http://%s\"]\n", up.URL, addr))
	s := openTest(t, Options{HostsDir: certs})
	start := time.Now()
	if got := mustPull(t, s, "r.example/x:1"); string(got) != id {
		t.Errorf("pull: got %s, want %s", got, id)
	}
	// The mirror comes back, but is not asked yet, nor looked at within the first second.
	var asked atomic.Int32
	if ln, err = net.Listen("tcp", addr); err != nil {
		t.Skip("the port was taken meanwhile")
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		asked.Add(1)
		up.store.ServeHTTP(w, q)
	}))
	_ = srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	defer srv.Close()
	got, n := mustPull(t, s, "r.example/y:1"), asked.Load()
	if string(got) != id2 || n != 0 && time.Since(start) < time.Second {
		t.Errorf("pull: got %s and %d requests to the mirror, want %s and none", got, n, id2)
	}
	// Where it is the only one left, it is asked, and remembered as alive.
	up.Close()
	mustRemove(t, s, id)
	if got := mustPull(t, s, "r.example/x:1"); string(got) != id || asked.Load() == 0 {
		t.Errorf("pull: got %s and %d requests to the mirror", got, asked.Load())
	}
}

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func issue(t *testing.T, name string, by *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: by == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	parent := &authority{cert: c, key: key}
	if by != nil {
		parent = by
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		t.Fatal(err)
	}
	c.Raw = der
	return &authority{c, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) keyPEM(t *testing.T) []byte {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

// TestCertificates pulls from a registry that demands a client certificate.
func TestCertificates(t *testing.T) {
	ca, other := issue(t, "ca", nil), issue(t, "other", nil)
	server, client, stranger := issue(t, "server", ca), issue(t, "client", ca), issue(t, "stranger", other)
	pair, err := tls.X509KeyPair(server.pem, server.keyPEM(t))
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := x509.ParseCertificate(ca.cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(trusted)
	r := newReg(t)
	_, id := r.simple(t, "x", "1", "x")
	srv := httptest.NewUnstartedServer(r.store)
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	srv.Config.ErrorLog = r.Config.ErrorLog
	srv.StartTLS()
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "https://")
	for name, tc := range map[string]struct {
		toml string // "": the directory's files, as Docker reads them
		word string // of the error; "": works
	}{
		"ca and pair":            {"ca = \"ca.pem\"\nclient = [[\"c.pem\", \"c.key\"]]", ""},
		"absolute, one file":     {"ca = [\"DIR/ca.pem\"]\nclient = \"DIR/both.pem\"", ""},
		"certificate unchecked":  {"skip_verify = true\nclient = [[\"c.pem\", \"c.key\"]]", ""},
		"docker's names":         {"", ""},
		"ca missing":             {"client = [[\"c.pem\", \"c.key\"]]", "unknown authority"},
		"another ca":             {"ca = \"other.pem\"\nclient = [[\"c.pem\", \"c.key\"]]", "unknown authority"},
		"no client certificate":  {"ca = \"ca.pem\"", "certificate"},
		"a stranger's":           {"ca = \"ca.pem\"\nclient = [[\"s.pem\", \"s.key\"]]", "certificate"},
		"ca file missing":        {"ca = \"no.pem\"", "no.pem"},
		"ca file without one":    {"ca = \"c.key\"", "no certificate"},
		"key of another":         {"client = [[\"c.pem\", \"s.key\"]]", "client certificate"},
		"client of three files":  {"client = [[\"a\", \"b\", \"c\"]]", "certificate and key"},
		"certificates elsewhere": {"server = \"SRV\"\n[host.\"http://127.0.0.1:1\"]\nca = \"ca.pem\"", "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			certs := t.TempDir()
			dir := filepath.Join(certs, host)
			files := map[string][]byte{"ca.pem": ca.pem, "other.pem": other.pem, "c.pem": client.pem, "c.key": client.keyPEM(t),
				"s.pem": stranger.pem, "s.key": stranger.keyPEM(t), "both.pem": bytes.Join([][]byte{client.pem, client.keyPEM(t)}, nil)}
			if tc.toml == "" {
				files = map[string][]byte{"ca.crt": ca.pem, "c.cert": client.pem, "c.key": client.keyPEM(t)}
			} else {
				files["hosts.toml"] = []byte(strings.NewReplacer("DIR", dir, "SRV", srv.URL).Replace(tc.toml))
			}
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for n, b := range files {
				if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := openTest(t, Options{HostsDir: certs})
			got, err := s.Pull(t.Context(), PullRequest{Ref: host + "/x:1"})
			if tc.word == "" && (err != nil || string(got) != id) {
				t.Errorf("pull: got %s, %v, want %s", got, err, id)
			}
			if tc.word != "" && (err == nil || !strings.Contains(err.Error(), tc.word)) {
				t.Errorf("pull: got %v, want an error with %q", err, tc.word)
			}
		})
	}
}

// TestLinksToLowerLayers pulls two images that share a layer whose hard link means
// another file in each.
func TestLinksToLowerLayers(t *testing.T) {
	r := newReg(t)
	link := makeTar(t, file{name: "n", link: "etc/a", kind: tar.TypeLink})
	other := makeTar(t, file{name: "etc/", kind: tar.TypeDir, mode: 0o700, uid: 9}, file{name: "etc/a", body: "two", uid: 5})
	_, id := r.push(t, "x", "1", testImage{layers: [][]byte{base(t), link}})
	_, id2 := r.push(t, "x", "2", testImage{layers: [][]byte{other, link}})
	r.push(t, "x", "bad", testImage{layers: [][]byte{makeTar(t, file{name: "f"}), link}})
	s := openTest(t, Options{})
	for ref, want := range map[string]string{"1": id, "2": id2} {
		if got := mustPull(t, s, r.host()+"/x:"+ref); string(got) != want {
			t.Errorf("pull: got %s, want %s", got, want)
		}
	}
	check := func(id, body string, uid uint32, dirMode uint32) {
		t.Helper()
		fs, err := s.View(t.Context(), "v"+id[7:20], ID(id))
		if err != nil {
			t.Fatal(err)
		}
		var a, n, d unix.Stat_t
		b, err := os.ReadFile(filepath.Join(fs.Lower[0], "n"))
		if err = errors.Join(err, unix.Lstat(filepath.Join(fs.Lower[0], "etc/a"), &a), unix.Lstat(filepath.Join(fs.Lower[0], "n"), &n),
			unix.Lstat(filepath.Join(fs.Lower[0], "etc"), &d)); err != nil {
			t.Fatal(err)
		}
		if string(b) != body || n.Uid != uid || a.Ino != n.Ino || n.Nlink != 2 || d.Mode != unix.S_IFDIR|dirMode {
			t.Errorf("link: got %q of %d, inodes %d and %d; directory %o", b, n.Uid, a.Ino, n.Ino, d.Mode)
		}
	}
	check(id, "one", 0, 0o750)
	check(id2, "two", 5, 0o700)
	// The image that has nothing to link to leaves the others as they are.
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host() + "/x:bad"}); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), "etc/a") {
		t.Errorf("link to nothing: got %v", err)
	}
	// The same stack under another name finds the tree; both survive a restart.
	r.push(t, "y", "1", testImage{label: "y", layers: [][]byte{base(t), link}})
	blobs := r.count("GET /v2/y/blobs/" + sum(link))
	idY := mustPull(t, s, r.host()+"/y:1")
	if n := r.count("GET /v2/y/blobs/"+sum(link)) - blobs; n != 0 {
		t.Errorf("transfers of a layer that is here: got %d", n)
	}
	_ = s.Close()
	s = openTest(t, s.opt)
	if got := len(s.List()); got != 3 {
		t.Errorf("images after a restart: got %d, want 3", got)
	}
	check(string(idY), "one", 0, 0o750)
	check(id2, "two", 5, 0o700)
}
