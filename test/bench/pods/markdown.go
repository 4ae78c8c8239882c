package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cri-runtime/cri-runtime/test/bench/load"
	"github.com/cri-runtime/cri-runtime/test/bench/report"
	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// markdown is the whole report.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Pods, %s\n\n", r.Began.Format("2006-01-02 15:04 UTC"))
	for _, key := range slices.Sorted(maps.Keys(r.Machine)) {
		fmt.Fprintf(&b, "- %s: %s\n", key, r.Machine[key])
	}
	fmt.Fprintf(&b, "- %d rounds; took %.0f s\n", r.Options.Rounds, r.Took)
	if r.Options.Short {
		b.WriteString("- **with few pods: this shows whether it works, and is no measurement**\n")
	}
	r.quiet(&b)
	b.WriteString("\nRuntimes, with what differs from their defaults:\n\n")
	for _, t := range r.Targets {
		fmt.Fprintf(&b, "- **%s**: %s; %s\n", t.Name, t.Version, strings.Join(t.Settings, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Missing)) {
		fmt.Fprintf(&b, "- %s was not measured: %s\n", name, r.Missing[name])
	}
	b.WriteString("\nThe aims were set against containerd 2.4.2 with runc 1.5.2, and CRI-O 1.36.3 with crun 1.27.1 and conmon 2.2.1.\n" +
		"\n## Aims\n\nMedians over the rounds; the ratio is to the best peer of this run.\n\n")
	b.WriteString(r.aimTable().Markdown())
	for _, p := range r.measured() {
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n%s", p.name, strings.ToUpper(p.what[:1])+p.what[1:], r.table(p).Markdown())
		r.programs(&b, p)
		r.remarks(&b, p)
	}
	b.WriteString("\n## start\n\nFrom the start of the daemon, on empty directories, to its first answer; sizes of the programs.\n\n")
	b.WriteString(r.table(phase{name: anyPhase}).Markdown() + "\n" + r.sizes().Markdown())
	if len(r.Failures) > 0 {
		b.WriteString("\n## Failures\n\n")
		for _, f := range r.Failures {
			fmt.Fprintf(&b, "- %s\n", strings.ReplaceAll(f, "\n", " "))
		}
	}
	return b.String()
}

// quiet says whether the machine was. Nothing is taken out of the figures either way.
func (r *results) quiet(b *strings.Builder) {
	busy, most := 0, 0.0
	for _, s := range r.Samples {
		if s.busy() {
			busy++
		}
		if s.Length > 0 {
			most = max(most, s.Others/s.Length)
		}
	}
	if busy == 0 {
		fmt.Fprintf(b, "- the machine was quiet: others than runtime, pods and client used at most %s of a processor in any sample\n", report.Number(most))
		return
	}
	fmt.Fprintf(b, "- **the machine was not quiet**: in %d of %d samples others than runtime, pods and client used more than a quarter of a processor, at most %s: "+
		"times and CPU are too high, ratios are less certain, memory and counts hold\n", busy, len(r.Samples), report.Number(most))
}

// table has a row for each figure of a phase, and a column for each runtime.
func (r *results) table(p phase) report.Table {
	t := report.Table{Head: []string{""}}
	var names []string
	for _, x := range r.Targets {
		if p.name == anyPhase || len(r.of(p.name, x.Name)) > 0 {
			names = append(names, x.Name)
		}
	}
	t.Head = append(append(t.Head, names...), "best peer", "ours / best peer")
	for _, f := range figures() {
		if f.phase != p.name {
			continue
		}
		row := []string{f.name}
		if f.unit != "" {
			row[0] += ", " + f.unit
		}
		any := false
		for _, name := range names {
			cell := r.cell(f, name)
			row, any = append(row, cell), any || cell != ""
		}
		best, peer := r.best(f)
		ratio := ""
		if v, ok := r.spread(f, names[0]); ok && isOurs(names[0]) && peer != "" && best != 0 {
			ratio = report.Number(v.Median / best)
		}
		if any {
			t.Rows = append(t.Rows, append(row, peer, ratio))
		}
	}
	return t
}

// cell is "p50 / p95 / p99" of steps, where the median is that of the rounds' medians and
// the others are of all samples together; else "median (lowest to highest)" of the rounds.
func (r *results) cell(f figure, target string) string {
	v, ok := r.spread(f, target)
	if !ok {
		return ""
	}
	var all load.Samples
	for _, s := range r.of(f.phase, target) {
		switch {
		case s.Latency != nil:
			all = append(all, s.Latency.Steps[f.name]...)
		case s.Density != nil:
			all = append(all, s.Density.Poll[f.name]...)
		}
	}
	switch {
	case len(all) > 0:
		return fmt.Sprintf("%s / %s / %s", report.Number(v.Median), report.Number(all.At(0.95)), report.Number(all.At(0.99)))
	case v.Low == v.High:
		return report.Number(v.Median)
	}
	return fmt.Sprintf("%s (%s to %s)", report.Number(v.Median), report.Number(v.Low), report.Number(v.High))
}

// programs lists what a pod's life executes, and what stays with many pods.
func (r *results) programs(b *strings.Builder, p phase) {
	for _, t := range r.Targets {
		samples := r.of(p.name, t.Name)
		if len(samples) == 0 {
			continue
		}
		s := samples[len(samples)-1]
		var parts []string
		if c := s.Counts; c != nil {
			for _, m := range []map[string]int{c.Programs, c.Syncs} {
				for _, name := range slices.Sorted(maps.Keys(m)) {
					parts = append(parts, fmt.Sprintf("%s %s", name, report.Number(float64(m[name])/float64(c.Pods))))
				}
			}
		}
		if d := s.Density; d != nil {
			for _, name := range slices.Sorted(maps.Keys(d.After)) {
				if name != load.Total {
					m := d.After[name]
					parts = append(parts, fmt.Sprintf("%s %d with PSS %s MiB", name, m.Processes, report.Number(mib(m.PSS))))
				}
			}
		}
		if len(parts) > 0 {
			fmt.Fprintf(b, "\n- %s: %s", t.Name, strings.Join(parts, ", "))
		}
	}
	b.WriteString("\n")
}

// remarks names the samples that were disturbed: none is taken out of the figures.
func (r *results) remarks(b *strings.Builder, p phase) {
	for _, s := range r.Samples {
		if s.Phase != p.name {
			continue
		}
		if why := stage.Disturbed(s.Length, s.MemoryStall, s.Stolen); why != "" {
			fmt.Fprintf(b, "\n- disturbed, but counted: %s, round %d: %s", s.Target, s.Round+1, why)
		}
	}
}

// sizes are those of the programs.
func (r *results) sizes() report.Table {
	t := report.Table{Head: []string{"", "programs, MB"}}
	for _, x := range r.Targets {
		var parts []string
		var all int64
		for _, name := range slices.Sorted(maps.Keys(x.Sizes)) {
			parts = append(parts, fmt.Sprintf("%s %s", name, report.Number(float64(x.Sizes[name])/1e6)))
			all += x.Sizes[name]
		}
		if all > 0 {
			t.Rows = append(t.Rows, []string{x.Name, report.Number(float64(all)/1e6) + " (" + strings.Join(parts, ", ") + ")"})
		}
	}
	return t
}
