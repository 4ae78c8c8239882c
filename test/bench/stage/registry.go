package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
)

// Registry is where the registry listens, in the network namespace of the inner half.
const Registry = "127.0.0.1:5000"

// StartRegistry starts this program as the registry of the images in a directory, in a
// cgroup of its own, and reads all blobs into the page cache.
func StartRegistry(ctx context.Context, c Cgroup, dir, log string) (*Process, error) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	p, err := Start(ctx, log, []string{roleEnv + "=" + roleRegistry, settingEnv + "=" + dir}, c.Command([]string{program}))
	if err != nil {
		return nil, err
	}
	return p, preload(dir)
}

// preload reads all blobs: the disk must not read them in a pull.
func preload(dir string) error {
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, struct{ io.Reader }{f}) // a plain reader: it is to be read
		return err
	})
}

// serveImages is the registry's process.
func serveImages(ctx context.Context, dir string) error {
	set, err := images.Open(dir)
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", Registry)
	if err != nil {
		return fmt.Errorf("serve images: %w", err)
	}
	server := &http.Server{Handler: set, ReadHeaderTimeout: time.Minute}
	var wait sync.WaitGroup
	wait.Go(func() {
		<-ctx.Done()
		_ = server.Close()
	})
	err = server.Serve(l)
	wait.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve images: %w", err)
}
