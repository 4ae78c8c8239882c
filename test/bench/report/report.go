// Package report makes what a benchmark publishes of typed data: Markdown tables, and
// charts in SVG that are readable on light and on dark pages and run no scripts.
//
// It is pure: no files, no clock, no goroutine. The same data give the same bytes.
package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Spread is the middle and the ends of some figures.
type Spread struct{ Median, Low, High float64 }

// SpreadOf is false of no figures.
func SpreadOf(figures []float64) (Spread, bool) {
	if len(figures) == 0 {
		return Spread{}, false
	}
	v := slices.Sorted(slices.Values(figures))
	middle := v[len(v)/2]
	if len(v)%2 == 0 {
		middle = (middle + v[len(v)/2-1]) / 2
	}
	return Spread{middle, v[0], v[len(v)-1]}, true
}

// Number writes three digits that count, and never an exponent: 1234, 123, 12.3, 1.23, 0.0123.
func Number(v float64) string {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return fmt.Sprintf("%.0f", v)
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	return fmt.Sprintf("%.*f", min(6, max(0, digits)), v)
}

// Table is one of Markdown.
type Table struct {
	Head []string
	Rows [][]string
}

// Markdown writes it; a table without rows is nothing. What would end a cell is escaped.
func (t Table) Markdown() string {
	if len(t.Rows) == 0 {
		return ""
	}
	var b strings.Builder
	row := func(cells []string) {
		b.WriteString("|")
		for _, cell := range cells {
			b.WriteString(" " + strings.NewReplacer("|", `\|`, "\n", " ").Replace(cell) + " |")
		}
		b.WriteString("\n")
	}
	row(t.Head)
	b.WriteString("|" + strings.Repeat("---|", len(t.Head)) + "\n")
	for _, cells := range t.Rows {
		row(cells)
	}
	return b.String()
}

// quantile is the figure below which the share q of all lie; 0 of none.
func quantile(figures []float64, q float64) float64 {
	if len(figures) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(figures))
	return v[min(len(v)-1, int(q*float64(len(v))))]
}
