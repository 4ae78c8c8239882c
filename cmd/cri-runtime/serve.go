package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
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
	release, err := lock(c.State)
	if err != nil {
		return err
	}
	defer release()
	// What runs behind requests ends with the node, not with the signal.
	n, err := wire(context.WithoutCancel(ctx), c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	l, err := listen(ctx, c.Listen)
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Serving", "socket", c.Listen, "version", version)
	notify("READY=1")
	if err := n.server.Serve(ctx, l); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	notify("STOPPING=1")
	if c.Owned {
		return n.takeAway(context.WithoutCancel(ctx))
	}
	return nil
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

// listen makes the socket, mode 0660, in the place of what a killed daemon left: the
// lock says that nobody serves there.
func listen(ctx context.Context, path string) (net.Listener, error) {
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
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("set mode of socket: %w", err), l.Close())
	}
	return l, nil
}
