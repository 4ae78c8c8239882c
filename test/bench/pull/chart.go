package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// colours of the targets, by their place in targetNames; they differ in lightness too.
var colours = []string{"#0b7a75", "#5fc2b8", "#d1495b", "#b5838d", "#edae49", "#7d8597"}

// panel is one half of the chart.
type panel struct {
	title  string
	figure func(sample) float64
}

const (
	barHeight, barGap, groupGap = 13, 2, 14
	labelWidth, panelWidth      = 130, 360
	headHeight, numberWidth     = 62, 100
	// beyond the highest median this much of the spreads is drawn.
	beyond = 1.2
)

// chart draws the medians as bars, and the lowest and highest as a line over each:
// wall on the left, processor time on the right.
func (r *result) chart() string {
	panels := []panel{{"wall, s", func(s sample) float64 { return s.Wall }}, {"CPU, s", func(s sample) float64 { return s.CPU }}}
	var body strings.Builder
	y := headHeight
	var top [2]float64
	for i, p := range panels {
		for _, image := range r.measured() {
			for _, t := range r.Targets {
				v, _ := r.of(image.Name, t.Name, p.figure)
				top[i] = max(top[i], beyond*v.median)
			}
		}
		text(&body, labelWidth+i*(panelWidth+numberWidth), headHeight-8, "start", p.title)
	}
	for _, image := range r.measured() {
		first := y
		for _, t := range r.Targets {
			drawn := false
			for i, p := range panels {
				v, ok := r.of(image.Name, t.Name, p.figure)
				if !ok || top[i] == 0 {
					continue
				}
				drawn = true
				drawBar(&body, labelWidth+i*(panelWidth+numberWidth), y, v, bar{(panelWidth - 10) / top[i], top[i], colour(t.Name)})
			}
			if drawn {
				y += barHeight + barGap
			}
		}
		text(&body, labelWidth-8, (first+y)/2+3, "end", image.Name)
		y += groupGap
	}
	width := labelWidth + 2*(panelWidth+numberWidth)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", width, y, width, y)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, y)
	text(&b, 8, 16, "start", "Cold pulls from a registry on loopback: median, lowest to highest ("+r.Began.Format("2006-01-02")+")")
	x := 8
	for _, t := range r.Targets {
		fmt.Fprintf(&b, `<rect x="%d" y="25" width="10" height="10" fill="%s"/>`+"\n", x, colour(t.Name))
		text(&b, x+14, 34, "start", t.Name)
		x += 26 + 7*len(t.Name)
	}
	b.WriteString(body.String() + "</svg>\n")
	return b.String()
}

func colour(target string) string {
	for i, name := range targetNames {
		if name == target {
			return colours[i]
		}
	}
	return "#000000"
}

// bar is how one is drawn: pixels per unit, the highest value that fits, the colour.
type bar struct {
	scale, top float64
	fill       string
}

// drawBar draws a spread. What does not fit is cut off and written beside it: one pull
// that took a hundred times as long must neither vanish nor flatten all others.
func drawBar(b *strings.Builder, x, y int, v spread, how bar) {
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", x, y, v.median*how.scale, barHeight, how.fill)
	middle, right, number := float64(y)+barHeight/2.0, min(v.high, how.top), fmt.Sprintf("%.2f", v.median)
	if v.high > how.top {
		number += fmt.Sprintf(", up to %.1f", v.high)
	}
	fmt.Fprintf(b, `<path d="M%.1f %.1fH%.1f" stroke="#222222"/>`+"\n", float64(x)+v.low*how.scale, middle, float64(x)+right*how.scale)
	text(b, x+int(right*how.scale)+5, y+barHeight-3, "start", number)
}

func text(b *strings.Builder, x, y int, anchor, s string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="%s" fill="#222222">`, x, y, anchor)
	_ = xml.EscapeText(b, []byte(s)) // a strings.Builder takes everything
	b.WriteString("</text>\n")
}
