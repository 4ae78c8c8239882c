package cli

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func testDigest(c string) image.Digest { return image.Digest("sha256:" + strings.Repeat(c, 64)) }

func later(d time.Duration) *time.Time { return new(epoch.Add(d)) }

// testPulls are pulls in every state that people see.
func testPulls() map[string]image.PullStatus {
	layers := []image.LayerStatus{
		{Digest: testDigest("1"), State: image.LayerShared, Total: 30_000_000, Done: 30_000_000},
		{Digest: testDigest("2"), State: image.LayerDone, Total: 1234, Done: 1234, Unpacked: 10_240, Host: "registry.example"},
		{Digest: testDigest("3"), State: image.LayerDownloading, Total: 27_400_000, Done: 12_330_000, Rate: 8_140_000, Host: "mirror.example"},
		{Digest: testDigest("4"), State: image.LayerDownloading, Total: 1_500_000_000, Done: 999_600_000, Rate: 999_400},
		{Digest: testDigest("5"), State: image.LayerUnpacking, Total: 104_857_600, Done: 104_857_600},
		{Digest: testDigest("6"), State: image.LayerDownloading, Total: 900, Done: 450, Waiting: &image.WaitStatus{
			Reason: "registry.example: 429 Too Many Requests: \"slow \x1b[2Jdown\"", Until: later(15*time.Second + time.Millisecond),
		}},
		{Digest: testDigest("7"), State: image.LayerWaiting, Total: 5_000_000},
		{Digest: testDigest("8"), State: image.LayerWaiting, Total: 5_000_000, Waiting: &image.WaitStatus{Reason: "another pull transfers it"}},
		{Digest: testDigest("9"), State: image.LayerFailed, Total: 5_000_000},
		{Digest: testDigest("0"), State: image.LayerDownloading},
	}
	pulling := image.PullStatus{Number: 3, Ref: "registry.example/team/application:1.2.3", Phase: image.PhasePulling, Started: epoch, Seconds: 3.21, Layers: layers}
	for _, l := range layers {
		pulling.Total += l.Total
		pulling.Done += l.Done
		pulling.Rate += l.Rate
	}
	many := pulling
	many.Layers = nil
	for i := range 30 {
		l := layers[i%3]
		l.Digest = image.Digest(fmt.Sprintf("sha256:%012d%052d", i, 0))
		many.Layers = append(many.Layers, l)
	}
	at := image.PullStatus{Ref: "docker.io/library/busybox:1.37", Started: epoch}
	with := func(change func(p *image.PullStatus)) image.PullStatus {
		p := at
		change(&p)
		return p
	}
	return map[string]image.PullStatus{
		"pulling": pulling, "many": many,
		"resolving": with(func(p *image.PullStatus) {
			p.Phase, p.Seconds = image.PhaseResolving, 65
			p.Waiting = &image.WaitStatus{Reason: "mirror.example: connection refused", Until: later(66 * time.Second)}
		}),
		"publishing": with(func(p *image.PullStatus) { p.Phase, p.Seconds = image.PhasePublishing, 0.05 }),
		"done":       with(func(p *image.PullStatus) { p.Phase, p.Seconds, p.Total = image.PhaseDone, 754, 2_220_000 }),
		"failed": with(func(p *image.PullStatus) {
			p.Phase, p.Seconds, p.Error = image.PhaseFailed, 1.5, "get manifest docker.io/library/busybox:1.37: registry-1.docker.io: 401\nUnauthorized"
		}),
		"long name": with(func(p *image.PullStatus) {
			p.Ref, p.Phase = "registry.example/"+strings.Repeat("deep/", 30)+"name@"+string(testDigest("a")), image.PhasePulling
		}),
		"wide letters": with(func(p *image.PullStatus) { p.Phase, p.Error = image.PhaseFailed, strings.Repeat("ü", 100) }),
	}
}

// TestScreens compares what a terminal shows with what was looked at: 80 and 40 columns.
func TestScreens(t *testing.T) {
	for _, width := range []int{80, 40} {
		var out strings.Builder
		pulls := testPulls()
		names := []string{"resolving", "pulling", "many", "publishing", "done", "failed", "long name", "wide letters"}
		if len(names) != len(pulls) {
			t.Fatal("a screen is missing")
		}
		for _, name := range names {
			fmt.Fprintf(&out, "--- %s\n", name)
			for _, line := range pullLines(pulls[name], width, 12) {
				fmt.Fprintln(&out, line)
			}
		}
		testkit.Golden(t, fmt.Sprintf("screen%d.txt", width), []byte(out.String()))
	}
}

// TestNoLineIsTooLong at any width, nor has one a control character in it.
func TestNoLineIsTooLong(t *testing.T) {
	for name, p := range testPulls() {
		for width := 1; width < 200; width++ {
			for _, height := range []int{1, 5, 50} {
				lines := pullLines(p, width, height)
				if len(lines) > max(height, 3) {
					t.Fatalf("%s: %d lines at height %d", name, len(lines), height)
				}
				if i := slices.IndexFunc(lines, func(l string) bool { return len(l) > max(width-1, 1) || printable(l) != l }); i >= 0 {
					t.Fatalf("%s: at width %d: %q has %d columns", name, width, lines[i], len(lines[i]))
				}
			}
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 12_345: "12.3 kB", 99_949: "99.9 kB", 99_951: "100 kB", 999_499: "999 kB", 999_500: "1.0 MB",
		123_456_789: "123 MB", 5_550_000_000: "5.5 GB", 1 << 62: "4612 PB",
	} {
		if got := size(n); got != want || len(got) > 7 {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}
