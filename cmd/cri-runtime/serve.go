package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

func serveCommand() *cobra.Command {
	c := defaults()
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the Container Runtime Interface until SIGTERM",
		Long: "Serve the Container Runtime Interface on a unix socket until SIGTERM or SIGINT.\n" +
			"Pods go on running afterwards, and are taken over by the next start.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.check(); err != nil {
				return err
			}
			return serve(cmd.Context(), c)
		},
	}
	c.flags(cmd.Flags())
	addLogFlags(cmd)
	return cmd
}

// serve runs until ctx ends.
func serve(ctx context.Context, c config) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("serve: root is needed")
	}
	release, err := lock(ctx, c.State)
	if err != nil {
		return err
	}
	defer release()
	if err := forgetOldBoot(ctx, c.State); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcStarting)
	}
	// Before all else: who calls meanwhile waits some milliseconds for the answer. One who
	// was refused would come back after a second, as gRPC clients do.
	open, err := openSockets(ctx, c)
	if err != nil {
		return err
	}
	// What runs behind requests ends with the node, not with the signal.
	n, err := wire(context.WithoutCancel(ctx), c)
	if err != nil {
		return errors.Join(err, open.close())
	}
	defer func() { err = errors.Join(err, n.close(context.WithoutCancel(ctx))) }()
	if err = n.serve(ctx, open); err != nil {
		err = fmt.Errorf("serve: %w", err)
	} else {
		notify("STOPPING=1")
	}
	if c.Owned {
		err = errors.Join(err, n.takeAway(context.WithoutCancel(ctx)))
	}
	return err
}

// How much garbage the heap may hold, in percent of what is in use. The daemon makes
// little of it, so that a heap kept tight costs next to nothing, and what pulls need for a
// moment counts half as much again instead of twice. The start makes much at once and is
// over soon: collecting it was a tenth of the start's time.
const (
	gcStarting = 400
	gcServing  = 50
)

// firstRequests is how long the requests that waited for the start may take.
const firstRequests = 300 * time.Millisecond

// releaseMemory gives back what only the start or a pull needed. The heap would keep it:
// its size follows what was in use at the last collection, and a daemon with nothing to do
// makes no garbage that would bring the next one on. It takes some milliseconds of CPU.
func releaseMemory() {
	runtime.GC() // the first collection leaves what is in pools, the second does not
	debug.FreeOSMemory()
}

// adminSocket is the name of the admin socket in the state directory.
const adminSocket = "admin.sock"

// sockets are where requests come in.
type sockets struct{ cri, admin, metrics net.Listener }

func openSockets(ctx context.Context, c config) (s sockets, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.cri, err = listen(ctx, c.Listen, 0o660); err != nil {
		return s, err
	}
	if s.admin, err = listen(ctx, filepath.Join(c.State, adminSocket), 0o600); err != nil {
		return s, err
	}
	if c.MetricsAddress != "" {
		if s.metrics, err = (&net.ListenConfig{}).Listen(ctx, "tcp", c.MetricsAddress); err != nil {
			return s, fmt.Errorf("--metrics-address: %w", err)
		}
	}
	return s, nil
}

// close is for sockets that no server has taken.
func (s sockets) close() error {
	var errs []error
	for _, l := range []net.Listener{s.cri, s.admin, s.metrics} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// serve says that it is ready, and answers until ctx ends or one of the servers fails.
func (n *node) serve(ctx context.Context, open sockets) error {
	g, ctx := errgroup.WithContext(ctx)
	if open.metrics != nil {
		g.Go(func() error { return n.admin.ServeMetrics(ctx, open.metrics) })
	}
	g.Go(func() error { return n.server.Serve(ctx, open.cri) })
	g.Go(func() error { return n.admin.Serve(ctx, open.admin) })
	klog.FromContext(ctx).Info("Serving", "socket", n.config.Listen, "version", version)
	notify("READY=1")
	g.Go(func() error {
		// The first requests, which waited for the start, do not wait for this as well.
		later := time.NewTimer(firstRequests)
		defer later.Stop()
		select {
		case <-later.C:
		case <-ctx.Done():
			return nil
		}
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcServing)
		}
		releaseMemory()
		return nil
	})
	return g.Wait()
}

// takeAwayLimit is how long the end of a runtime started by hand may take: each part
// names what it waits for when it is over.
const takeAwayLimit = 25 * time.Second

// takeAway stops and removes all pods and ends the monitor.
func (n *node) takeAway(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, takeAwayLimit)
	defer cancel()
	var errs []error
	for _, p := range n.sandboxes.Pods(sandbox.PodFilter{}) {
		errs = append(errs, n.sandboxes.RemovePod(ctx, p.ID))
	}
	errs = append(errs, n.monitor.Shutdown(ctx), n.network.Purge(ctx), n.removeCgroups(ctx))
	return errors.Join(errs...)
}

// listen makes a unix socket in the place of what a killed daemon left: the lock says
// that nobody serves there.
func listen(ctx context.Context, path string, mode os.FileMode) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make socket directory: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of socket: %w", err), l.Close())
	}
	return l, nil
}
