package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cri-runtime/cri-runtime/cri/admin"
	"github.com/cri-runtime/cri-runtime/image"
)

// defaultAdmin is the admin socket of a daemon with the default state directory.
const defaultAdmin = "/run/cri-runtime/admin.sock"

func outputFlag(f *pflag.FlagSet, output *string) {
	*output = outputText
	f.StringVarP(output, "output", "o", *output, `"text" or "json": one document, or one a line`)
}

func adminFlag(f *pflag.FlagSet, socket *string) {
	f.StringVar(socket, "admin", defaultAdmin, "admin socket of the daemon: admin.sock in its state directory")
}

func checkOutput(output string) error {
	if !slices.Contains([]string{outputText, outputJSON}, output) {
		return fmt.Errorf("--output: %q is neither text nor json", output)
	}
	return nil
}

func pullCommand() *cobra.Command {
	socket, timeout, output, creds := defaultSocket, time.Duration(0), "", credentials{}
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image",
		Long: `Pull an image, and show how far it is: bars on a terminal, lines otherwise.

The last line is the image's id. With --output json each line is a document: the state of the pull whenever it has
moved, as of a pull in flight in the answer of ` + "`pulls`" + `, and at the end image, bytes and seconds, or an error.

Credentials come from a file or from standard input, never from the command line, which others on the node can read.
They serve this pull and are kept by nobody.`,
		Example: "  cri-runtime pull docker.io/library/busybox:1.37\n  cri-runtime pull --auth ~/.docker/config.json registry.example/app:1\n" +
			"  pass show registry | cri-runtime pull --creds - registry.example/app:1",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			auth, err := creds.read(cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			c, err := connect(cmd.Context(), socket)
			if err != nil {
				return err
			}
			defer c.conn.Close() //nolint:errcheck // nothing is left to be said on it
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, timeout, errTimeout)
				defer cancel()
			}
			show := newScreen(cmd.OutOrStdout())
			image, err := c.pull(ctx, args[0], pullOptions{auth: auth, output: output}, show)
			if err != nil && ctx.Err() != nil {
				return why(ctx, err)
			}
			if err == nil && output == outputText {
				show.say("%s", image.Id)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&socket, "connect", socket, "unix socket of the CRI server")
	f.DurationVar(&timeout, "timeout", timeout, "how long the pull may take; 0: as long as it wants")
	f.StringVar(&creds.file, "creds", "", `file with USER:PASSWORD; "-" is standard input`)
	f.StringVar(&creds.auth, "auth", "", `file as Docker's config.json, of which the registry's entry is used; "-" is standard input`)
	cmd.MarkFlagsMutuallyExclusive("creds", "auth")
	outputFlag(f, &output)
	return cmd
}

func pullsCommand() *cobra.Command {
	var socket, output string
	var watch bool
	cmd := &cobra.Command{
		Use:   "pulls",
		Short: "Show the pulls in flight, the kubelet's too",
		Long: `Show the pulls in flight, whoever asked for them, and the last ones that ended: at most ten, of a quarter of an hour.

With --watch this goes on until Ctrl-C: bars on a terminal, lines otherwise, and JSON lines with --output json.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			c := admin.NewClient(socket)
			defer c.Close()
			show := newScreen(cmd.OutOrStdout())
			if watch {
				return watchPulls(cmd.Context(), c, show, output)
			}
			pulls, err := c.Pulls(cmd.Context())
			if err != nil {
				return err
			}
			if output == outputJSON {
				printJSON(cmd.OutOrStdout(), admin.PullList{Pulls: pulls})
				return nil
			}
			listPulls(show, pulls)
			return nil
		},
	}
	f := cmd.Flags()
	adminFlag(f, &socket)
	f.BoolVarP(&watch, "watch", "w", false, "go on until Ctrl-C")
	outputFlag(f, &output)
	return cmd
}

func listPulls(show *screen, pulls []image.PullStatus) {
	width, _ := show.size()
	for _, p := range pulls {
		if p.Ended != nil {
			show.say("%s", headline(p, max(width, 400))) // an error is worth several lines
		}
	}
	flying := inFlight(pulls)
	for _, p := range flying {
		for _, line := range pullLines(p, width, len(p.Layers)+2) {
			show.say("%s", line)
		}
	}
	if len(flying) == 0 {
		show.say("no pull is in flight")
	}
}

func inFlight(pulls []image.PullStatus) []image.PullStatus {
	return slices.DeleteFunc(slices.Clone(pulls), func(p image.PullStatus) bool { return p.Ended != nil })
}

// watchPulls shows what is in flight, and says how each ended, until ctx ends.
func watchPulls(ctx context.Context, c *admin.Client, show *screen, output string) error {
	view := newView(show, output)
	defer view.clear()
	var before map[uint64]bool // of the pulls known: whether it has ended
	err := c.Watch(ctx, func(pulls []image.PullStatus) error {
		if output == outputJSON {
			view.update(pulls)
			return nil
		}
		view.update(inFlight(pulls))
		now := map[uint64]bool{}
		for _, p := range pulls {
			now[p.Number] = p.Ended != nil
			if p.Ended != nil && before != nil && !before[p.Number] {
				show.say("%s", headline(p, 400))
			}
		}
		before = now
		return nil
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}
