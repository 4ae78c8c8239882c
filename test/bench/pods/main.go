// Command pods measures how runtimes start, hold and end pods: ours beside containerd and
// CRI-O, in one run, on one machine, with one client. `make bench` builds what it needs and
// starts it; docs/bench.md says how to read what comes out.
//
// Rounds of phases are taken, and in each phase the runtimes take turns: each is started
// anew, on an empty directory, measured and ended. All of that happens in network, mount,
// process and IPC namespaces and cgroups of its own, so that nothing outlives it, also when
// it is interrupted. It refuses to run without root, and to write anywhere but into its work
// directory, the cache and the output directory.
//
// What stays on disk: the images in the cache, and results.json, results.md and charts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/bench/stage"
	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
)

// options are what can be chosen. They are handed to the inner half as they are.
type options struct {
	Bin    string   // directory of cri-runtime and cri-monitor
	Only   string   // comma list of targets; empty: all that are there
	Phases string   // comma list of phases; empty: all
	Rounds int      // of each phase
	Short  bool     // with few pods
	Disk   string   // where the work directory is made
	Out    string   // directory of the results
	OCI    string   // directory of crun and conmon
	Peers  []string // NAME=SOCKET of runtimes that somebody else has started
}

// setting is what the outer half prepares for the inner one.
type setting struct {
	Options options
	Work    string // directory on a disk
	Logs    string // directory of the pods' logs, on a tmpfs that everybody sees
	Tools   string // directory of the peers' programs
	Images  string // directory of the images
	Cgroup  string // name of the cgroups that all others go below
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

func run(ctx context.Context) error {
	var s setting
	if played, err := stage.Play(ctx, &s, func(ctx context.Context) error { return inside(ctx, s) }); played {
		return err
	}
	var o options
	flag.StringVar(&o.Bin, "bin", "bin", "directory of cri-runtime and cri-monitor")
	flag.StringVar(&o.Only, "only", "", "comma list of: "+strings.Join(targetNames, ", ")+`, names of -peer; "ours" is both of ours; empty is all that can be had`)
	flag.StringVar(&o.Phases, "phases", "", "comma list of: "+strings.Join(phaseNames(), ", ")+"; empty is all")
	flag.IntVar(&o.Rounds, "rounds", 3, "how often each phase is repeated; the long ones less often")
	flag.BoolVar(&o.Short, "short", false, "few pods: shows whether it works, and is no measurement")
	flag.StringVar(&o.Disk, "disk", "/var/tmp", "directory on the disk of the runtimes' persistent directories")
	flag.StringVar(&o.Out, "out", "out/bench", "directory of results.json, results.md and the charts")
	flag.StringVar(&o.OCI, "oci", "", "directory of crun and conmon; empty: what hack/testtools.sh oci has made, else those in PATH")
	flag.Func("peer", "NAME=SOCKET of a runtime that is installed here; what needs a restart or its cgroup is not measured (repeatable)", func(v string) error {
		o.Peers = append(o.Peers, v)
		return nil
	})
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
		*from = filepath.Join(o.Out, resultsFile)
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
	if o.Rounds < 1 {
		errs = append(errs, fmt.Errorf("-rounds: %d is less than 1", o.Rounds))
	}
	names := slices.Clone(targetNames)
	for _, p := range o.Peers {
		name, socket, ok := strings.Cut(p, "=")
		if !ok || name == "" || !filepath.IsAbs(socket) {
			errs = append(errs, fmt.Errorf("-peer: %q is not NAME=/PATH/OF/SOCKET", p))
		} else if slices.Contains(names, name) {
			errs = append(errs, fmt.Errorf("-peer: the name %q is taken", name))
		}
		names = append(names, name)
	}
	for name := range strings.SplitSeq(o.Only, ",") {
		if name != "" && !slices.Contains(names, name) {
			errs = append(errs, fmt.Errorf("-only: %q is none of %s", name, strings.Join(names, ", ")))
		}
	}
	for name := range strings.SplitSeq(o.Phases, ",") {
		if name != "" && !slices.Contains(phaseNames(), name) {
			errs = append(errs, fmt.Errorf("-phases: %q is none of %s", name, strings.Join(phaseNames(), ", ")))
		}
	}
	return errors.Join(errs...)
}

// outside prepares what needs the machine's own namespaces, and runs the inner half.
func outside(ctx context.Context, o options) (err error) {
	cache, err := catalogue.CacheDir()
	if err != nil {
		return err
	}
	set, err := images.Small(ctx, cache)
	if err != nil {
		return err
	}
	for _, dir := range []*string{&o.Bin, &o.Out} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return fmt.Errorf("find directory: %w", err)
		}
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	if len(o.Peers) > 0 {
		registry, err := stage.StartRegistry(ctx, stage.Cgroup{}, set.Dir, os.DevNull)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, registry.Stop()) }()
	}
	remove, err := emptyDir(cniCache)
	if err != nil {
		return err
	}
	defer remove()
	return stage.Outside(ctx, o.Disk, func(w stage.Work) any {
		return setting{Options: o, Work: w.Dir, Logs: w.Memory, Tools: filepath.Join(cache, "bin"), Images: set.Dir, Cgroup: w.Cgroup}
	})
}

// cniCache is where libcni keeps results; no runtime lets its user choose another place.
const cniCache = "/var/lib/cni"

// emptyDir makes sure that a directory is there, for the inner half to mount something on,
// and removes what it made.
func emptyDir(dir string) (remove func(), err error) {
	err = os.Mkdir(dir, 0o755)
	if errors.Is(err, os.ErrExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("make mount point: %w", err)
	}
	return func() { _ = os.Remove(dir) }, nil // never with somebody's files in it
}
