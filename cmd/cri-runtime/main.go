// Command cri-runtime runs Kubernetes pods: it serves the kubelet's Container Runtime
// Interface, and is the command line of the people who operate the node.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/cmd/cri-runtime/cli"
)

// version is set by the linker.
var version = "0.0.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cri-runtime:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "cri-runtime",
		Short:         "A container runtime for Kubernetes nodes",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(serveCommand(), debugCommand())
	root.AddCommand(cli.Commands()...)
	return root
}
