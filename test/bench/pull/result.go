package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/bench/peers"
	"github.com/cri-runtime/cri-runtime/test/bench/report"
	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// result is one run of the benchmark, all that is needed to judge it.
type result struct {
	Began    time.Time         `json:"began"`
	Took     float64           `json:"took"`
	Machine  map[string]string `json:"machine"`
	Options  options           `json:"options"`
	Targets  []peers.Target    `json:"targets"`
	Missing  map[string]string `json:"missing,omitempty"` // targets that could not be measured, and why
	Images   *images.Set       `json:"images"`
	Samples  []sample          `json:"samples"`
	Failures []string          `json:"failures,omitempty"`
}

// measure takes all samples: for each image, round robin over the runtimes, each round
// starting with another one.
func (b *bench) measure(ctx context.Context) (*result, error) {
	found, missing, err := targets(ctx, b.setting)
	if err != nil {
		return nil, err
	}
	chosen, err := b.chosen(b.set)
	if err != nil {
		return nil, err
	}
	r := &result{Began: time.Now().UTC(), Options: b.Options, Targets: found, Missing: missing, Images: b.set, Machine: machine(b.Work)}
	for name, why := range missing {
		say("%s is not measured: %s", name, why)
	}
	for _, image := range chosen {
		for run := range b.Options.Runs {
			for i := range found {
				t := found[(i+run)%len(found)]
				samples, err := b.measureOne(ctx, t, image)
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				if err != nil {
					say("%v", err)
					r.Failures = append(r.Failures, fmt.Sprintf("%s, %s, run %d: %v", t.Name, image.Name, run, err))
					continue
				}
				for _, s := range samples {
					s.Run = run
					r.Samples = append(r.Samples, s)
					s.say()
				}
			}
		}
		// After each image: a run that is broken off has something to show.
		r.Took = time.Since(r.Began).Seconds()
		if err := report.Save(b.Options.resultsFile(), r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (s sample) say() {
	say("%-16s %-16s %d: %6.2f s (on disk %6.2f), CPU %5.2f s, wrote %5.0f MB, used %5.0f MB, peak %4.0f MB, remove %6.1f ms (freed %6.1f), registry %.2f, others %.2f CPU s",
		s.Image, s.Target, s.Run, s.Wall, s.Durable, s.CPU, mb(s.DeviceWrote), mb(s.DiskUsed), mb(s.Peak), s.Remove*1e3, s.Freed*1e3, s.RegistryCPU, s.OtherCPU)
	if why := s.disturbed(); why != "" {
		say("  disturbed: %s", why)
	}
}

func mb(n int64) float64 { return float64(n) / 1e6 }

// machine says where it was measured.
func machine(work string) map[string]string {
	m := stage.Machine()
	m["file system"] = "ext4 in a loop device (direct I/O) on a file in " + filepath.Dir(work) + ", made anew for each pull"
	return m
}

func readResult(file string) (*result, error) {
	r := &result{}
	if err := report.Open(file, r); err != nil {
		return nil, err
	}
	if r.Images == nil || len(r.Samples) == 0 {
		return nil, fmt.Errorf("read results of %s: no samples", file)
	}
	return r, nil
}

// publish writes the tables and the chart.
func (r *result) publish(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "results.md"), []byte(r.markdown()), 0o644),
		os.WriteFile(filepath.Join(dir, "chart.svg"), []byte(r.chart()), 0o644),
	)
}

// of takes one figure of all samples of an image by a target; ok is false without any.
func (r *result) of(image, target string, figure func(sample) float64) (report.Spread, bool) {
	var v []float64
	for _, s := range r.Samples {
		if s.Image == image && s.Target == target {
			v = append(v, figure(s))
		}
	}
	return report.SpreadOf(v)
}

// measured lists the images that have samples, in the order of the set.
func (r *result) measured() (out []images.Image) {
	for _, i := range r.Images.Images {
		name := strings.TrimPrefix(i.Name, "bench/")
		if slices.ContainsFunc(r.Samples, func(s sample) bool { return s.Image == name }) {
			i.Name = name
			out = append(out, i)
		}
	}
	return out
}

// own is what an image adds to the one that it shares layers with; else all of it.
func (r *result) own(i images.Image) (compressed, unpacked int64) {
	for _, other := range r.Images.Images {
		if second := sharer(other.Name); second == "bench/"+i.Name {
			return i.Size() - other.Size(), i.Unpacked() - other.Unpacked()
		}
	}
	return i.Size(), i.Unpacked()
}
