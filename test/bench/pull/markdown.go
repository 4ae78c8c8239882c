package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/bench/report"
)

// column is one figure of the tables.
type column struct {
	head   string
	figure func(sample) float64
	scale  float64
	digits int
	ratio  bool // to containerd's
}

var columns = []column{
	{"wall, s", func(s sample) float64 { return s.Wall }, 1, 2, true},
	{"until on disk, s", func(s sample) float64 { return s.Durable }, 1, 2, true},
	{"CPU, s", func(s sample) float64 { return s.CPU }, 1, 2, true},
	{"written, MB", func(s sample) float64 { return float64(s.DeviceWrote) }, 1e-6, 0, true},
	{"on disk, MB", func(s sample) float64 { return float64(s.DiskUsed) }, 1e-6, 0, true},
	{"peak memory, MB", func(s sample) float64 { return float64(s.Peak) }, 1e-6, 0, false},
	{"remove, ms", func(s sample) float64 { return s.Remove }, 1e3, 1, false},
	{"freed, ms", func(s sample) float64 { return s.Freed }, 1e3, 0, false},
}

// markdown is the whole report.
func (r *result) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Image pulls, %s\n\n", r.Began.Format("2006-01-02 15:04 UTC"))
	for _, key := range slices.Sorted(maps.Keys(r.Machine)) {
		fmt.Fprintf(&b, "- %s: %s\n", key, r.Machine[key])
	}
	fmt.Fprintf(&b, "- images: %s\n- %d pulls of each image by each runtime, in turn; took %.0f s\n\n", r.Images.Source, r.Options.Runs, r.Took)
	b.WriteString("Runtimes:\n\n")
	for _, t := range r.Targets {
		fmt.Fprintf(&b, "- **%s**: %s; %s\n", t.Name, t.Version, strings.Join(t.Settings, ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Missing)) {
		fmt.Fprintf(&b, "- %s was not measured: %s\n", name, r.Missing[name])
	}
	b.WriteString("\nMedian (lowest to highest); x is the ratio of the medians to containerd's. MB are 10^6 bytes. \"Until on disk\" adds a syncfs to the pull; " +
		"\"written\" is what the device was written until then, the file system's journal included; \"freed\" is the time from RemoveImage's call until the space is free.\n")
	for _, i := range r.measured() {
		r.table(&b, i.Name)
		compressed, unpacked := r.own(i)
		r.remarks(&b, i)
		fmt.Fprintf(&b, "\n%d layers, %d entries; of its own %.1f MB compressed, %.1f MB unpacked.\n", len(i.Layers), i.Entries(), mb(compressed), mb(unpacked))
	}
	r.aimTable(&b)
	if len(r.Failures) > 0 {
		b.WriteString("\n## Failures\n\n")
		for _, f := range r.Failures {
			fmt.Fprintf(&b, "- %s\n", strings.ReplaceAll(f, "\n", " "))
		}
	}
	return b.String()
}

func (r *result) table(b *strings.Builder, image string) {
	t := report.Table{Head: []string{""}}
	for _, c := range columns {
		t.Head = append(t.Head, c.head)
	}
	t.Head = append(t.Head, "MB/s", "registry, CPU s", "others, CPU s")
	for _, target := range r.Targets {
		if _, ok := r.of(image, target.Name, columns[0].figure); !ok {
			continue
		}
		row := []string{target.Name}
		for _, c := range columns {
			row = append(row, r.cell(image, target.Name, c))
		}
		speed, _ := r.of(image, target.Name, r.speed)
		registry, _ := r.of(image, target.Name, func(s sample) float64 { return s.RegistryCPU })
		others, _ := r.of(image, target.Name, func(s sample) float64 { return s.OtherCPU })
		t.Rows = append(t.Rows, append(row, fmt.Sprintf("%.0f", speed.Median), fmt.Sprintf("%.2f", registry.Median), fmt.Sprintf("%.2f", others.Median)))
	}
	fmt.Fprintf(b, "\n## %s\n\n%s", image, t.Markdown())
}

// remarks names the samples that were disturbed, and those that fetched more than the
// image: neither is taken out of the figures.
func (r *result) remarks(b *strings.Builder, i images.Image) {
	const over = 1.1 // headers and the documents of an image are a few thousandths
	compressed, _ := r.own(i)
	for _, s := range r.Samples {
		if s.Image != i.Name {
			continue
		}
		if why := s.disturbed(); why != "" {
			fmt.Fprintf(b, "\n- disturbed, but counted: %s, run %d: %s", s.Target, s.Run, why)
		}
		if float64(s.Fetched) > over*float64(compressed) {
			fmt.Fprintf(b, "\n- fetched more than the image: %s, run %d: %.1f MB over the loopback for %.1f MB", s.Target, s.Run, mb(s.Fetched), mb(compressed))
		}
	}
	b.WriteString("\n")
}

// cell is "median (low to high) xRATIO".
func (r *result) cell(image, target string, c column) string {
	v, _ := r.of(image, target, c.figure)
	number := func(f float64) string { return fmt.Sprintf("%.*f", c.digits, f*c.scale) }
	text := fmt.Sprintf("%s (%s to %s)", number(v.Median), number(v.Low), number(v.High))
	if peer, ok := r.of(image, containerd, c.figure); ok && c.ratio && target != containerd && peer.Median > 0 {
		text += fmt.Sprintf(" x%.2f", v.Median/peer.Median)
	}
	return text
}

// speed is in MB of uncompressed data per second.
func (r *result) speed(s sample) float64 {
	i, _ := r.Images.Image("bench/" + s.Image)
	_, unpacked := r.own(withName(i, s.Image))
	return mb(unpacked) / s.Wall
}
