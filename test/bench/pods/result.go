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

	"github.com/cri-runtime/cri-runtime/test/bench/report"
	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

const resultsFile = "results.json"

// results is one run of the benchmark, all that is needed to judge it.
type results struct {
	Began    time.Time         `json:"began"`
	Took     float64           `json:"took_s"`
	Machine  map[string]string `json:"machine"`
	Options  options           `json:"options"`
	Targets  []runtime         `json:"targets"`
	Missing  map[string]string `json:"missing,omitempty"` // targets that could not be measured, and why
	Samples  []sample          `json:"samples"`
	Failures []string          `json:"failures,omitempty"`
}

// measure takes all samples: rounds of phases, in each phase one runtime after the other,
// each time beginning with another one.
func (b *bench) measure(ctx context.Context) error {
	found, missing, err := b.targets(ctx)
	if err != nil {
		return err
	}
	r := &results{Began: time.Now().UTC(), Options: b.Options, Targets: found, Missing: missing, Machine: stage.Machine()}
	r.Machine["file systems"] = "persistent directories on the disk of " + filepath.Dir(b.Work) + ", state and logs on tmpfs"
	for name, why := range missing {
		say("%s is not measured: %s", name, why)
	}
	turn := 0
	for round := range b.Options.Rounds {
		for _, p := range b.Options.chosen() {
			if p.rounds > 0 && round >= p.rounds {
				continue
			}
			turn++
			for i := range found {
				t := &found[(i+turn)%len(found)]
				if !p.applies(*t, found) {
					continue
				}
				s, err := b.measureOne(ctx, p, t)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				s.Round = round
				r.add(s, err)
			}
			// After each phase: a run that is broken off has something to show.
			r.Took = time.Since(r.Began).Seconds()
			if err := report.Save(filepath.Join(b.Options.Out, resultsFile), r); err != nil {
				return err
			}
		}
	}
	return nil
}

// add keeps a sample, or why there is none.
func (r *results) add(s sample, err error) {
	if err != nil {
		const enough = 1500 // of a message that may be one for each pod
		text := fmt.Sprintf("%s, %s, round %d: %v", s.Phase, s.Target, s.Round+1, err)
		if len(text) > enough {
			text = text[:enough] + " ..."
		}
		say("%s", text)
		r.Failures = append(r.Failures, text)
		return
	}
	r.Samples = append(r.Samples, s)
	var text strings.Builder
	for _, f := range figures() {
		if v, ok := f.value(s); ok && f.said {
			fmt.Fprintf(&text, "; %s %s", f.name, strings.TrimSpace(report.Number(v)+" "+f.unit))
		}
	}
	say("%5.0f s  round %d %-15s %-15s %4.0f s%s", time.Since(r.Began).Seconds(), s.Round+1, s.Phase, s.Target, s.Length, text.String())
	if why := stage.Disturbed(s.Length, s.MemoryStall, s.Stolen); why != "" {
		say("  disturbed: %s", why)
	}
}

func readResult(file string) (*results, error) {
	r := &results{}
	if err := report.Open(file, r); err != nil {
		return nil, err
	}
	if len(r.Samples) == 0 {
		return nil, fmt.Errorf("read results of %s: no samples; %q", file, r.Failures)
	}
	return r, nil
}

// publish writes the tables and the charts, and removes charts of an earlier run.
func (r *results) publish(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	old, _ := filepath.Glob(filepath.Join(dir, "*.svg"))
	var errs []error
	for _, file := range old {
		errs = append(errs, os.Remove(file))
	}
	for name, chart := range r.charts() {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name+".svg"), []byte(chart), 0o644))
	}
	return errors.Join(append(errs, os.WriteFile(filepath.Join(dir, "results.md"), []byte(r.markdown()), 0o644))...)
}

// of are the samples of one phase of one runtime.
func (r *results) of(phase, target string) (out []sample) {
	for _, s := range r.Samples {
		if s.Phase == phase && s.Target == target {
			out = append(out, s)
		}
	}
	return out
}

// spread takes a figure of all rounds of a runtime; ok is false without any.
func (r *results) spread(f figure, target string) (report.Spread, bool) {
	var v []float64
	for _, s := range r.Samples {
		if s.Target != target {
			continue
		}
		if one, ok := f.value(s); ok {
			v = append(v, one)
		}
	}
	return report.SpreadOf(v)
}

// best is the best peer's median of a figure, and whose it is; "" without any peer.
func (r *results) best(f figure) (value float64, name string) {
	for _, t := range r.Targets {
		v, ok := r.spread(f, t.Name)
		if isOurs(t.Name) || !ok {
			continue
		}
		if better := v.Median < value != f.more; name == "" || better && v.Median != value {
			value, name = v.Median, t.Name
		}
	}
	return value, name
}

// phases that have samples, in their order.
func (r *results) measured() (out []phase) {
	for _, p := range phases() {
		if slices.ContainsFunc(r.Samples, func(s sample) bool { return s.Phase == p.name }) {
			out = append(out, p)
		}
	}
	return out
}
