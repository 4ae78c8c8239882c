// Command pull measures image pulls: ours beside containerd's and CRI-O's, in one run,
// on one machine, from one registry on loopback. `make bench-pull` builds what it needs
// and starts it; docs/bench-pull.md says how to read what comes out.
//
// Each sample is one pull by a runtime that was just started, on an ext4 that was just
// made in a loop device: no pull pays for another's deletions, and what the device was
// written is counted exactly. It refuses to run without root, and to write anywhere but
// into its work directory, the cache and the output directory.
//
// It starts itself again in network, mount, process and IPC namespaces, so that nothing
// outlives it; the outer half waits for the inner one, and removes the work directory
// and the cgroups. Each sampler, registry and runtime is waited for where it was started.
// What stays on disk: the images in the cache, and results.json, results.md and chart.svg.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// options are what can be chosen. They are handed to the inner half as they are.
type options struct {
	Bin    string // directory of cri-runtime and cri-monitor
	Only   string // comma list of targets; empty: all that are there
	Images string // comma list of images; empty: all
	Runs   int
	Store  string // erofs, directory or both
	Disk   string // where the work directory is made: the disk that is measured
	Out    string // directory of the results
	Igzip  bool   // leave containerd the igzip or pigz that it finds
	Perf   string // directory for one perf.data per image of ours
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-pull:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var s setting
	if played, err := stage.Play(ctx, &s, func(ctx context.Context) error { return inside(ctx, s) }); played {
		return err
	}
	var o options
	flag.StringVar(&o.Bin, "bin", "bin", "directory of cri-runtime and cri-monitor")
	flag.StringVar(&o.Only, "only", "", "comma list of: "+strings.Join(targetNames, ", ")+`; "ours" is all of ours; empty is all that can be had`)
	flag.StringVar(&o.Images, "images", "", "comma list of images, such as debian-app:a,node:gz; empty is all")
	flag.IntVar(&o.Runs, "runs", 5, "pulls of each image by each runtime")
	flag.StringVar(&o.Store, "store", "both", "our layer stores: erofs, directory or both")
	flag.StringVar(&o.Disk, "disk", "/var/tmp", "directory on the disk to measure; 4 GiB are used")
	flag.StringVar(&o.Out, "out", "out/bench-pull", "directory of results.json, results.md and chart.svg")
	flag.BoolVar(&o.Igzip, "igzip", false, "add containerd with the igzip of this machine, which it uses by itself where it is installed")
	flag.StringVar(&o.Perf, "perf", "", "record each pull of ours with perf, into this directory; such a run is no measurement")
	check := flag.Bool("check", false, "fail when an aim is not met")
	from := flag.String("from", "", "measure nothing: report the results.json of an earlier run")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", flag.Arg(0))
	}
	if err := o.valid(); err != nil {
		return err
	}
	if *from == "" {
		if err := outside(ctx, o); err != nil {
			return err
		}
		*from = o.resultsFile()
	}
	r, err := readResult(*from)
	if err != nil {
		return err
	}
	if err := r.publish(o.Out); err != nil {
		return err
	}
	fmt.Print(r.markdown())
	if missed := r.missed(); *check && missed > 0 {
		return fmt.Errorf("%d aims are not met", missed)
	}
	return nil
}

func (o options) valid() error {
	var errs []error
	if o.Runs < 1 {
		errs = append(errs, fmt.Errorf("-runs: %d is less than 1", o.Runs))
	}
	if o.Store != "erofs" && o.Store != "directory" && o.Store != "both" {
		errs = append(errs, fmt.Errorf("-store: %q is none of erofs, directory, both", o.Store))
	}
	for name := range strings.SplitSeq(o.Only, ",") {
		if name != "" && name != "ours" && !isTarget(name) {
			errs = append(errs, fmt.Errorf("-only: %q is none of ours, %s", name, strings.Join(targetNames, ", ")))
		}
	}
	return errors.Join(errs...)
}
