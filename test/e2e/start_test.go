package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/lab"
)

// TestClientsWaitForTheStart: the socket is there before the node is complete, so that one
// who calls meanwhile gets the answer and is not refused. The monitor holds up the start
// until somebody has been connected.
func TestClientsWaitForTheStart(t *testing.T) {
	dir := t.TempDir()
	gate, slow := filepath.Join(dir, "gate"), filepath.Join(dir, "slow-monitor")
	script := fmt.Sprintf("#!/bin/sh\nuntil [ -e %s ]; do sleep 0.02; done\nexec %s \"$@\"\n", gate, filepath.Join(lab.Here(t).Bin, "cri-monitor"))
	if err := os.WriteFile(slow, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	d := newNode(t, "waiting", "--take-away", "--monitor", slow)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	answered := make(chan error, 1)
	go func() { // ends with ctx
		err := connected(ctx, d.Socket)
		// Also when nobody could: the daemon must come up for the end of the test.
		if werr := os.WriteFile(gate, nil, 0o600); err == nil {
			err = werr
		}
		if err == nil {
			err = callOnce(ctx, d.Socket)
		}
		answered <- err
	}()
	d.Start(t)
	t.Cleanup(func() { d.Stop(t) })
	if err := <-answered; err != nil {
		t.Errorf("a call during the start: %v", err)
	}
}

// connected returns once the socket takes a connection.
func connected(ctx context.Context, socket string) error {
	limit := time.Now().Add(5 * time.Second)
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(limit) {
			return fmt.Errorf("no connection while the monitor starts: %w", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// callOnce makes one call over one connection, with no second try.
func callOnce(ctx context.Context, socket string) error {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = rt.NewRuntimeServiceClient(conn).ListContainers(ctx, &rt.ListContainersRequest{})
	return err
}
