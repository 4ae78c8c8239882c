package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/bench/peers"
	"github.com/cri-runtime/cri-runtime/test/bench/report"
)

// made is a result of two targets over an image and the one that shares its layers.
func made() *result {
	layers := []images.Layer{{Size: 40e6, Unpacked: 100e6}, {Size: 40e6, Unpacked: 100e6}, {Size: 20e6, Unpacked: 50e6}}
	r := &result{
		Began: time.Unix(1700000000, 0).UTC(), Options: options{Runs: 3}, Machine: map[string]string{"kernel": "6.18"},
		Targets: []peers.Target{{Name: oursErofs, Version: "v1"}, {Name: containerd, Version: "v2"}}, Missing: map[string]string{crio: "not built"},
		Images: &images.Set{Source: "a test", Images: []images.Image{
			{Name: "bench/debian-app:a", Layers: layers}, {Name: "bench/debian-app:b", Layers: append(layers[:3:3], images.Layer{Size: 1e6, Unpacked: 10e6})},
		}},
	}
	for i := range 3 {
		slow := float64(i) / 10
		r.Samples = append(r.Samples,
			sample{Image: "debian-app:a", Target: oursErofs, Wall: 0.8 + slow, CPU: 1, DiskUsed: 255e6, DeviceWrote: 260e6, Peak: 90e6, Remove: 0.004},
			sample{Image: "debian-app:a", Target: containerd, Wall: 2 + slow, CPU: 2, DiskUsed: 400e6, DeviceWrote: 410e6, Peak: 200e6, Remove: 0.5},
			sample{Image: "debian-app:b", Target: oursErofs, Wall: 0.1, CPU: 0.1, DiskUsed: 11e6, DeviceWrote: 11e6, Peak: 40e6, Remove: 0.02})
	}
	return r
}

func TestAims(t *testing.T) {
	got := map[string]bool{}
	for _, a := range made().aims() {
		got[a.image+" "+a.what] = a.met()
	}
	want := map[string]bool{
		"debian-app:a wall / containerd's":                                      false, // 0.9 / 2.1 = 0.43
		"debian-app:a wall / containerd's, stretch":                             false,
		"debian-app:a CPU / containerd's":                                       true,
		"debian-app:a CPU / containerd's, stretch":                              true,
		"debian-app:a disk / uncompressed":                                      true, // 1.02
		"debian-app:a written, MB":                                              true, // 260 of 362.5
		"debian-app:a peak memory, MB":                                          true,
		"debian-app:a RemoveImage, ms":                                          true,
		"debian-app:a MB/s of uncompressed data":                                true, // 278
		"debian-app:b written, MB":                                              true,
		"debian-app:b peak memory, MB":                                          true,
		"debian-app:b RemoveImage, ms":                                          false,
		"debian-app:b disk / uncompressed size of the layer that is not shared": false, // 1.1
	}
	for what, met := range want {
		if now, ok := got[what]; !ok || now != met {
			t.Errorf("%s: got %v (there: %v), want %v", what, now, ok, met)
		}
	}
	if len(got) != len(want) {
		t.Errorf("aims: got %d, want %d: %v", len(got), len(want), got)
	}
	if n := made().missed(); n != 3 { // wall, disk of b, RemoveImage of b; stretches do not count
		t.Errorf("missed: got %d, want 3", n)
	}
}

func TestOneStoreThatMisses(t *testing.T) {
	r := made()
	for i := range r.Samples {
		if r.Samples[i].Target == oursErofs {
			s := r.Samples[i]
			s.Target, s.Wall = oursDirectory, 100
			r.Samples = append(r.Samples, s)
		}
	}
	r.Targets = append(r.Targets, peers.Target{Name: oursDirectory})
	if n := r.missed(); n != 3 {
		t.Errorf("missed with both stores: got %d, want 3: the aims are those of the faster store", n)
	}
	r.Targets = r.Targets[1:]
	if n := r.missed(); n < 4 {
		t.Errorf("missed with the directory store alone: got %d, want more than 3", n)
	}
}

func TestReport(t *testing.T) {
	r := made()
	file := filepath.Join(t.TempDir(), "results.json")
	if err := report.Save(file, r); err != nil {
		t.Fatal(err)
	}
	back, err := readResult(file)
	if err != nil {
		t.Fatal(err)
	}
	text := back.markdown()
	for _, want := range []string{
		"0.90 (0.80 to 1.00) x0.43", "crio was not measured: not built", "| debian-app:a | ours-erofs | wall / containerd's | 0.429 | <= 0.42 | **not met** |",
		"of its own 1.0 MB compressed, 10.0 MB unpacked",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("report lacks %q:\n%s", want, text)
		}
	}
	chart := back.chart()
	for d := xml.NewDecoder(strings.NewReader(chart)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("chart: %v\n%s", err, chart)
		}
	}
	if n := strings.Count(chart, `<path class="l"`); n != 6 { // three pairs of image and runtime, in two panels
		t.Errorf("bars: got %d, want 6", n)
	}
	if _, err := readResult(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("reading no results: got no error")
	}
}

// TestDisturbedSamplesAreMarkedAndCounted: whoever it disturbs, the peers included.
func TestDisturbedSamplesAreMarkedAndCounted(t *testing.T) {
	r := made()
	for i := range r.Samples {
		r.Samples[i].Fetched = 105e6 // of 100e6 and, for the second image, far too much
	}
	last := &r.Samples[len(r.Samples)-2] // containerd's
	last.Wall, last.MemoryStall = 100, 60
	text := r.markdown()
	for _, want := range []string{
		"disturbed, but counted: containerd, run 0: the machine lacked memory for 60.0 of 100.0 s", "(2.00 to 100.00)",
		"fetched more than the image: ours-erofs, run 0: 105.0 MB over the loopback for 1.0 MB",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("report lacks %q:\n%s", want, text)
		}
	}
	if chart := r.chart(); !strings.Contains(chart, "up to 100") {
		t.Errorf("the chart hides the slowest pull:\n%s", chart)
	}
	if strings.Contains(text, "over the loopback for 100.0 MB") {
		t.Errorf("a twentieth more is the protocol's:\n%s", text)
	}
}

func TestOptionsNameWhatIsWrong(t *testing.T) {
	for name, tc := range map[string]struct {
		o    options
		want string
	}{
		"fine":    {options{Runs: 1, Store: "both", Only: "ours,containerd"}, ""},
		"runs":    {options{Runs: 0, Store: "both"}, "-runs"},
		"store":   {options{Runs: 1, Store: "tape"}, "-store"},
		"targets": {options{Runs: 1, Store: "erofs", Only: "docker"}, "-only"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.o.valid()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestChosenImages(t *testing.T) {
	set := &images.Set{Images: []images.Image{{Name: "bench/warm:1"}, {Name: "bench/debian-app:a"}, {Name: "bench/debian-app:b"}, {Name: "bench/node:gz"}}}
	for names, want := range map[string]int{"": 2, "node:gz": 1, "debian-app:a,node:gz": 2, "debian-app:b": -1, "none:1": -1} {
		got, err := setting{Options: options{Images: names}}.chosen(set)
		if want < 0 != (err != nil) || err == nil && len(got) != want {
			t.Errorf("%q: got %d images and %v, want %d", names, len(got), err, want)
		}
	}
	if got := sharer("bench/debian-app:a-zst"); got != "bench/debian-app:b-zst" {
		t.Errorf("sharer: got %q", got)
	}
}

// TestDisk writes a known amount to a fresh file system in a loop device.
func TestDisk(t *testing.T) {
	testkit.Need(t, testkit.Root)
	dir := t.TempDir()
	backing, err := os.OpenFile(filepath.Join(dir, "disk"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer backing.Close()
	if err := backing.Truncate(256 << 20); err != nil {
		t.Fatal(err)
	}
	d := &disk{point: filepath.Join(dir, "mount")}
	if err := os.Mkdir(d.point, 0o700); err != nil {
		t.Fatal(err)
	}
	if d.device, err = attach(backing); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	})
	for range 2 { // the second begins as empty as the first
		if err := d.fresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		used, written := figures(t, d)
		const size = 32 << 20
		if err := os.WriteFile(filepath.Join(d.point, "f"), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		usedAfter, writtenAfter := figures(t, d)
		if n := usedAfter - used; n < size || n > size+1<<20 {
			t.Errorf("used: got %d more, want about %d", n, size)
		}
		if n := writtenAfter - written; n < size || n > size+8<<20 {
			t.Errorf("written: got %d, want about %d", n, size)
		}
		if err := d.drop(); err != nil {
			t.Fatal(err)
		}
	}
}

func figures(t *testing.T, d *disk) (used, written int64) {
	t.Helper()
	if err := d.sync(); err != nil {
		t.Fatal(err)
	}
	used, err := d.used()
	if err != nil {
		t.Fatal(err)
	}
	if written, err = d.written(); err != nil {
		t.Fatal(err)
	}
	return used, written
}
