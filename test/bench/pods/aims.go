package main

import (
	"fmt"
	"slices"

	"github.com/cri-runtime/cri-runtime/test/bench/report"
)

// aim is one promise: a bound, and, where it is not 0, a bound of the ratio to the best peer
// of the same run. Figures of which more is better have lower bounds.
type aim struct {
	what, figure, target string
	bound, ratio         float64
}

func promised(what, figure string, bound, ratio float64) aim {
	return aim{what, figure, ours, bound, ratio}
}

// aims are what was promised; docs/promises.md says the same. They were set against CRI-O
// 1.36.3, containerd 2.4.2, crun 1.27.1 and conmon 2.2.1.
var aims = []aim{
	promised("pod ready, built-in bridge", "latency/Ready", 6, 1.0/7),
	{"pod ready, the peers' CNI binaries", "latency/Ready", oursCNI, 22, 1.0 / 2},
	promised("pod ready, host network", "latency-host/Ready", 4, 1.0/6),
	promised("StopContainer of an obedient process", "latency/StopContainer", 2, 0),
	promised("teardown", "latency/Teardown", 10, 0),
	promised("CPU per pod life, built-in bridge", "latency/CPU per pod life", 8, 1.0/8),
	promised("CPU per pod life, host network", "latency-host/CPU per pod life", 6, 0),
	promised("pods started per second", "throughput/pods started per second", 150, 3.5),
	promised("memory per pod", "density/PSS per pod", 60, 1.0/3),
	promised("memory without pods", "idle/PSS", 25, 0),
	promised("CPU with pods that nobody asks for", "density/CPU while nobody asks", 0.05, 0),
	promised("CPU polled each second", "density/CPU polled each second", 3, 1.0/6),
	promised("ListContainerStats", "density/ListContainerStats", 5, 1.0/12),
	promised("ExecSync", "exec/one after the other", 2.5, 1.0/2),
	promised("CPU per ExecSync", "exec/CPU per exec", 1.8, 0),
	promised("ExecSync in parallel, per second", "exec/in parallel, per second", 800, 2.4),
	promised("log, 100-byte lines, MB/s", "logs/MB per second", 600, 1.3),
	promised("log, CPU per GB", "logs/CPU per GB", 1.2, 0.55),
	promised("log lines lost, torn or out of order", "logs/lines lost, torn or out of order", 0, 0),
	promised("log lines split", "logs/lines split", 0, 0),
	promised("restart to a complete list", "restart/to a complete list", 100, 1.0/5),
	promised("broken by a restart", "restart/what is not as before", 0, 0),
	promised("last ten of many pods / first ten", "density-more/Ready of the last ten pods / of the first ten", 1.3, 0),
	promised("processes of the runtime's per pod", "density/processes per pod", 0, 0),
	promised("programs executed per pod life", "counts/programs executed per pod life", 0, 0),
	promised("fsync and fdatasync per pod life", "counts/fsync, fdatasync and the like per pod life", 0, 0),
}

// judged is an aim beside what was measured.
type judged struct {
	aim

	got, ratioGot   float64
	unit, peer      string
	met, ratioMet   bool
	withRatio, more bool
}

// judge compares all aims whose figure was measured. A ratio needs a peer in the same run.
func (r *results) judge() (out []judged) {
	all := figures()
	for _, a := range aims {
		i := slices.IndexFunc(all, func(f figure) bool { return f.key() == a.figure })
		if i < 0 {
			continue
		}
		f := all[i]
		v, ok := r.spread(f, a.target)
		if !ok {
			continue
		}
		j := judged{aim: a, got: v.Median, unit: f.unit, more: f.more, ratioMet: true}
		j.met = within(v.Median, a.bound, f.more)
		if best, name := r.best(f); name != "" && best > 0 {
			j.peer, j.ratioGot = name, v.Median/best
			j.withRatio = a.ratio > 0
			j.ratioMet = !j.withRatio || within(j.ratioGot, a.ratio, f.more)
		}
		out = append(out, j)
	}
	return out
}

func within(got, bound float64, more bool) bool {
	if more {
		return got >= bound
	}
	return got <= bound
}

// missed counts the bounds that are not met, and samples that failed.
func (r *results) missed() (n int) {
	for _, j := range r.judge() {
		if !j.met {
			n++
		}
		if !j.ratioMet {
			n++
		}
	}
	return n + len(r.Failures)
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "**not met**"
}

// aimTable says of each aim whether it is met.
func (r *results) aimTable() report.Table {
	t := report.Table{Head: []string{"", "runtime", "got", "aim", "", "best peer", "ratio", "aim", ""}}
	for _, j := range r.judge() {
		sign := "<="
		if j.more {
			sign = ">="
		}
		row := []string{j.what, j.target, report.Number(j.got) + space(j.unit), sign + " " + report.Number(j.bound), verdict(j.met), j.peer, "", "", ""}
		if j.peer != "" {
			row[6] = report.Number(j.ratioGot)
		}
		if j.withRatio {
			row[7], row[8] = sign+" "+fraction(j.ratio), verdict(j.ratioMet)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func space(unit string) string {
	if unit == "" {
		return ""
	}
	return " " + unit
}

// fraction writes a ratio as it was promised: 1/7.
func fraction(v float64) string {
	for n := 2.0; n <= 20; n++ {
		if v == 1/n {
			return fmt.Sprintf("1/%.0f", n)
		}
	}
	return report.Number(v)
}
