package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/bench/report"
	"github.com/cri-runtime/cri-runtime/test/bench/stage"
	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
)

// setting is what the outer half prepares for the inner one.
type setting struct {
	Options options
	Work    string // directory on the disk that is measured
	Tools   string // directory of the peers' programs
	Images  string // directory of the images
	Cgroup  string // name of the cgroups that all others go below
}

func (o options) resultsFile() string { return filepath.Join(o.Out, "results.json") }

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench-pull: "+format+"\n", args...) }

// outside prepares what needs a network, and runs the inner half.
func outside(ctx context.Context, o options) error {
	cache, err := catalogue.CacheDir()
	if err != nil {
		return err
	}
	set, err := images.Build(ctx, cache, say)
	if err != nil {
		return err
	}
	for _, dir := range []*string{&o.Bin, &o.Out, &o.Perf} {
		if *dir == "" {
			continue
		}
		if *dir, err = filepath.Abs(*dir); err != nil {
			return fmt.Errorf("find directory: %w", err)
		}
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	return stage.Outside(ctx, o.Disk, func(w stage.Work) any {
		return setting{Options: o, Images: set.Dir, Tools: filepath.Join(cache, "bin"), Work: w.Dir, Cgroup: w.Cgroup}
	})
}

// inside measures, in the new namespaces.
func inside(ctx context.Context, s setting) (err error) {
	set, err := images.Open(s.Images)
	if err != nil {
		return err
	}
	b := &bench{setting: s, set: set}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.open(ctx); err != nil {
		return err
	}
	result, err := b.measure(ctx)
	if err != nil {
		return err
	}
	return report.Save(s.Options.resultsFile(), result)
}

// chosen are the images to measure, in the order of the set. Those that need another
// one first, such as debian-app:b, are measured with that.
func (s setting) chosen(set *images.Set) ([]images.Image, error) {
	var out []images.Image
	var wanted []string
	if s.Options.Images != "" {
		wanted = strings.Split(s.Options.Images, ",")
	}
	for _, i := range set.Images {
		name := strings.TrimPrefix(i.Name, "bench/")
		at := slices.Index(wanted, name)
		if strings.HasPrefix(name, "warm:") || strings.HasPrefix(name, "debian-app:b") || wanted != nil && at < 0 {
			continue
		}
		if at >= 0 {
			wanted = slices.Delete(wanted, at, at+1)
		}
		out = append(out, i)
	}
	if len(wanted) > 0 {
		return nil, fmt.Errorf("-images: no image %q to choose", wanted)
	}
	return out, nil
}

// sharer is the image that shares all layers of another but one; "" for none.
func sharer(name string) string {
	if rest, ok := strings.CutPrefix(name, "bench/debian-app:a"); ok {
		return "bench/debian-app:b" + rest
	}
	return ""
}
