// Package cli holds the commands of cri-runtime that talk to a running daemon. They
// are clients like any other: all they do goes through the CRI socket, and what CRI has
// no call for through the admin socket.
//
// `run` starts one pod from a Kubernetes manifest. It is no kubelet: it refuses, by
// name, every field that it would have to watch over or ask a cluster about (probes,
// restarts, secrets), and never starts a container twice.
//
// Each goroutine ends with the command that started it. On disk, `run` leaves the
// pod's logs and emptyDir volumes below its --data directory, for as long as the pod
// exists: a pod that it removes takes them along.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// replyLimit is what the kubelet takes, too.
const replyLimit = 16 << 20

// Commands returns the client commands.
func Commands() []*cobra.Command {
	return []*cobra.Command{runCommand(), pullCommand(), pullsCommand(), imageCommand(), gcCommand(), traceCommand()}
}

// defaultSocket is where the daemon listens when nobody says otherwise.
const defaultSocket = "/run/cri-runtime/cri-runtime.sock"

// client is a connection to a CRI server.
type client struct {
	conn    *grpc.ClientConn
	runtime rt.RuntimeServiceClient
	images  rt.ImageServiceClient
}

// connect opens the socket and sees that somebody answers.
func connect(ctx context.Context, socket string) (*client, error) {
	socket = strings.TrimPrefix(socket, "unix://")
	if _, err := os.Stat(socket); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("connect: no socket %s: is the daemon running (`cri-runtime serve`)?", socket)
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(replyLimit)))
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	c := &client{conn: conn, runtime: rt.NewRuntimeServiceClient(conn), images: rt.NewImageServiceClient(conn)}
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := c.runtime.Version(limit, &rt.VersionRequest{}); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", socket, plain(err)), conn.Close())
	}
	return c, nil
}

func runCommand() *cobra.Command {
	o := options{socket: defaultSocket, data: "/var/lib/cri-runtime-run", timeout: 5 * time.Minute, logsFor: 2 * time.Second, http: true}
	cmd := &cobra.Command{
		Use:   "run FILE",
		Short: "Run a pod from a Kubernetes Pod manifest",
		Long: `Run a pod from a Kubernetes Pod manifest ("-": standard input): pull its images, start its containers in their
order, print their log, and fetch the page of a container port that is called "http".

Init containers run to completion one after the other; those with restartPolicy Always start before the rest and stay.
Nothing is restarted. A field that this cannot honour (probes, secrets, ...) is an error that names it.

Without --follow or --rm the pod goes on running when the command ends. When the start fails, what was made is removed.`,
		Example: "  cri-runtime run examples/web.yaml\n  cri-runtime run --rm --connect /run/cri.sock pod.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := readManifest(args[0])
			if err != nil {
				return err
			}
			if o.data, err = filepath.Abs(o.data); err != nil {
				return fmt.Errorf("find --data: %w", err)
			}
			c, err := connect(cmd.Context(), o.socket)
			if err != nil {
				return err
			}
			defer c.conn.Close() //nolint:errcheck // nothing is left to be said on it
			return run(cmd.Context(), c, p, o, newScreen(cmd.OutOrStdout()))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.socket, "connect", o.socket, "unix socket of the CRI server")
	f.StringVar(&o.data, "data", o.data, "directory for logs and emptyDir volumes")
	f.DurationVar(&o.timeout, "timeout", o.timeout, "how long it may take until everything is started, pulls included")
	f.DurationVar(&o.logsFor, "logs-for", o.logsFor, "how long to show the log at the end, without --follow and --rm")
	f.BoolVarP(&o.follow, "follow", "f", false, "show the log until Ctrl-C or until all containers have ended")
	f.BoolVar(&o.remove, "rm", false, "like --follow, and remove the pod afterwards")
	f.BoolVar(&o.http, "http", o.http, `fetch and show the page of the container port called "http"`)
	return cmd
}
