package report

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// Bars is a chart of groups of horizontal bars, in one or more panels beside each other.
type Bars struct {
	Title  string
	Series []string // names of the colours; "" is in no legend
	Panels []string // titles; each panel has a scale of its own
	Groups []Group
}

// Group is what is compared.
type Group struct {
	Label string
	Bars  []Bar
}

// Bar is the figures of one series, by panel; nil where it has none.
type Bar struct {
	Series int
	Values []*Spread
}

// The colours of the series differ in lightness too; each has one for light and one for
// dark pages. Ours are the first ones.
var colours = [][2]string{
	{"#0b7a75", "#2aa79f"}, {"#5fc2b8", "#8fded6"}, {"#d1495b", "#ef6f80"}, {"#b5838d", "#d3a5ae"}, {"#d99a2b", "#edae49"}, {"#7d8597", "#a3abbd"},
	{"#5c4d9e", "#9486d6"}, {"#3a6ea5", "#6ea3dc"},
}

const (
	barHeight, barGap, groupGap = 13, 2, 14
	panelWidth                  = 360
	headHeight, numberWidth     = 62, 110
	lineHeight                  = 18
	// beyond the highest median this much of the spreads is drawn.
	beyond = 1.2
)

// canvas collects the body of a picture.
type canvas struct{ strings.Builder }

func (c *canvas) text(x, y int, anchor, s string) {
	fmt.Fprintf(c, `<text x="%d" y="%d" text-anchor="%s">`, x, y, anchor)
	_ = xml.EscapeText(c, []byte(s)) // a strings.Builder takes everything
	c.WriteString("</text>\n")
}

// legend writes title and names of the series, and returns the height that it took.
func (c *canvas) legend(title string, series []string, width int) int {
	c.text(8, 16, "start", title)
	x, y := 8, 25
	for i, name := range series {
		if name == "" {
			continue
		}
		wide := 26 + 7*len(name)
		if x > 8 && x+wide > width {
			x, y = 8, y+lineHeight
		}
		fmt.Fprintf(c, `<rect class="c%d" x="%d" y="%d" width="10" height="10"/>`+"\n", i%len(colours), x, y)
		c.text(x+14, y+9, "start", name)
		x += wide
	}
	return y + 37
}

// svg wraps the body. Its style follows what the reader's page prefers.
func (c *canvas) svg(width, height int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n",
		width, height, width, height)
	for dark, text := range []string{"#24292f", "#d0d7de"} {
		open, end := "<style>", ""
		if dark == 1 {
			open, end = "@media (prefers-color-scheme: dark) {", "}</style>"
		}
		fmt.Fprintf(&b, "%s text{fill:%s} .l{stroke:%s;fill:none} .g{stroke:#8b949e;stroke-opacity:0.35;fill:none}", open, text, text)
		for i, colour := range colours {
			fmt.Fprintf(&b, " .c%d{fill:%s} .s%d{stroke:%s;fill:none}", i, colour[dark], i, colour[dark])
		}
		b.WriteString(end + "\n")
	}
	b.WriteString(c.String() + "</svg>\n")
	return b.String()
}

// SVG draws the medians as bars, and the lowest and highest as a line over each.
func (c Bars) SVG() string {
	labels := 60
	for _, g := range c.Groups {
		labels = max(labels, 16+6*len(g.Label))
	}
	width := labels + len(c.Panels)*(panelWidth+numberWidth)
	var out canvas
	y := out.legend(c.Title, c.Series, width)
	tops := c.tops()
	for i, title := range c.Panels {
		out.text(labels+i*(panelWidth+numberWidth), y-8, "start", title)
	}
	for _, g := range c.Groups {
		first := y
		for _, b := range g.Bars {
			drawn := false
			for i, v := range b.Values {
				if v != nil && tops[i] > 0 {
					drawn = true
					out.bar(labels+i*(panelWidth+numberWidth), y, *v, bar{(panelWidth - 10) / tops[i], tops[i], b.Series % len(colours)})
				}
			}
			if drawn {
				y += barHeight + barGap
			}
		}
		out.text(labels-8, (first+y)/2+3, "end", g.Label)
		y += groupGap
	}
	return out.svg(width, y)
}

// tops are the highest values that are drawn, by panel.
func (c Bars) tops() []float64 {
	tops := make([]float64, len(c.Panels))
	for _, g := range c.Groups {
		for _, b := range g.Bars {
			for i, v := range b.Values {
				if v != nil {
					tops[i] = max(tops[i], beyond*v.Median)
				}
			}
		}
	}
	return tops
}

// bar is how one is drawn: pixels per unit, the highest value that fits, the colour.
type bar struct {
	scale, top float64
	colour     int
}

// bar draws a spread. What does not fit is cut off and written beside it: one sample that
// took a hundred times as long must neither vanish nor flatten all others.
func (c *canvas) bar(x, y int, v Spread, how bar) {
	fmt.Fprintf(c, `<rect class="c%d" x="%d" y="%d" width="%.1f" height="%d"/>`+"\n", how.colour, x, y, max(0.5, v.Median*how.scale), barHeight)
	middle, right, number := float64(y)+barHeight/2.0, min(v.High, how.top), Number(v.Median)
	if v.High > how.top {
		number += ", up to " + Number(v.High)
	}
	fmt.Fprintf(c, `<path class="l" d="M%.1f %.1fH%.1f"/>`+"\n", float64(x)+v.Low*how.scale, middle, float64(x)+right*how.scale)
	c.text(x+int(right*how.scale)+5, y+barHeight-3, "start", number)
}

// Lines is a chart of figures in their order.
type Lines struct {
	Title  string
	X, Y   string // what the axes are
	Series []Line
}

// Line is one figure for each step.
type Line struct {
	Series int // its colour is that of the same number in Bars
	Name   string
	Points []float64
}

const linesWidth, linesHeight, axis = 560, 240, 48

// SVG draws one line for each series. The highest value that is drawn is what 99 of a
// hundred points of the slowest series stay below.
func (c Lines) SVG() string {
	var names []string
	var top float64
	longest := 0
	for _, s := range c.Series {
		names = append(names, make([]string, max(0, s.Series+1-len(names)))...)
		names[s.Series] = s.Name
		longest = max(longest, len(s.Points))
		top = max(top, quantile(s.Points, 0.99))
	}
	var out canvas
	head := out.legend(c.Title, names, axis+linesWidth)
	if longest < 2 || top <= 0 {
		return out.svg(axis+linesWidth, head)
	}
	out.text(8, head-12, "start", c.Y)
	bottom := head + linesHeight
	for i := range 5 {
		value := top * float64(i) / 4
		y := bottom - linesHeight*i/4
		fmt.Fprintf(&out, `<path class="g" d="M%d %dH%d"/>`+"\n", axis, y, axis+linesWidth)
		out.text(axis-5, y+4, "end", Number(value))
	}
	for i := 0; i <= 4; i++ {
		out.text(axis+linesWidth*i/4, bottom+16, "middle", fmt.Sprint(longest*i/4))
	}
	out.text(axis+linesWidth/2, bottom+32, "middle", c.X)
	for _, s := range c.Series {
		var path strings.Builder
		for at, v := range s.Points {
			op := "L"
			if at == 0 {
				op = "M"
			}
			x := axis + float64(linesWidth)*float64(at)/float64(longest-1)
			fmt.Fprintf(&path, "%s%.1f %.1f", op, x, float64(bottom)-linesHeight*min(v, top)/top)
		}
		fmt.Fprintf(&out, `<path class="s%d" stroke-width="1.5" d="%s"/>`+"\n", s.Series%len(colours), path.String())
	}
	return out.svg(axis+linesWidth+24, bottom+42)
}
