// Command images builds the images that the tests and the example pull, and
// serves them on a loopback registry until it is interrupted.
//
//	go run ./test/images -serve 127.0.0.1:5010 -hosts DIR/certs.d [-patch critest] [-example NAME]
//
// It pushes nothing anywhere. It owns one goroutine, which shuts the server down
// on a signal; the images stay in the cache (see package catalogue).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	cache := flag.String("cache", "", "cache directory (default $CRI_RUNTIME_CACHE, or cri-runtime in the user's cache directory)")
	serve := flag.String("serve", "", "serve the images at this address until interrupted; port 0 takes a free one")
	hosts := flag.String("hosts", "", "write a registry host folder (certs.d) here, which sends every pull to the served address")
	patch := flag.String("patch", "", "critest binary to change, so that it expects the local digest of the image that it pulls by digest")
	example := flag.String("example", "", "serve only the example image, under this full name (registry/path:tag), not critest's images")
	flag.Parse()
	if *hosts != "" && *serve == "" {
		return errors.New("-hosts needs -serve")
	}
	store, err := images(ctx, *cache, *example)
	if err != nil {
		return err
	}
	for _, reference := range store.References() {
		digest, _ := store.Digest(reference)
		fmt.Println(digest, reference)
	}
	if *patch != "" {
		if err := store.PatchCritest(*patch); err != nil {
			return err
		}
	}
	if *serve == "" {
		return nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", *serve)
	if err != nil {
		return err
	}
	address := listener.Addr().String()
	if *hosts != "" {
		if err := catalogue.WriteHosts(*hosts, address); err != nil {
			return errors.Join(err, listener.Close())
		}
	}
	fmt.Println("serving at", address)
	return serveUntil(ctx, listener, store)
}

func images(ctx context.Context, cache, example string) (*catalogue.Store, error) {
	if cache == "" {
		var err error
		if cache, err = catalogue.CacheDir(); err != nil {
			return nil, err
		}
	}
	if example != "" {
		return catalogue.Example(ctx, cache, example)
	}
	fmt.Fprintln(os.Stderr, "images: preparing (ten seconds at the first time)")
	return catalogue.Critest(ctx, cache)
}

// serveUntil serves until ctx is done, and then gives open requests a moment.
func serveUntil(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	var closer sync.WaitGroup
	done, finish := context.WithCancel(ctx)
	closer.Go(func() {
		<-done.Done()
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = server.Shutdown(limit)
	})
	err := server.Serve(listener)
	finish()
	closer.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
