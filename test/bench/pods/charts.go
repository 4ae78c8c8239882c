package main

import (
	"fmt"
	"slices"

	"github.com/cri-runtime/cri-runtime/test/bench/report"
)

// shown is one chart of bars: figures of one unit, each with its own label.
type shown struct {
	file, title string
	figures     [][2]string // key, label
}

var barCharts = []shown{
	{"latency", "One pod after the other, ms", [][2]string{
		{"latency/Ready", "ready, bridge"}, {"latency-host/Ready", "ready, host network"}, {"latency-seccomp/Ready", "ready, seccomp"},
		{"latency/StopContainer", "StopContainer"}, {"latency/Teardown", "teardown, bridge"},
	}},
	{"phases", "The calls of a pod's start, bridge network, ms", [][2]string{
		{"latency/RunPodSandbox", "RunPodSandbox"}, {"latency/CreateContainer", "CreateContainer"}, {"latency/StartContainer", "StartContainer"},
	}},
	{"cpu", "CPU, ms", [][2]string{
		{"latency/CPU per pod life", "pod life, bridge"}, {"latency-host/CPU per pod life", "pod life, host network"}, {"exec/CPU per exec", "ExecSync"},
	}},
	{"throughput", "Per second, more is better", [][2]string{
		{"throughput/pods started per second", "pods started"}, {"throughput/pods removed per second", "pods removed"}, {"exec/in parallel, per second", "ExecSync"},
	}},
	{"memory", "Memory of each pod, KiB", [][2]string{{"density/PSS per pod", "PSS"}, {"density/private dirty per pod", "private dirty"}}},
	{"polling", "CPU with many pods, % of a core", [][2]string{{"density/CPU while nobody asks", "nobody asks"}, {"density/CPU polled each second", "polled each second"}}},
	{"stats", "Answers with many pods, ms", [][2]string{
		{"density/ListContainerStats", "ListContainerStats"}, {"density/ListPodSandboxStats", "ListPodSandboxStats"}, {"density/whole round of polling", "whole round"},
	}},
	{"logs", "Log of 100-byte lines, MB/s, more is better", [][2]string{{"logs/MB per second", "MB/s"}}},
	{"logs-cpu", "Log of 100-byte lines, CPU s per GB", [][2]string{{"logs/CPU per GB", "CPU s per GB"}}},
	{"restart", "Restart of the daemon to a complete list, ms", [][2]string{{"restart/to a complete list", "few pods"}, {"restart-more/to a complete list", "many pods"}}},
}

// charts by file name; without figures there is none.
func (r *results) charts() map[string]string {
	out := map[string]string{}
	for _, s := range barCharts {
		if c, ok := r.bars(s); ok {
			out[s.file] = c.SVG()
		}
	}
	for _, p := range r.measured() {
		lines := report.Lines{Title: "Time until each pod was ready, bridge network", X: "pods on the node", Y: "ms"}
		for _, t := range r.Targets {
			if points := r.filling(p.name, t.Name); points != nil {
				lines.Series = append(lines.Series, report.Line{Series: r.colour(t.Name), Name: t.Name, Points: points})
			}
		}
		if lines.Series != nil {
			out[p.name] = lines.SVG()
		}
	}
	return out
}

// filling is the time of each pod on a node that fills up, each the median of ten neighbours.
func (r *results) filling(phase, target string) (points []float64) {
	samples := r.of(phase, target)
	if len(samples) == 0 || samples[0].Density == nil {
		return nil
	}
	const neighbours = 10
	ready := samples[0].Density.Ready
	for i := range ready {
		from := max(0, min(i-neighbours/2, len(ready)-neighbours))
		points = append(points, ready[from:min(len(ready), from+neighbours)].At(0.5))
	}
	return points
}

func (r *results) bars(s shown) (report.Bars, bool) {
	c := report.Bars{Title: fmt.Sprintf("%s: median of the rounds, lowest to highest (%s)", s.title, r.Began.Format("2006-01-02")), Panels: []string{""}}
	all := figures()
	for _, shown := range s.figures {
		i := slices.IndexFunc(all, func(f figure) bool { return f.key() == shown[0] })
		g := report.Group{Label: shown[1]}
		for _, t := range r.Targets {
			if v, ok := r.spread(all[i], t.Name); ok {
				series := r.colour(t.Name)
				c.Series = append(c.Series, make([]string, max(0, series+1-len(c.Series)))...)
				c.Series[series] = t.Name
				g.Bars = append(g.Bars, report.Bar{Series: series, Values: []*report.Spread{&v}})
			}
		}
		if g.Bars != nil {
			c.Groups = append(c.Groups, g)
		}
	}
	return c, len(c.Groups) > 0
}

// colour is the same in all charts of all runs; somebody else's runtimes come last.
func (r *results) colour(target string) int {
	if i := slices.Index(targetNames, target); i >= 0 {
		return i
	}
	return len(targetNames) + slices.IndexFunc(r.Targets, func(t runtime) bool { return t.Name == target })
}
