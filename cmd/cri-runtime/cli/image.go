package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cri-runtime/cri-runtime/cri/admin"
	"github.com/cri-runtime/cri-runtime/image"
)

func imageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "List and verify images, load and save archives of them", Args: cobra.NoArgs}
	cmd.AddCommand(lsCommand(), loadCommand(), saveCommand(), verifyCommand())
	return cmd
}

func lsCommand() *cobra.Command {
	socket, output := defaultSocket, ""
	cmd := &cobra.Command{
		Use: "ls", Short: "List images", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			c, err := connect(cmd.Context(), socket)
			if err != nil {
				return err
			}
			defer c.conn.Close() //nolint:errcheck // nothing is left to be said on it
			return c.listImages(cmd.Context(), cmd.OutOrStdout(), output)
		},
	}
	cmd.Flags().StringVar(&socket, "connect", socket, "unix socket of the CRI server")
	outputFlag(cmd.Flags(), &output)
	return cmd
}

func loadCommand() *cobra.Command {
	var socket, output string
	cmd := &cobra.Command{
		Use:   "load FILE",
		Short: "Load images from an archive",
		Long: `Load images from a tar archive ("-": standard input): an OCI layout, or what ` + "`docker save`" + ` writes, compressed or not.

Nothing is unpacked beside the store. If anything of the archive is damaged, none of its images is loaded.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			in, total, err := openArchive(cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			c := admin.NewClient(socket)
			defer c.Close()
			return load(cmd.Context(), c, in, loading{total: total, output: output, show: newScreen(cmd.OutOrStdout()), start: time.Now()})
		},
	}
	adminFlag(cmd.Flags(), &socket)
	outputFlag(cmd.Flags(), &output)
	return cmd
}

// openArchive gives the size too, 0 when nobody knows.
func openArchive(stdin io.Reader, name string) (io.ReadCloser, int64, error) {
	if name == "-" {
		return io.NopCloser(stdin), 0, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, fmt.Errorf("load: %w", err)
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return f, 0, nil // a pipe
	}
	return f, st.Size(), nil
}

// loading shows how far a load is.
type loading struct {
	total  int64
	output string
	show   *screen
	start  time.Time
}

func (l loading) update(p image.LoadProgress) {
	if l.output == outputJSON {
		printJSON(l.show.out, admin.LoadLine{Progress: &p})
		return
	}
	width, _ := l.show.size()
	text := fmt.Sprintf("loading %s, %d layers, %s", size(p.Read), p.Layers, took(l.start))
	if l.total > 0 {
		room := min(width-len(text)-12, widestBar)
		text = fmt.Sprintf("%s %3d%% [%s]", text, percent(p.Read, l.total), bar(p.Read, l.total, room))
	}
	l.show.show([]string{fit(text, width)})
}

func load(ctx context.Context, c *admin.Client, in io.Reader, l loading) error {
	images, err := c.Load(ctx, in, l.update)
	l.show.show(nil)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	if l.output == outputJSON {
		printJSON(l.show.out, admin.LoadLine{Images: images})
		return nil
	}
	for _, i := range images {
		names := strings.Join(i.Names, ", ")
		if names == "" {
			names = "(no name)"
		}
		l.show.say("%s %s", i.ID, printable(names))
	}
	l.show.say("%d images loaded in %s", len(images), took(l.start))
	return nil
}

func saveCommand() *cobra.Command {
	var socket, file, format string
	cmd := &cobra.Command{
		Use:   "save IMAGE...",
		Short: "Save images as an archive",
		Long: `Save images as a tar archive for ` + "`image load`" + ` and for other tools that know the format.

Layers are stored uncompressed, so the manifest is a new one, and its digest another than the registry's; the image's
id stays. A file appears only when the archive is complete.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := admin.NewClient(socket)
			defer c.Close()
			save := func(w io.Writer) (int64, error) {
				return c.Save(cmd.Context(), w, args, image.ArchiveFormat(format))
			}
			if file == "-" {
				if newScreen(cmd.OutOrStdout()).terminal {
					return errors.New("save: an archive is nothing for a terminal: name a file with --file")
				}
				_, err := save(cmd.OutOrStdout())
				return err
			}
			start := time.Now()
			n, err := saveFile(file, save)
			if err != nil {
				return fmt.Errorf("save: %w", err)
			}
			newScreen(cmd.ErrOrStderr()).say("%s: %s in %s", file, size(n), took(start))
			return nil
		},
	}
	f := cmd.Flags()
	adminFlag(f, &socket)
	f.StringVarP(&file, "file", "o", "", `file to write; "-" is standard output`)
	f.StringVar(&format, "format", string(image.FormatOCI), `"oci", "oci-gzip" (layers compressed) or "docker"`)
	if err := cmd.MarkFlagRequired("file"); err != nil {
		panic(err) // the flag is two lines above
	}
	return cmd
}

// saveFile writes beside the file and renames, so that nobody takes a part for the whole.
func saveFile(name string, save func(io.Writer) (int64, error)) (n int64, err error) {
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0) // a pipe or a device
		if err != nil {
			return 0, err
		}
		n, err := save(f)
		return n, errors.Join(err, f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".")
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	n, err = save(f)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return n, err
	}
	return n, os.Rename(f.Name(), name)
}

func verifyCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "verify IMAGE...",
		Short: "Compare what is stored of images with their digests",
		Long: `Read all that is stored of images and compare it with their digests.

A damaged image is no longer there afterwards: the next pull fetches what is damaged, and the image has the same id.
Containers of it go on.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := admin.NewClient(socket)
			defer c.Close()
			var errs []error
			for _, ref := range args {
				start := time.Now()
				if err := c.Verify(cmd.Context(), ref); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", ref, err))
					continue
				}
				newScreen(cmd.OutOrStdout()).say("%s is as it was pulled (%s)", ref, took(start))
			}
			return errors.Join(errs...)
		},
	}
	adminFlag(cmd.Flags(), &socket)
	return cmd
}
