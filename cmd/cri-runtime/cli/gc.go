package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cri-runtime/cri-runtime/cri/admin"
)

func gcCommand() *cobra.Command {
	var socket, output string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Delete what is in the image store and nobody owns",
		Long: `Delete what is in the image store and nobody owns: files and directories of no image, no container and no pull.

There is little to find: starting the daemon and removing images clean up by themselves. It may be what is just being
deleted, what somebody else put there, or the whole layers of a damaged image, which wait for its next pull. Images
that no container uses are the kubelet's to collect; this leaves them alone.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			c := admin.NewClient(socket)
			defer c.Close()
			found, err := c.Garbage(cmd.Context(), dryRun)
			if err != nil {
				return fmt.Errorf("gc: %w", err)
			}
			if output == outputJSON {
				printJSON(cmd.OutOrStdout(), found)
				return nil
			}
			showGarbage(cmd.OutOrStdout(), found)
			return nil
		},
	}
	f := cmd.Flags()
	adminFlag(f, &socket)
	f.BoolVar(&dryRun, "dry-run", false, "only list it")
	outputFlag(f, &output)
	return cmd
}

func showGarbage(out io.Writer, g admin.Garbage) {
	if len(g.Orphans) == 0 {
		fmt.Fprintln(out, "nothing is without an owner")
		return
	}
	rows := [][]string{{"PATH", "SIZE", "FILES"}}
	for _, o := range g.Orphans {
		rows = append(rows, []string{printable(o.Path), size(int64(o.Bytes)), fmt.Sprint(o.Inodes)}) // #nosec G115 -- a size on disk
	}
	table(out, rows)
	did := "deleted"
	if g.DryRun {
		did = "to delete"
	}
	fmt.Fprintf(out, "%d %s, %s\n", len(g.Orphans), did, size(int64(g.Bytes))) // #nosec G115 -- a size on disk
}
