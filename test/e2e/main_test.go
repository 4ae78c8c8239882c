package e2e

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

var (
	keep        = flag.Bool("keep", false, "keep logs, and say where they are")
	wantKubelet = flag.Bool("kubelet", false, "build a kubelet where there is none yet")
	kills       = flag.Int("kills", 25, "how many times the daemon is killed during activity")
)

// image is what all pods here are made of: a shell and a web server.
const image = "docker.io/library/busybox:1.37"

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, func() lab.Needs {
		n := lab.Needs{Name: "e2e", Tools: []string{"crictl"}, Keep: *keep, Images: example}
		if *wantKubelet {
			n.Tools = append(n.Tools, "kubelet")
		}
		return n
	}))
}

func example(ctx context.Context, cache string) (*catalogue.Store, error) {
	return catalogue.Example(ctx, cache, image)
}

// newNode is a daemon, not started yet, that can pull the image.
func newNode(t *testing.T, name string, args ...string) *lab.Daemon {
	t.Helper()
	cache, err := catalogue.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	store, err := example(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(lab.Here(t).Work, name)
	if err := os.Mkdir(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	d := lab.NewDaemon(t, dir, args...)
	d.Serve(t, "127.0.0.1:0", store)
	return d
}
