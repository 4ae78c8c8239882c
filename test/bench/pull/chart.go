package main

import (
	"slices"

	"github.com/cri-runtime/cri-runtime/test/bench/report"
)

// chart draws wall on the left, processor time on the right.
func (r *result) chart() string {
	c := report.Bars{
		Title:  "Cold pulls from a registry on loopback: median, lowest to highest (" + r.Began.Format("2006-01-02") + ")",
		Series: make([]string, len(targetNames)), Panels: []string{"wall, s", "CPU, s"},
	}
	for _, t := range r.Targets {
		if i := slices.Index(targetNames, t.Name); i >= 0 {
			c.Series[i] = t.Name
		}
	}
	for _, image := range r.measured() {
		g := report.Group{Label: image.Name}
		for _, t := range r.Targets {
			b := report.Bar{Series: slices.Index(targetNames, t.Name)}
			for _, figure := range []func(sample) float64{func(s sample) float64 { return s.Wall }, func(s sample) float64 { return s.CPU }} {
				if v, ok := r.of(image.Name, t.Name, figure); ok {
					b.Values = append(b.Values, &v)
				}
			}
			g.Bars = append(g.Bars, b)
		}
		c.Groups = append(c.Groups, g)
	}
	return c.SVG()
}
