package rules

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
)

// registry is one that a test can hold up, cut off or corrupt.
type registry struct {
	store   *catalogue.Store
	mu      sync.Mutex     // guards the next two
	gets    map[string]int // requests for each blob
	meddle  func(w http.ResponseWriter, r *http.Request, body []byte) bool
	ranges  atomic.Int32 // requests for a part of a blob
	arrived chan struct{}
}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if !strings.Contains(q.URL.Path, "/blobs/") || q.Method != http.MethodGet {
		r.store.ServeHTTP(w, q)
		return
	}
	if q.Header.Get("Range") != "" {
		r.ranges.Add(1)
	}
	r.mu.Lock()
	r.gets[q.URL.Path]++
	meddle := r.meddle
	r.mu.Unlock()
	select {
	case r.arrived <- struct{}{}:
	default:
	}
	plain := q.Clone(q.Context())
	plain.Header.Del("Range")
	whole := httptest.NewRecorder()
	r.store.ServeHTTP(whole, plain)
	if meddle == nil || !meddle(w, q, whole.Body.Bytes()) {
		r.store.ServeHTTP(w, q)
	}
}

func (r *registry) set(meddle func(http.ResponseWriter, *http.Request, []byte) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gets, r.meddle = map[string]int{}, meddle
}

// meddling is a node without images whose registry the test can meddle with.
func meddling(t *testing.T) (*node, *registry) {
	t.Helper()
	n := newNode(t)
	if _, err := n.Images.RemoveImage(n.ctx(), &rt.RemoveImageRequest{Image: &rt.ImageSpec{Image: image}}); err != nil {
		t.Fatal(err)
	}
	cache, err := catalogue.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	store, err := example(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	r := &registry{store: store, gets: map[string]int{}, arrived: make(chan struct{}, 1)}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	if err := catalogue.WriteHosts(n.Hosts, server.Listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	return n, r
}

func (n *node) pull(ctx context.Context) error {
	_, err := n.Images.PullImage(ctx, &rt.PullImageRequest{Image: &rt.ImageSpec{Image: image}})
	return err
}

// TestPullSurvivesItsFirstCaller: the one whose request began the download goes away.
func TestPullSurvivesItsFirstCaller(t *testing.T) {
	n, r := meddling(t)
	gate := make(chan struct{})
	r.set(func(_ http.ResponseWriter, q *http.Request, _ []byte) bool {
		select {
		case <-gate:
		case <-q.Context().Done():
		}
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- n.pull(ctx) }() // both end before the test does
	<-r.arrived
	go func() { second <- n.pull(t.Context()) }()
	time.Sleep(100 * time.Millisecond) // for the second to arrive: nothing shows it
	cancel()
	select {
	case err := <-first:
		wantCode(t, err, codes.Canceled)
	case <-time.After(10 * time.Second):
		t.Error("a cancelled caller waits for the download")
	}
	select {
	case err := <-second:
		t.Errorf("the second caller was answered while the registry held the layers back: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(gate)
	if err := <-second; err != nil {
		t.Errorf("second caller: %v", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for blob, count := range r.gets {
		if count != 1 {
			t.Errorf("%s was fetched %d times", blob, count)
		}
	}
}

func TestBrokenDownloads(t *testing.T) {
	n, r := meddling(t)
	t.Run("a damaged layer", func(t *testing.T) {
		r.set(func(w http.ResponseWriter, _ *http.Request, body []byte) bool {
			if len(body) < 10000 { // the configuration
				return false
			}
			body[len(body)/2] ^= 1
			_, _ = w.Write(body)
			return true
		})
		err := n.pull(t.Context())
		if err == nil || !strings.Contains(err.Error(), "sha256:") {
			t.Errorf("got %v, want an error that names the digest", err)
		}
		reply, err := n.Images.ImageStatus(n.ctx(), &rt.ImageStatusRequest{Image: &rt.ImageSpec{Image: image}})
		if err != nil || reply.Image != nil {
			t.Errorf("the image is there: %v, %v", reply, err)
		}
	})
	t.Run("a connection that breaks is resumed", func(t *testing.T) {
		var broken atomic.Int32
		r.ranges.Store(0)
		r.set(func(w http.ResponseWriter, q *http.Request, body []byte) bool {
			if len(body) < 10000 || q.Header.Get("Range") != "" || broken.Add(1) > 1 {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:len(body)/2])
			panic(http.ErrAbortHandler)
		})
		if err := n.pull(t.Context()); err != nil {
			t.Fatal(err)
		}
		if broken.Load() == 0 || r.ranges.Load() == 0 {
			t.Errorf("broken %d times, %d requests for the rest", broken.Load(), r.ranges.Load())
		}
	})
	t.Run("a registry that asks for a login", func(t *testing.T) {
		if _, err := n.Images.RemoveImage(n.ctx(), &rt.RemoveImageRequest{Image: &rt.ImageSpec{Image: image}}); err != nil {
			t.Fatal(err)
		}
		r.set(func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"not for you"}]}`)
			return true
		})
		err := n.pull(t.Context())
		if err == nil || !strings.Contains(err.Error(), "not for you") {
			t.Errorf("got %v, want the registry's word", err)
		}
	})
}
