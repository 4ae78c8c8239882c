package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
	"github.com/cri-runtime/cri-runtime/test/faulty"
)

const blobSize = 3 << 20

// randomBytes are the same for each run.
func randomBytes(n int) []byte {
	seed := sha256.Sum256([]byte("transfers"))
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

// counter is an Observer that adds up.
type counter struct {
	hosts            []string
	network, resumed int64
	waits            []string
	restarts         int
}

func (c *counter) Host(h string) { c.hosts = append(c.hosts, h) }
func (c *counter) Bytes(n int64, resumed bool) {
	if resumed {
		c.resumed += n
	} else {
		c.network += n
	}
}
func (c *counter) Waiting(why string, _ time.Time) { c.waits = append(c.waits, why) }
func (c *counter) Restarted()                      { c.restarts++ }

// quick is a configuration for servers that are near and tests that are short; those
// that wait for a stall shorten that too.
func quick(t *testing.T, dir string) Config {
	t.Helper()
	cfg := Config{Stall: 20 * time.Second, Backoff: 5 * time.Millisecond, KeepAfter: -1}
	if dir != "" {
		var err error
		if cfg.Partials, err = content.OpenPartials(dir, content.PartialLimits{}); err != nil {
			t.Fatal(err)
		}
	}
	return cfg
}

func client(t *testing.T, cfg Config) *Client {
	t.Helper()
	testkit.Leaks(t)
	c := New(cfg)
	t.Cleanup(c.Close)
	return c
}

// session talks to hosts in order, the last of which is the registry itself.
func session(t *testing.T, c *Client, cred Credentials, servers ...*faulty.Registry) *Session {
	t.Helper()
	var urls []string
	ca := ""
	for _, r := range servers {
		urls = append(urls, r.URL)
		if cert := r.Certificate(); cert != nil {
			ca = filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return sessionOf(t, c, cred, ca, urls...)
}

func sessionOf(t *testing.T, c *Client, cred Credentials, ca string, urls ...string) *Session {
	t.Helper()
	var b strings.Builder
	last := len(urls) - 1
	fmt.Fprintf(&b, "server = %q\n", urls[last])
	if ca != "" {
		fmt.Fprintf(&b, "ca = %q\n", ca)
	}
	for _, u := range urls[:last] {
		fmt.Fprintf(&b, "[host.%q]\n", u)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "r.example"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "r.example", "hosts.toml"), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	c.cfg.HostsDir = dir
	s, err := c.Open(Repository{"r.example", "x"}, cred)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// stall is short for a test and long for a machine that is busy.
const stall = 400 * time.Millisecond

// fetch reads a blob as the image store does.
func fetch(ctx context.Context, s *Session, want []byte, o Observer) error {
	for {
		b := s.Blob(ctx, digest.FromBytes(want), int64(len(want)))
		b.Observe(o)
		v, err := content.Verify(b, digest.FromBytes(want), int64(len(want)))
		if err != nil {
			return err
		}
		got, err := io.ReadAll(v)
		if err == nil && !bytes.Equal(got, want) {
			err = errors.New("other bytes, verified")
		}
		if err == nil {
			b.Verified()
		}
		if !errors.Is(err, content.ErrMismatch) {
			return errors.Join(err, b.Close())
		}
		_, more := b.Mismatched()
		if _ = b.Close(); !more {
			return err
		}
		if o != nil {
			o.Restarted()
		}
	}
}

func unavailable(err error) bool {
	p, ok := errors.AsType[*errdef.Prefixed](err)
	return ok && p.Prefix == errdef.RegistryUnavailable
}

func is(kind error) func(error) bool {
	return func(err error) bool { return errors.Is(err, kind) && !unavailable(err) }
}

// faultCase is a fault of a blob's transfer, and what becomes of it where there is no
// other host. With a healthy second host everything succeeds.
type faultCase struct {
	do    faulty.Fault
	times int              // 0: always
	fails func(error) bool // nil: succeeds
	gets  int              // requests for the blob, at most; 0: 6
	twice int64            // bytes sent more than once, at most
}

// lost is what the kernel may hold of a connection that is reset: tcp_rmem and tcp_wmem.
const lost = 40 << 20

func faultCases(elsewhere string) map[string]faultCase {
	const half = blobSize / 2
	return map[string]faultCase{
		"stalls once":               {do: faulty.Stall(half), times: 1, gets: 2},
		"stalls at once, once":      {do: faulty.Stall(0), times: 1, gets: 2},
		"always stalls later":       {do: faulty.Stall(half), fails: nil, gets: 24},
		"always stalls at once":     {do: faulty.Stall(0), fails: unavailable},
		"trickles once":             {do: faulty.Trickle(half, 5, 10*time.Millisecond), times: 1, gets: 2},
		"always trickles":           {do: faulty.Trickle(0, 5, 10*time.Millisecond), fails: unavailable},
		"resets once":               {do: faulty.Reset(half), times: 1, gets: 2, twice: lost},
		"always resets":             {do: faulty.Reset(0), fails: unavailable},
		"truncates twice":           {do: faulty.Truncate(1 << 20), times: 2, gets: 3},
		"always truncates at once":  {do: faulty.Truncate(0), fails: unavailable},
		"a byte altered once":       {do: faulty.Flip(half), times: 1, gets: 2, twice: blobSize},
		"a byte always altered":     {do: faulty.Flip(half), fails: is(content.ErrMismatch), twice: blobSize},
		"500 twice":                 {do: faulty.Status(500), times: 2, gets: 3},
		"always 502":                {do: faulty.Status(502), fails: unavailable},
		"503 with a second's wait":  {do: faulty.Status(503, "Retry-After", "1"), times: 1, gets: 2},
		"429 once":                  {do: faulty.Status(429), times: 1, gets: 2},
		"429 that asks for a day":   {do: faulty.Status(429, "Retry-After", "86400"), fails: is(errdef.ErrRetry), gets: 1},
		"404":                       {do: faulty.Status(404), fails: is(errdef.ErrNotFound), gets: 1},
		"403":                       {do: faulty.Status(403), fails: is(errdef.ErrDenied), gets: 1},
		"401 without a challenge":   {do: faulty.Status(401), fails: is(errdef.ErrDenied), gets: 1},
		"401 for ever":              {do: faulty.Status(401, "WWW-Authenticate", `Basic realm="x"`), fails: is(errdef.ErrDenied), gets: 2},
		"a longer length announced": {do: faulty.Length(10), fails: is(errdef.ErrInvalid), gets: 1, twice: blobSize},
		"a shorter length":          {do: faulty.Length(-10), fails: is(errdef.ErrInvalid), gets: 1, twice: blobSize},
		"longer than its digest":    {do: faulty.Longer(64 << 20), gets: 1, twice: lost},
		"a login page":              {do: faulty.Page(), fails: is(errdef.ErrInvalid), gets: 1, twice: 1 << 10},
		"an encoding":               {do: faulty.Header("Content-Encoding", "gzip"), fails: is(errdef.ErrInvalid), gets: 1, twice: blobSize},
		"another content type":      {do: faulty.Header("Content-Type", "text/plain"), gets: 1},
		"closes after each answer":  {do: faulty.Header("Connection", "close"), gets: 1},
		"a header without end":      {do: faulty.SlowHeader(10 * time.Millisecond), times: 1, gets: 2},
		"always such a header":      {do: faulty.SlowHeader(10 * time.Millisecond), fails: unavailable},
		"a huge header":             {do: faulty.HugeHeader(2 << 20), fails: unavailable, twice: lost},
		"stalls with a 404":         {do: faulty.StatusStall(404), fails: is(errdef.ErrNotFound), gets: 1, twice: 1},
		"stalls with a 401":         {do: faulty.StatusStall(401, "WWW-Authenticate", "Basic realm=x"), fails: unavailable, twice: 1},
		"no HTTP":                   {do: faulty.Garbage(), fails: unavailable},
		"redirected elsewhere":      {do: faulty.Redirect(elsewhere), gets: 1},
		"a redirect to itself":      {do: faulty.Redirect(""), fails: is(errdef.ErrInvalid), gets: maxRedirects},
		"a redirect to nobody":      {do: faulty.Redirect("http://127.0.0.1:1"), fails: unavailable},
	}
}

// TestFaults: every fault, at the only host and at the first of two.
func TestFaults(t *testing.T) {
	data := randomBytes(blobSize)
	storage := faulty.New(t, faulty.Plain)
	storage.PushBlob("x", data)
	for name, tc := range faultCases(storage.URL) {
		for _, second := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/second=%v", name, second), func(t *testing.T) {
				t.Parallel()
				bad := faulty.New(t, faulty.Plain)
				bad.PushBlob("x", data)
				bad.Set(faulty.Rule{Path: "/blobs/", Times: tc.times, Do: tc.do})
				servers := []*faulty.Registry{bad}
				sent := func() int64 { return bad.Sent("/blobs/") }
				if second {
					good := faulty.New(t, faulty.Plain)
					good.PushBlob("x", data)
					servers = append(servers, good)
					sent = func() int64 { return bad.Sent("/blobs/") + good.Sent("/blobs/") }
				}
				dir := t.TempDir()
				cfg := quick(t, dir)
				if regexp.MustCompile("stall|trickle|header").MatchString(name) {
					cfg.Stall = stall
				}
				c := New(cfg)
				t.Cleanup(c.Close)
				s := session(t, c, Credentials{Username: "u", Password: "hunter2"}, servers...)
				if _, err := s.Manifest(t.Context(), "1"); !errors.Is(err, errdef.ErrNotFound) {
					t.Fatalf("manifest: got %v", err) // as in a pull, the host has spoken by now
				}
				var o counter
				start := time.Now()
				err := fetch(t.Context(), s, data, &o)
				if took := time.Since(start); took > 20*time.Second {
					t.Errorf("took %v", took)
				}
				checkFault(t, tc, second, err)
				if n, most := len(bad.Requests("/blobs/")), max(tc.gets, 1); tc.gets > 0 && n > most || tc.gets == 0 && n > 6 {
					t.Errorf("requests: got %d, want at most %d", n, most)
				}
				if err == nil && sent() > blobSize+tc.twice {
					t.Errorf("sent: got %d bytes, %d more than the blob has; want at most %d more", sent(), sent()-blobSize, tc.twice)
				}
				checkPartials(t, dir, err)
			})
		}
	}
}

func checkFault(t *testing.T, tc faultCase, second bool, err error) {
	t.Helper()
	switch {
	case second || tc.fails == nil:
		if err != nil {
			t.Errorf("got %v", err)
		}
	case err == nil || !tc.fails(err):
		t.Errorf("got %v, not the right kind", err)
	case !strings.Contains(err.Error(), "127.0.0.1:") && !errors.Is(err, content.ErrMismatch):
		t.Errorf("got %v, which names no host", err)
	case strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "s3cr3t"):
		t.Errorf("got %v, which tells secrets", err)
	}
}

// checkPartials: a transfer that succeeded or was in vain leaves nothing, not even nothing.
func checkPartials(t *testing.T, dir string, err error) {
	t.Helper()
	es, e := os.ReadDir(dir)
	if e != nil {
		t.Fatal(e)
	}
	for _, f := range es {
		fi, e := f.Info()
		if e != nil || err == nil || fi.Size() == 0 {
			t.Errorf("left: %s, %v", f.Name(), e)
		}
	}
}

// TestBytesOnce: what came is not sent again, also not by another host or the next pull.
func TestBytesOnce(t *testing.T) {
	data := randomBytes(blobSize)
	for name, tc := range map[string]struct {
		first, then faulty.Fault
		restart     bool // of the daemon
		gap         int  // bytes that the kernel may have lost
	}{
		"the host dies":                 {first: faulty.Truncate(2 << 20)},
		"the host dies, daemon too":     {first: faulty.Truncate(2 << 20), restart: true},
		"the host dies at an odd place": {first: faulty.Truncate(1<<20 + 12345), restart: true},
		"then a server without ranges":  {first: faulty.Truncate(2 << 20), then: faulty.NoRange(0), restart: true, gap: 2 << 20},
		"then one with wrong ranges":    {first: faulty.Truncate(2 << 20), then: faulty.WrongRange(), restart: true, gap: 6 << 20},
		"then one that knows no ranges": {first: faulty.Truncate(2 << 20), then: faulty.Unsatisfiable(), restart: true, gap: 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			r := faulty.New(t, faulty.Plain)
			r.PushBlob("x", data)
			// Once, and then nothing: the transfer fails for good.
			r.Set(faulty.Rule{Path: "/blobs/", Times: 1, Do: tc.first}, faulty.Rule{Path: "/blobs/", Do: faulty.Status(502)})
			dir := t.TempDir()
			c := client(t, quick(t, dir))
			var o counter
			if err := fetch(t.Context(), session(t, c, Credentials{}, r), data, &o); !unavailable(err) {
				t.Fatalf("got %v, want unavailable", err)
			}
			if len(o.waits) == 0 || !strings.Contains(strings.Join(o.waits, " "), r.Host()) {
				t.Errorf("waits: got %q", o.waits)
			}
			sent := r.Sent("/blobs/")
			if tc.restart {
				c.Close()
				c = New(quick(t, dir))
				defer c.Close()
			}
			r.Set(faulty.Rule{Path: "/blobs/", Do: cmpFault(tc.then)})
			second := counter{}
			if err := fetch(t.Context(), session(t, c, Credentials{}, r), data, &second); err != nil {
				t.Fatal(err)
			}
			if second.resumed+second.network != blobSize || second.resumed != o.network {
				t.Errorf("second transfer: resumed %d, network %d; the first had %d of %d", second.resumed, second.network, o.network, blobSize)
			}
			if twice := sent + r.Sent("/blobs/") - blobSize; twice > int64(tc.gap)+1024 {
				t.Errorf("%d bytes were sent twice", twice)
			}
			checkPartials(t, dir, nil)
		})
	}
}

func cmpFault(f faulty.Fault) faulty.Fault {
	if f == nil {
		return (*faulty.Answer).All
	}
	return f
}

// TestCancelledTransfer: the next one goes on, and two at once do not share a file.
func TestCancelledTransfer(t *testing.T) {
	data := randomBytes(blobSize)
	r := faulty.New(t, faulty.Plain)
	r.PushBlob("x", data)
	arrived, gate := make(chan struct{}), make(chan struct{})
	r.Set(faulty.Rule{Path: "/blobs/", Times: 1, Do: faulty.Gate(2<<20, arrived, gate)})
	dir := t.TempDir()
	cfg := quick(t, dir)
	cfg.Stall = time.Minute
	c := client(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- fetch(ctx, session(t, c, Credentials{}, r), data, nil) }()
	<-arrived
	other := counter{}
	if err := fetch(t.Context(), session(t, c, Credentials{}, r), data, &other); err != nil || other.resumed != 0 {
		t.Errorf("another transfer at the same time: %v, resumed %d", err, other.resumed)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // until it was read
		if fi, err := os.Stat(filepath.Join(dir, strings.Replace(faulty.Digest(data), ":", "-", 1))); err == nil && fi.Size() > 1<<20 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is kept")
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want cancelled", err)
	}
	var o counter
	if err := fetch(t.Context(), session(t, c, Credentials{}, r), data, &o); err != nil || o.resumed < 1<<20 {
		t.Errorf("the next transfer: %v, resumed %d", err, o.resumed)
	}
	checkPartials(t, dir, nil)
}

// TestKeepAfter: a transfer that has just begun keeps nothing. What is kept later begins
// with a hole, for which alone the next one asks.
func TestKeepAfter(t *testing.T) {
	data := randomBytes(blobSize)
	for name, then := range map[string]faulty.Fault{"with ranges": nil, "without": faulty.NoRange(0), "wrong ones": faulty.WrongRange(), "breaks in the hole": faulty.Truncate(1000)} {
		t.Run(name, func(t *testing.T) {
			r := faulty.New(t, faulty.Plain)
			r.PushBlob("x", data)
			dir := t.TempDir()
			cfg := quick(t, dir)
			cfg.KeepAfter = 100 * time.Millisecond
			c := client(t, cfg)
			r.Set(faulty.Rule{Path: "/blobs/", Times: 1, Do: faulty.Truncate(1 << 20)}, faulty.Rule{Path: "/blobs/", Times: 1, Do: func(a *faulty.Answer) {
				time.Sleep(150 * time.Millisecond)
				faulty.Truncate(1 << 20)(a)
			}}, faulty.Rule{Path: "/blobs/", Do: faulty.Status(502)})
			if err := fetch(t.Context(), session(t, c, Credentials{}, r), data, nil); !unavailable(err) {
				t.Fatalf("got %v, want unavailable", err)
			}
			r.Set(faulty.Rule{Path: "/blobs/", Times: 1, Do: cmpFault(then)})
			var o counter
			if err := fetch(t.Context(), session(t, c, Credentials{}, r), data, &o); err != nil {
				t.Fatal(err)
			}
			if then == nil && (o.resumed != 1<<20 || r.Sent("/blobs/") != 2<<20) {
				t.Errorf("resumed %d, sent %d; want 1 MiB and the rest", o.resumed, r.Sent("/blobs/"))
			}
			if o.resumed+o.network != blobSize || len(c.Mismatches()) != 0 {
				t.Errorf("resumed %d, network %d, %v", o.resumed, o.network, c.Mismatches())
			}
			checkPartials(t, dir, nil)
		})
	}
}

// TestWrongPartial: a file that a power cut left with other bytes costs one transfer.
func TestWrongPartial(t *testing.T) {
	data := randomBytes(blobSize)
	for name, left := range map[string][]byte{
		"zeros": make([]byte, 2<<20), "all of it, one byte wrong": append(slices.Clone(data[:blobSize-1]), data[blobSize-1]^1),
		"all of it, right": data, "longer": make([]byte, blobSize+1), "nothing": {},
	} {
		t.Run(name, func(t *testing.T) {
			r := faulty.New(t, faulty.Plain)
			r.PushBlob("x", data)
			dir := t.TempDir()
			file := filepath.Join(dir, strings.Replace(faulty.Digest(data), ":", "-", 1))
			if err := os.WriteFile(file, left, 0o600); err != nil {
				t.Fatal(err)
			}
			c := client(t, quick(t, dir))
			var o counter
			if err := fetch(t.Context(), session(t, c, Credentials{}, r), data, &o); err != nil {
				t.Errorf("got %v", err)
			}
			if len(c.Mismatches()) != 0 {
				t.Errorf("a host is blamed for our file: %v", c.Mismatches())
			}
			if name == "all of it, right" && len(r.Requests("/blobs/")) != 0 {
				t.Error("it was fetched though all of it was here")
			}
			if name != "longer" {
				checkPartials(t, dir, nil)
			}
		})
	}
}

// TestHTTP2 resumes within one connection.
func TestHTTP2(t *testing.T) {
	data := randomBytes(blobSize)
	for name, fault := range map[string]faulty.Fault{"stalls": faulty.Stall(1 << 20), "breaks off": faulty.Truncate(1 << 20), "500": faulty.Status(500)} {
		t.Run(name, func(t *testing.T) {
			r := faulty.New(t, faulty.HTTP2)
			r.PushBlob("x", data)
			r.Set(faulty.Rule{Path: "/blobs/", Times: 2, Do: fault})
			cfg := quick(t, t.TempDir())
			if name == "stalls" {
				cfg.Stall = stall
			}
			c := client(t, cfg)
			s := session(t, c, Credentials{}, r)
			if err := fetch(t.Context(), s, data, nil); err != nil {
				t.Fatal(err)
			}
			if n := len(r.Requests("/blobs/")); n != 3 {
				t.Errorf("requests: got %d, want 3", n)
			}
			s.Close()
		})
	}
	// A certificate that nobody vouches for: at once, and no password goes over the wire.
	r := faulty.New(t, faulty.TLS)
	c := client(t, quick(t, ""))
	start := time.Now()
	err := fetch(t.Context(), sessionOf(t, c, Credentials{Username: "u", Password: "hunter2"}, "", r.URL), data, nil)
	if !unavailable(err) || !strings.Contains(err.Error(), "certificate") || len(r.Requests("")) != 0 {
		t.Errorf("bad certificate: got %v and %d requests", err, len(r.Requests("")))
	}
	if time.Since(start) > 2*time.Second {
		t.Errorf("took %v", time.Since(start))
	}
}

// TestDocuments: manifests are as patient as blobs, and a page is none.
func TestDocuments(t *testing.T) {
	const mt = "application/vnd.oci.image.manifest.v1+json"
	for name, tc := range map[string]struct {
		do    faulty.Fault
		times int
		fails func(error) bool
	}{
		"503 twice":      {do: faulty.Status(503), times: 2},
		"429":            {do: faulty.Status(429, "Retry-After", time.Now().Add(time.Second).UTC().Format(http.TimeFormat)), times: 1},
		"broken off":     {do: faulty.Truncate(3), times: 1},
		"reset at once":  {do: faulty.Garbage(), times: 1},
		"always 503":     {do: faulty.Status(503), fails: unavailable},
		"a login page":   {do: faulty.Page(), fails: is(errdef.ErrInvalid)},
		"never a header": {do: faulty.SlowHeader(5 * time.Millisecond), fails: unavailable},
		"stalls":         {do: faulty.Stall(2), fails: unavailable},
		"stalls, 404":    {do: faulty.StatusStall(404), fails: is(errdef.ErrNotFound)},
		"stalls, 401":    {do: faulty.StatusStall(401, "WWW-Authenticate", "Basic realm=x"), fails: is(errdef.ErrDenied)},
		"another digest": {do: faulty.Flip(2), fails: is(errdef.ErrInvalid)},
		"too large":      {do: func(a *faulty.Answer) { a.Body = make([]byte, MaxDocument+1); a.All() }, fails: is(errdef.ErrInvalid)},
	} {
		t.Run(name, func(t *testing.T) {
			body := []byte(`{"schemaVersion":2}`)
			bad, good := faulty.New(t, faulty.Plain), faulty.New(t, faulty.Plain)
			for _, r := range []*faulty.Registry{bad, good} {
				r.PushManifest("x", "1", mt, body)
			}
			bad.Set(faulty.Rule{Path: "/manifests/", Times: tc.times, Do: tc.do})
			cfg := quick(t, "")
			if strings.HasPrefix(name, "stalls") || name == "never a header" {
				cfg.Stall = stall
			}
			c := client(t, cfg)
			s := session(t, c, Credentials{}, bad)
			var o counter
			s.Observe(&o)
			doc, err := s.Manifest(t.Context(), faulty.Digest(body))
			if tc.fails == nil && (len(o.waits) != tc.times || len(o.hosts) != 1) {
				t.Errorf("observed: hosts %v, waits %q", o.hosts, o.waits)
			}
			if tc.fails == nil && (err != nil || doc.MediaType != mt || !bytes.Equal(doc.Body, body)) || tc.fails != nil && !tc.fails(err) {
				t.Errorf("got %+v, %v", doc, err)
			}
			bad.Set(faulty.Rule{Path: "/manifests/", Times: tc.times, Do: tc.do})
			if _, err := session(t, c, Credentials{}, bad, good).Manifest(t.Context(), faulty.Digest(body)); err != nil {
				t.Errorf("with a second host: got %v", err)
			}
		})
	}
}
