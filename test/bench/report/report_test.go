package report

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestSpread(t *testing.T) {
	if _, ok := SpreadOf(nil); ok {
		t.Error("of nothing: got a spread")
	}
	if got, _ := SpreadOf([]float64{3, 1, 2}); got != (Spread{2, 1, 3}) {
		t.Errorf("odd: got %v", got)
	}
	if got, _ := SpreadOf([]float64{4, 1, 2, 3}); got != (Spread{2.5, 1, 4}) {
		t.Errorf("even: got %v", got)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 1234.6: "1235", 123.4: "123", 12.34: "12.3", 1.234: "1.23", 0.01234: "0.0123", -1.5: "-1.50", 1e-9: "0.000000"} {
		if got := Number(v); got != want {
			t.Errorf("%v: got %s, want %s", v, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	got := Table{Head: []string{"a", "b"}, Rows: [][]string{{"1|2", "x\ny"}}}.Markdown()
	if want := "| a | b |\n|---|---|\n| 1\\|2 | x y |\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := (Table{Head: []string{"a"}}).Markdown(); got != "" {
		t.Errorf("no rows: got %q", got)
	}
}

func wellFormed(t *testing.T, chart string) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(chart)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("chart: %v\n%s", err, chart)
		}
	}
}

func TestBars(t *testing.T) {
	one := &Spread{1, 0.5, 100}
	chart := Bars{Title: "a < b", Series: []string{"x", "y"}, Panels: []string{"p", "q"}, Groups: []Group{
		{"g", []Bar{{0, []*Spread{one, nil}}, {1, []*Spread{nil, nil}}}},
	}}.SVG()
	wellFormed(t, chart)
	if n := strings.Count(chart, `<path class="l"`); n != 1 {
		t.Errorf("bars: got %d, want 1\n%s", n, chart)
	}
	for _, want := range []string{"up to 100", "prefers-color-scheme: dark", "a &lt; b"} {
		if !strings.Contains(chart, want) {
			t.Errorf("chart lacks %q", want)
		}
	}
	if strings.Contains(chart, "<script") {
		t.Error("chart has a script")
	}
}

func TestLines(t *testing.T) {
	chart := Lines{Title: "t", X: "pods", Y: "ms", Series: []Line{{4, "x", []float64{1, 2, 3}}, {0, "y", []float64{5, 5}}}}.SVG()
	wellFormed(t, chart)
	if n := strings.Count(chart, "stroke-width"); n != 2 {
		t.Errorf("lines: got %d, want 2", n)
	}
	if !strings.Contains(chart, `class="s4"`) {
		t.Error("the line has another colour than its series")
	}
	wellFormed(t, Lines{Title: "none"}.SVG())
}
