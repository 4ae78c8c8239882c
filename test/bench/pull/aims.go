package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/bench/peers"
	"github.com/cri-runtime/cri-runtime/test/bench/report"
)

// aim is one promise, checked against one target's samples of one image.
type aim struct {
	image, target, what string
	got, want           float64
	atLeast             bool // else at most
	stretch             bool // wished for: does not count as missed
}

func (a aim) met() bool {
	if a.atLeast {
		return a.got >= a.want
	}
	return a.got <= a.want
}

func withName(i images.Image, name string) images.Image {
	i.Name = name
	return i
}

// ratio is an aim against containerd with overlayfs, in the same run.
type ratio struct {
	prefix         string // of images
	wall, cpu      float64
	wallish, cpish float64 // stretches
}

var ratios = []ratio{
	{"debian-app:a", 0.42, 0.65, 0.30, 0.50},
	{"node:", 1.0 / 3, 0, 0, 0},
	{"big:", 2.0 / 3, 0, 0, 0},
}

const (
	gzipSpeed, zstdSpeed = 250, 420 // MB of uncompressed data per second, where layers can run in parallel
	diskShare            = 1.05     // of the uncompressed size
	peakLimit            = 100e6
	removeLimit          = 10e-3
)

// aims lists what was promised of all that was measured.
func (r *result) aims() (out []aim) {
	for _, t := range r.Targets {
		if !isOurs(t.Name) {
			continue
		}
		for _, i := range r.measured() {
			if _, ok := r.of(i.Name, t.Name, columns[0].figure); ok {
				out = append(out, r.ratioAims(i.Name, t.Name)...)
				out = append(out, r.ownAims(i, t.Name)...)
			}
		}
	}
	return out
}

func (r *result) ratioAims(image, target string) (out []aim) {
	for _, x := range ratios {
		if !strings.HasPrefix(image, x.prefix) {
			continue
		}
		for _, one := range []struct {
			what    string
			figure  func(sample) float64
			want    float64
			stretch bool
		}{
			{"wall / containerd's", func(s sample) float64 { return s.Wall }, x.wall, false},
			{"wall / containerd's, stretch", func(s sample) float64 { return s.Wall }, x.wallish, true},
			{"CPU / containerd's", func(s sample) float64 { return s.CPU }, x.cpu, false},
			{"CPU / containerd's, stretch", func(s sample) float64 { return s.CPU }, x.cpish, true},
		} {
			mine, _ := r.of(image, target, one.figure)
			peer, ok := r.of(image, containerd, one.figure)
			if one.want > 0 && ok && peer.Median > 0 {
				out = append(out, aim{image, target, one.what, mine.Median / peer.Median, one.want, false, one.stretch})
			}
		}
	}
	return out
}

func (r *result) ownAims(i images.Image, target string) []aim {
	median := func(figure func(sample) float64) float64 {
		v, _ := r.of(i.Name, target, figure)
		return v.Median
	}
	compressed, unpacked := r.own(i)
	what := "disk / uncompressed"
	if unpacked != i.Unpacked() {
		what = "disk / uncompressed size of the layer that is not shared"
	}
	out := []aim{
		{i.Name, target, what, median(func(s sample) float64 { return float64(s.DiskUsed) }) / float64(unpacked), diskShare, false, false},
		{
			i.Name, target, "written, MB", median(func(s sample) float64 { return mb(s.DeviceWrote) }),
			diskShare*mb(unpacked) + mb(compressed), false, false,
		},
		{i.Name, target, "peak memory, MB", median(func(s sample) float64 { return mb(s.Peak) }), peakLimit / 1e6, false, false},
		{i.Name, target, "RemoveImage, ms", median(func(s sample) float64 { return s.Remove * 1e3 }), removeLimit * 1e3, false, false},
	}
	want := 0.0
	switch {
	case unpacked != i.Unpacked() || len(i.Layers) < 3: // one layer to pull: nothing runs in parallel
	case strings.HasSuffix(i.Name, "zst"):
		want = zstdSpeed
	default:
		want = gzipSpeed
	}
	if want > 0 {
		out = append(out, aim{i.Name, target, "MB/s of uncompressed data", median(r.speed), want, true, false})
	}
	return out
}

// missed counts the aims that are not met, and pulls that failed. The aims are those of
// the EROFS store; the directory store is what remains where the kernel has none, and
// counts only when it was measured alone.
func (r *result) missed() (n int) {
	both := slices.ContainsFunc(r.Targets, func(t peers.Target) bool { return t.Name == oursErofs })
	for _, a := range r.aims() {
		if counts := !a.stretch && (!both || a.target != oursDirectory); counts && !a.met() {
			n++
		}
	}
	return n + len(r.Failures)
}

func (r *result) aimTable(b *strings.Builder) {
	t := report.Table{Head: []string{"image", "runtime", "", "got", "aim", ""}}
	for _, a := range r.aims() {
		sign, verdict := "<=", "met"
		if a.atLeast {
			sign = ">="
		}
		if !a.met() {
			verdict = "**not met**"
		}
		t.Rows = append(t.Rows, []string{a.image, a.target, a.what, fmt.Sprintf("%.3g", a.got), fmt.Sprintf("%s %.3g", sign, a.want), verdict})
	}
	b.WriteString("\n## Aims\n\n" + t.Markdown())
}
