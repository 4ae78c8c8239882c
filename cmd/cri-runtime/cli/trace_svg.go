package cli

import (
	"encoding/xml"
	"fmt"
	"strings"
	"time"

	"github.com/cri-runtime/cri-runtime/cri/admin"
)

const (
	svgWidth   = 960
	svgLabels  = 300 // for labels, left of the bars
	svgNumbers = 80  // for times, right of the bars
	svgRow     = 18
	svgBar     = 11
	svgTop     = 30
	svgBars    = svgWidth - svgLabels - svgNumbers
	svgTicks   = 6
	svgNote    = 130 // characters
)

// svgStyle follows the reader's light or dark setting; the picture has no script and no
// reference to anything outside.
const svgStyle = `<style>
.bg{fill:#fff}text{fill:#24292f;font:12px sans-serif}.h{font-weight:bold}.n{fill:#57606a}.e{fill:#b3261e}
.g{stroke:#d0d7de}.op{fill:#1f5fa8}.step{fill:#7fb2e5}.run{fill:#c77700}.bad{fill:#b3261e}.mark{fill:#1a7f37}
@media(prefers-color-scheme:dark){.bg{fill:#0d1117}text{fill:#e6edf3}.n{fill:#9da7b3}.e{fill:#ff8a80}
.g{stroke:#30363d}.op{fill:#6cb0f5}.step{fill:#2f6da8}.run{fill:#f0a63a}.bad{fill:#ff6b60}.mark{fill:#4ac26b}}
</style>
`

// traceSVG draws the waterfall as a picture.
func traceSVG(t *admin.Trace) string {
	var body strings.Builder
	svgText(&body, 12, 20, `class="h"`, traceHead(t))
	y := svgTop
	for _, s := range sections(t) {
		y = svgSection(&body, s, y)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">`+"\n", svgWidth, y+8, svgWidth, y+8)
	b.WriteString(svgStyle + `<rect class="bg" width="100%" height="100%"/>` + "\n" + body.String() + "</svg>\n")
	return b.String()
}

// svgSection draws one axis and what is on it, from y downwards.
func svgSection(b *strings.Builder, s section, y int) (end int) {
	y += svgRow
	svgText(b, 12, y, `class="n"`, s.begun.Local().Format("15:04:05.000"))
	height := 0
	for _, r := range s.rows {
		height += svgRow
		if r.note != "" {
			height += svgRow
		}
	}
	for _, at := range ticks(s.span, svgTicks) {
		x := svgX(at, s.span)
		fmt.Fprintf(b, `<path class="g" d="M%.1f %dv%d"/>`+"\n", x, y+4, height)
		svgText(b, int(x), y, `class="n" text-anchor="middle"`, tickLabel(at))
	}
	for _, r := range s.rows {
		y += svgRow
		svgBarRow(b, r, s.span, y)
		if r.note != "" {
			y += svgRow
			class := `class="n"`
			if r.failed {
				class = `class="e"`
			}
			svgText(b, 36, y, class, shorten(r.note, svgNote))
		}
	}
	return y + svgRow/2
}

func svgBarRow(b *strings.Builder, r traceRow, span time.Duration, y int) {
	left := 12
	if r.kind != rowOp {
		left = 26
	}
	svgText(b, left, y, "", shorten(r.label, 42))
	x := svgX(r.at, span)
	if r.kind == rowMark {
		if r.beyond {
			fmt.Fprintf(b, `<path class="mark" d="M%d %dl6 4l-6 4z"/>`+"\n", svgLabels+svgBars-6, y-8)
		} else {
			fmt.Fprintf(b, `<circle class="mark" cx="%.1f" cy="%d" r="4"/>`+"\n", x, y-4)
		}
		svgText(b, svgWidth-12, y, `class="n" text-anchor="end"`, fine(r.at))
		return
	}
	width := max(svgX(r.at+r.took, span)-x, 1)
	fmt.Fprintf(b, `<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d"/>`+"\n", svgClass(r), x, y-svgBar+1, width, svgBar)
	svgText(b, svgWidth-12, y, `class="n" text-anchor="end"`, fine(r.took))
}

func svgClass(r traceRow) string {
	switch {
	case r.failed:
		return "bad"
	case r.running:
		return "run"
	case r.kind == rowOp:
		return "op"
	}
	return "step"
}

// svgX is where a time is drawn.
func svgX(at, span time.Duration) float64 {
	if span <= 0 {
		return svgLabels
	}
	return svgLabels + svgBars*max(float64(at), 0)/float64(span)
}

// shorten cuts a text to a number of characters.
func shorten(s string, limit int) string {
	if r := []rune(s); len(r) > limit {
		return string(r[:limit-3]) + "..."
	}
	return s
}

func svgText(b *strings.Builder, x, y int, attributes, text string) {
	fmt.Fprintf(b, `<text x="%d" y="%d" %s>`, x, y, attributes)
	_ = xml.EscapeText(b, []byte(text)) // a strings.Builder takes everything
	b.WriteString("</text>\n")
}
