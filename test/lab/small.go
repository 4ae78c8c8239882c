package lab

import (
	"context"
	"os"
	"testing"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
)

// SmallNeeds are those of a package whose tests use StartSmall.
func SmallNeeds(name string) Needs {
	return Needs{Name: name, Images: func(ctx context.Context, cache string) (*catalogue.Store, error) {
		_, err := images.Small(ctx, cache)
		return nil, err
	}}
}

// StartSmall starts a daemon with the built-in network until the end of the test, its log as
// terse as an operator's, that can pull the small image of the benchmarks.
func StartSmall(t *testing.T) *Daemon {
	t.Helper()
	dir, err := os.MkdirTemp(Here(t).Work, t.Name()+".") //nolint:usetesting // on the disk, with room for images
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	d := NewDaemon(t, dir, "--take-away")
	cache, err := catalogue.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	set, err := images.Small(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	d.Serve(t, "127.0.0.1:0", set)
	d.Start(t)
	t.Cleanup(func() { d.Stop(t) })
	return d
}
