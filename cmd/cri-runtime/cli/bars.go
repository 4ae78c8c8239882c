package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cri-runtime/cri-runtime/image"
)

// From these widths on a layer's line has more columns.
const (
	wideLine   = 72 // state, sizes, rate
	middleLine = 56 // sizes, rate
	narrowLine = 34 // rate
	widestBar  = 40
)

// pullLines draws a pull: a line for the whole and one for each layer, none longer than
// width. If there are more than height, layers that are over are left out first.
func pullLines(p image.PullStatus, width, height int) []string {
	lines := []string{headline(p, width)}
	layers := p.Layers
	if left := max(height-2, 1); len(layers) > left {
		layers = slices.Clone(layers)
		slices.SortStableFunc(layers, func(a, b image.LayerStatus) int { return urgency(a.State) - urgency(b.State) })
		hidden := layers[left:]
		layers = layers[:left]
		lines = append(lines, fit(fmt.Sprintf("%d more layers: %s", len(hidden), census(hidden)), width))
	}
	now := p.Started.Add(time.Duration(p.Seconds * float64(time.Second)))
	for _, l := range layers {
		lines = append(lines, fit(layerLine(l, now, width), width))
	}
	return lines
}

// urgency is 0 for what people want to see first.
func urgency(s image.LayerState) int {
	switch s {
	case image.LayerDownloading, image.LayerUnpacking, image.LayerFailed:
		return 0
	case image.LayerWaiting:
		return 1
	default:
		return 2
	}
}

// census counts layers by state.
func census(layers []image.LayerStatus) string {
	var parts []string
	for _, s := range []image.LayerState{
		image.LayerDownloading, image.LayerUnpacking, image.LayerWaiting, image.LayerDone, image.LayerShared, image.LayerFailed,
	} {
		n := 0
		for _, l := range layers {
			if l.State == s {
				n++
			}
		}
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, stateWord(s)))
		}
	}
	return strings.Join(parts, ", ")
}

func stateWord(s image.LayerState) string {
	if s == image.LayerShared {
		return "already here"
	}
	return string(s)
}

// headline is the state of the whole pull. If it is too long, the reference loses its
// beginning, since people tell images apart by the end, but keeps half of the line.
func headline(p image.PullStatus, width int) string {
	state := " " + summary(p)
	if p.Phase == image.PhasePulling && width < middleLine {
		state = fmt.Sprintf(" %d%%, %s/s", percent(p.Done, p.Total), size(p.Rate))
	}
	ref := printable(p.Ref)
	if name, digest, ok := strings.Cut(ref, "@sha256:"); ok {
		ref = name + "@sha256:" + digest[:min(len(digest), 12)]
	}
	if room := max(width-1-len(state), width/2, 4); len(ref) > room {
		ref = "..." + ref[len(ref)-room+3:]
	}
	return fit(ref+state, width)
}

func summary(p image.PullStatus) string {
	took := period(time.Duration(p.Seconds * float64(time.Second)))
	switch p.Phase {
	case image.PhaseDone:
		return fmt.Sprintf("done, %s in %s", size(p.Total), took)
	case image.PhaseFailed:
		return fmt.Sprintf("failed after %s: %s", took, printable(p.Error))
	case image.PhasePulling:
		return fmt.Sprintf("%d%% of %s, %s/s, %s", percent(p.Done, p.Total), size(p.Total), size(p.Rate), took)
	default:
		text := string(p.Phase) + ", " + took
		if p.Waiting != nil {
			text += ": " + waiting(p.Waiting, p.Started.Add(time.Duration(p.Seconds*float64(time.Second))))
		}
		return text
	}
}

func layerLine(l image.LayerStatus, now time.Time, width int) string {
	id := shortDigest(l.Digest)
	if width < narrowLine && l.State == image.LayerDownloading {
		return fmt.Sprintf("%s %3d%%", id, percent(l.Done, l.Total))
	}
	switch {
	case l.State == image.LayerShared:
		return id + " already here"
	case l.State == image.LayerDone:
		return fmt.Sprintf("%s %-11s %s", id, l.State, size(l.Total))
	case l.Waiting != nil:
		text := waiting(l.Waiting, now)
		if l.State == image.LayerDownloading {
			return fmt.Sprintf("%s %3d%% %s", id, percent(l.Done, l.Total), text)
		}
		return fmt.Sprintf("%s %s: %s", id, l.State, text)
	case l.State != image.LayerDownloading && l.State != image.LayerUnpacking:
		return fmt.Sprintf("%s %s", id, l.State)
	}
	part := fmt.Sprintf("%7s/%-7s", size(l.Done), size(l.Total))
	rate := size(l.Rate) + "/s"
	if l.State == image.LayerUnpacking {
		rate = ""
	}
	before, after := id, fmt.Sprintf("%3d%% %9s", percent(l.Done, l.Total), rate)
	if width >= middleLine {
		after = fmt.Sprintf("%3d%% %s %9s", percent(l.Done, l.Total), part, rate)
	}
	if width >= wideLine {
		before = fmt.Sprintf("%s %-11s", id, l.State)
	}
	// The last column stays free: some terminals wrap when it is filled.
	room := min(width-1-len(before)-len(after)-4, widestBar)
	return strings.TrimRight(before+" ["+bar(l.Done, l.Total, room)+"] "+after, " ")
}

// bar draws how much of the whole is there.
func bar(done, total int64, width int) string {
	if width <= 0 {
		return ""
	}
	full := width
	if total > 0 {
		full = int(float64(width) * float64(done) / float64(total))
	}
	if full >= width {
		return strings.Repeat("=", width)
	}
	return strings.Repeat("=", full) + ">" + strings.Repeat(" ", width-full-1)
}

func percent(done, total int64) int {
	if total <= 0 {
		return 100
	}
	return int(float64(done) / float64(total) * 100)
}

// waiting says why nothing comes, and for how long.
func waiting(w *image.WaitStatus, now time.Time) string {
	text := printable(w.Reason)
	if w.Until == nil {
		return text
	}
	if left := w.Until.Sub(now); left > 0 {
		return fmt.Sprintf("again in %d s: %s", int((left+time.Second-1)/time.Second), text)
	}
	return text
}

func shortDigest(d image.Digest) string {
	_, hex, _ := strings.Cut(string(d), ":")
	return fmt.Sprintf("%-12.12s", printable(hex))
}

// size prints bytes in at most seven characters.
func size(n int64) string {
	f := float64(n)
	for _, unit := range []string{"B", "kB", "MB", "GB", "TB"} {
		switch {
		case f < 999.5 && (unit == "B" || f >= 99.95):
			return fmt.Sprintf("%.0f %s", f, unit)
		case f < 99.95:
			return fmt.Sprintf("%.1f %s", f, unit)
		}
		f /= 1000
	}
	return fmt.Sprintf("%.0f PB", f)
}

// fit cuts a line to a width, and leaves the last column free.
func fit(line string, width int) string {
	if width = max(width-1, 1); len(line) > width {
		for width > 0 && line[width]&0xc0 == 0x80 { // within a rune
			width--
		}
		return line[:width]
	}
	return strings.TrimRight(line, " ")
}
