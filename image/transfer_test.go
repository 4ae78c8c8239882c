package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/test/faulty"
)

// resumeEnv turns this test binary into the daemon that is killed in the middle of a pull.
const resumeEnv = "CRI_IMAGE_RESUME"

// noise is a layer that cannot be compressed.
func noise(t testing.TB, name string, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(b)
	return makeTar(t, file{name: name, body: string(b)})
}

func TestResumeChild(t *testing.T) {
	args := strings.Split(os.Getenv(resumeEnv), " ")
	if len(args) != 3 {
		t.Skip("part of TestResume")
	}
	s, err := Open(t.Context(), Options{Root: args[0], State: args[1]})
	if err != nil {
		t.Fatal(err)
	}
	hasty(t, s, 20*time.Second)
	_, err = s.Pull(t.Context(), PullRequest{Ref: args[2]})
	t.Fatalf("the pull ended: %v", err)
}

// TestResume ends a pull in the middle of each layer. The next one, by the next daemon,
// goes on where it ended.
func TestResume(t *testing.T) {
	const half = 3 << 20
	layers := [][]byte{noise(t, "a", 6<<20), noise(t, "b", 6<<20), noise(t, "c", 6<<20)}
	for how, lost := range map[string]int64{
		"cancelled":    0,
		"store closed": 0,
		"killed":       128 << 10, // of each layer: what is collected for one write
		"host gone":    0,
	} {
		t.Run(how, func(t *testing.T) {
			s := openTest(t, Options{})
			hasty(t, s, 20*time.Second)
			r := faulty.New(t, faulty.Plain)
			id := r.Push("x", "1", layers...)
			never, allKept := make(chan struct{}), make(chan struct{})
			goOn := sync.OnceFunc(func() { close(allKept) })
			defer goOn()
			var rules []faulty.Rule
			for _, l := range layers {
				do := faulty.Gate(half, nil, never)
				if how == "host gone" {
					do = faulty.Truncate(half)
				}
				// The first layer that fails ends the others, and with them what is in sockets.
				gone := func(a *faulty.Answer) { <-allKept; faulty.Status(http.StatusBadGateway)(a) }
				rules = append(rules, faulty.Rule{Path: faulty.Digest(l), Times: 1, Do: do}, faulty.Rule{Path: faulty.Digest(l), Do: gone})
			}
			r.Set(rules...)
			req := PullRequest{Ref: r.Host() + "/x:1"}
			switch how {
			case "killed":
				killPull(t, s, req.Ref, half-lost)
			case "host gone":
				done := make(chan error, 1)
				go func() {
					_, err := s.Pull(t.Context(), req)
					done <- err
				}()
				arrivedAll(t, s, half)
				goOn()
				if err := <-done; !unavailable(err) {
					t.Errorf("pull: got %v, want unavailable", err)
				}
			default:
				breakPull(t, s, how, req, half)
			}
			first := r.Sent("/blobs/")
			_ = s.Close()
			s = openTest(t, s.opt)
			r.Set()
			if got := mustPull(t, s, req.Ref); string(got) != id {
				t.Errorf("pull: got %s, want %s", got, id)
			}
			total := int64(0)
			for _, l := range layers {
				total += int64(len(l))
			}
			// Configurations are small, and never kept.
			if twice := first + r.Sent("/blobs/") - total; twice > 3*lost+4096 {
				t.Errorf("%d bytes were sent twice", twice)
			}
			if left := partials(t, s.opt.Root); len(left) != 0 {
				t.Errorf("left after success: %v", left)
			}
		})
	}
}

// keptAll waits until each of three layers is kept up to n, or as many as are in work at
// once on a machine with one processor.
func keptAll(t *testing.T, root string, n int64) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		full, sizes := 0, []int64(nil)
		for _, e := range partials(t, root) {
			if fi, err := e.Info(); err == nil {
				if sizes = append(sizes, fi.Size()); fi.Size() >= n {
					full++
				}
			}
		}
		if full == min(3, parallelLayers) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("kept after 30 s: %v bytes, want %d each", sizes, n)
		}
	}
}

func breakPull(t *testing.T, s *Store, how string, req PullRequest, half int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, req)
		done <- err
	}()
	arrivedAll(t, s, half)
	if how == "cancelled" {
		cancel()
	} else {
		_ = s.Close()
	}
	if err := <-done; err == nil {
		t.Error("the pull ended well")
	}
}

// arrivedAll waits until each of three layers was received up to n.
func arrivedAll(t *testing.T, s *Store, n int64) {
	t.Helper()
	keptAll(t, s.opt.Root, n-256<<10) // the rest is on its way
	waitFor(t, func() bool {
		sum := int64(0)
		for _, p := range s.Pulls() {
			for _, l := range p.Layers {
				sum += l.Done
			}
		}
		return sum >= 3*n
	})
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not after 30 s")
		}
	}
}

// killPull has another process pull on the same directories, and kills it.
func killPull(t *testing.T, s *Store, ref string, kept int64) {
	t.Helper()
	_ = s.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestResumeChild$") // #nosec G204 G702 -- this test
	cmd.Env = append(os.Environ(), resumeEnv+"="+strings.Join([]string{s.opt.Root, s.opt.State, ref}, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	keptAll(t, s.opt.Root, kept)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// TestDamageOnce: a byte that flips on its way, at the only host, costs one more transfer
// within the same pull; in a mirror that has it wrong for ever, one from the next host.
// What a power cut made of a partial blob is noticed and forgotten.
func TestDamageOnce(t *testing.T) {
	l := noise(t, "a", 2<<20)
	for _, how := range []string{"", "gzip", "zstd"} {
		blob := pack(t, how, l)
		for name, left := range map[string][]byte{"on its way": nil, "zeros": make([]byte, 1<<20),
			"whole, the end wrong": append(blob[:len(blob)-3:len(blob)-3], "xyz"...)} {
			t.Run(how+"/"+name, func(t *testing.T) {
				r := newReg(t)
				_, id := r.push(t, "x", "1", testImage{pack: how, layers: [][]byte{l}})
				s := openTest(t, Options{})
				hasty(t, s, 20*time.Second)
				if left == nil {
					flip := damage(r, sum(blob))
					r.setHook(onceOnly(flip))
				} else if err := os.WriteFile(filepath.Join(s.opt.Root, "partial", strings.Replace(sum(blob), ":", "-", 1)), left, 0o600); err != nil {
					t.Fatal(err)
				}
				if got := mustPull(t, s, r.host()+"/x:1"); string(got) != id {
					t.Errorf("pull: got %s, want %s", got, id)
				}
				if m := s.Mismatches(); (len(m) != 0) != (left == nil) {
					t.Errorf("mismatches: got %v", m)
				}
				if ps := partials(t, s.opt.Root); len(ps) != 0 {
					t.Errorf("left: %v", ps)
				}
			})
		}
	}
}

// TestNoSpaceLeavesNoPartials: whoever finds the disk full gets what they hold.
func TestNoSpaceLeavesNoPartials(t *testing.T) {
	l := noise(t, "a", 4<<20)
	r := faulty.New(t, faulty.Plain)
	r.PushBlob("x", l)
	s := openTest(t, Options{})
	idle := filepath.Join(s.opt.Root, "partial", "sha256-"+strings.Repeat("0", 64))
	if err := os.WriteFile(idle, make([]byte, 100000), 0o600); err != nil {
		t.Fatal(err)
	}
	sess, err := s.client.Open(registry.Repository{Host: r.Host(), Path: "x"}, registry.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	ctx, cancel := context.WithCancel(t.Context())
	err = s.transfer(ctx, sess, descriptor{Digest: Digest(sum(l)), Size: int64(len(l))}, nil, func(v *content.Verifier) error {
		_, err := io.CopyN(io.Discard, v, 2<<20)
		cancel() // as the pipeline does with all that is not the blob's fault
		return errors.Join(err, fmt.Errorf("write layer: %w", unix.ENOSPC))
	})
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if ps := partials(t, s.opt.Root); len(ps) != 0 {
		t.Errorf("left on a full disk: %v", ps)
	}
}

// kinds are those that an error of a pull may have; another is a defect.
var kinds = []error{errdef.ErrNotFound, errdef.ErrInvalid, errdef.ErrRetry, errdef.ErrDenied, errdef.ErrExhausted, context.Canceled}

func hasKind(err error) bool {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return true
		}
	}
	return unavailable(err)
}

// TestSoakFaults pulls through random faults at two mirrors and the registry, breaks
// pulls off and reopens the store: for two seconds, or with CRI_SOAK=1 for five minutes,
// or as long as CRI_SOAK says.
func TestSoakFaults(t *testing.T) {
	length := 2 * time.Second
	if v := os.Getenv("CRI_SOAK"); v == "1" {
		length = 5 * time.Minute
	} else if d, err := time.ParseDuration(v); err == nil {
		length = d
	}
	seed := uint64(time.Now().UnixNano()) // #nosec G115 -- any will do
	rnd := rand.New(rand.NewPCG(seed, 0)) // #nosec G404 -- no secret
	t.Logf("seed %d", seed)
	certs := t.TempDir()
	s := openTest(t, Options{HostsDir: certs})
	hasty(t, s, 300*time.Millisecond)
	hosts := []*faulty.Registry{faulty.New(t, faulty.Plain), faulty.New(t, faulty.Plain), faulty.New(t, faulty.Plain)}
	writeHosts(t, certs, "r.example", fmt.Sprintf("server = %q\n[host.%q]\n[host.%q]\n", hosts[2].URL, hosts[0].URL, hosts[1].URL))
	counts := map[string]int{}
	for start, round := time.Now(), 0; time.Since(start) < length; round++ {
		n := round % 30 // the registries keep all that they are given
		layers := make([][]byte, 1+n%4)
		for i := range layers {
			layers[i] = noise(t, fmt.Sprint(n, "-", i), 1+(n*7919+i*104729)%(3<<20))
		}
		var id string
		for _, r := range hosts {
			id = r.Push("x", fmt.Sprint(n), layers...)
		}
		ref := fmt.Sprintf("r.example/x:%d", n)
		for try := 0; ; try++ {
			for _, r := range hosts {
				r.Set(randomRules(rnd, try)...)
			}
			ctx, cancel := context.WithCancel(t.Context())
			if rnd.IntN(4) == 0 {
				time.AfterFunc(time.Duration(rnd.IntN(50))*time.Millisecond, cancel)
			}
			watch := time.AfterFunc(2*time.Minute, func() {
				buf := make([]byte, 1<<20)
				panic(fmt.Sprintf("a pull does not end:\n%s", buf[:runtime.Stack(buf, true)]))
			})
			got, err := s.Pull(ctx, PullRequest{Ref: ref})
			watch.Stop()
			cancel()
			if err == nil {
				counts["pulled"]++
				if string(got) != id {
					t.Errorf("pull: got %s, want %s", got, id)
				}
				break
			}
			if counts["failed"]++; !hasKind(err) {
				t.Errorf("an error without a kind: %v", err)
			}
			if try > 20 {
				t.Fatalf("without faults: %v", err)
			}
			if rnd.IntN(4) == 0 {
				counts["reopened"]++
				_ = s.Close()
				s = openTest(t, s.opt)
				hasty(t, s, 300*time.Millisecond)
			}
		}
		mustRemove(t, s, id)
		for _, e := range partials(t, s.opt.Root) {
			for _, l := range layers {
				if strings.HasSuffix(faulty.Digest(l), strings.TrimPrefix(e.Name(), "sha256-")) {
					t.Errorf("left after success: %s", e.Name())
				}
			}
		}
	}
	t.Logf("%v", counts)
}

// randomRules are fewer with each try, in the end none.
func randomRules(rnd *rand.Rand, try int) (rules []faulty.Rule) {
	at := rnd.IntN(3 << 20)
	all := []faulty.Fault{faulty.Stall(at), faulty.Trickle(at, 3, 10*time.Millisecond), faulty.Reset(at), faulty.Truncate(at), faulty.Flip(at),
		faulty.Status(500), faulty.Status(503, "Retry-After", "1"), faulty.Status(429), faulty.Status(404), faulty.StatusStall(404), faulty.Status(401), faulty.Length(7), faulty.Length(-7),
		faulty.Longer(1 << 20), faulty.NoRange(at), faulty.NoRange(0), faulty.Unsatisfiable(), faulty.WrongRange(), faulty.Page(),
		faulty.HugeHeader(1 << 20), faulty.Garbage(), faulty.Redirect(""), faulty.Header("Connection", "close"), faulty.Pause(100 * time.Millisecond)}
	for range max(0, rnd.IntN(5)-try) {
		path := []string{"/blobs/", "/manifests/", ""}[min(rnd.IntN(6), 2)]
		if rnd.IntN(2) == 0 {
			path = "/blobs/"
		}
		rules = append(rules, faulty.Rule{Path: path, Skip: rnd.IntN(4), Times: rnd.IntN(4), Do: all[rnd.IntN(len(all))]})
	}
	return rules
}

// onceOnly lets a hook answer the first request that it wants.
func onceOnly(hook func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	var done atomic.Bool
	return func(w http.ResponseWriter, q *http.Request) bool {
		if done.Load() || !hook(w, q) {
			return false
		}
		done.Store(true)
		return true
	}
}
