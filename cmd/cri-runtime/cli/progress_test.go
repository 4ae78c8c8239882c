package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cri-runtime/cri-runtime/image"
)

// term is a terminal of some width that knows what a screen sends. What scrolls off its
// top stays in lines.
type term struct {
	t        *testing.T
	width    int
	lines    [][]byte
	row, col int
	writes   int
}

var csi = regexp.MustCompile("^\x1b\\[([0-9]*)([A-Z])")

func (v *term) Write(p []byte) (int, error) {
	v.writes++
	n := len(p)
	for len(p) > 0 {
		for v.row >= len(v.lines) {
			v.lines = append(v.lines, nil)
		}
		if m := csi.FindSubmatch(p); m != nil {
			v.control(m[2][0], string(m[1]))
			p = p[len(m[0]):]
			continue
		}
		switch c := p[0]; c {
		case '\r':
			v.col = 0
		case '\n':
			v.row, v.col = v.row+1, 0
		case 0x1b:
			v.t.Fatalf("unknown sequence %q", p[:min(len(p), 10)])
		default:
			if v.col >= v.width-1 {
				v.t.Errorf("line %q reaches column %d of %d", v.lines[v.row], v.col+1, v.width)
			}
			for len(v.lines[v.row]) <= v.col {
				v.lines[v.row] = append(v.lines[v.row], ' ')
			}
			v.lines[v.row][v.col] = c
			v.col++
		}
		p = p[1:]
	}
	return n, nil
}

func (v *term) control(what byte, number string) {
	switch what {
	case 'A':
		n, err := strconv.Atoi(number)
		if err != nil || n > v.row {
			v.t.Fatalf("cursor goes up %q from row %d", number, v.row)
		}
		v.row -= n
	case 'K', 'J':
		v.lines[v.row] = v.lines[v.row][:min(v.col, len(v.lines[v.row]))]
		if what == 'J' {
			v.lines = v.lines[:v.row+1]
		}
	default:
		v.t.Fatalf("unknown sequence %c", what)
	}
}

func (v *term) String() string {
	return strings.TrimRight(string(bytes.Join(v.lines, []byte("\n"))), "\n")
}

func testTerm(t *testing.T, width, height int) (*term, *screen) {
	v := &term{t: t, width: width}
	return v, &screen{out: v, terminal: true, size: func() (int, int) { return width, height }}
}

// TestTerminal: what changes is drawn over what was there, with lines above that stay.
func TestTerminal(t *testing.T) {
	for _, width := range []int{80, 40} {
		v, s := testTerm(t, width, 30)
		view := newView(s, outputText)
		pulls := testPulls()
		s.say("before")
		view.update([]image.PullStatus{pulls["resolving"]})
		view.update([]image.PullStatus{pulls["pulling"]})
		s.say("between")
		view.update([]image.PullStatus{pulls["pulling"], pulls["many"]})
		before := v.writes
		view.update([]image.PullStatus{pulls["pulling"], pulls["resolving"]})
		if v.writes != before+1 {
			t.Errorf("width %d: a frame took %d writes", width, v.writes-before)
		}
		want := []string{"before", "between"}
		want = append(want, pullLines(pulls["pulling"], width, 14)...)
		want = append(want, pullLines(pulls["resolving"], width, 14)...)
		if got := v.String(); got != strings.Join(want, "\n") {
			t.Errorf("width %d: got\n%s\nwant\n%s", width, got, strings.Join(want, "\n"))
		}
		view.clear()
		s.say("after")
		if got := v.String(); got != "before\nbetween\nafter" {
			t.Errorf("width %d: at the end got\n%s", width, got)
		}
	}
}

// TestLowTerminal: what does not fit is left out, since it could not be drawn over.
func TestLowTerminal(t *testing.T) {
	for height := 2; height < 30; height++ {
		v, s := testTerm(t, 80, height)
		view := newView(s, outputText)
		view.update([]image.PullStatus{testPulls()["many"], testPulls()["pulling"]})
		if got := len(v.lines); got > height-1 {
			t.Errorf("height %d: got %d lines", height, got)
		}
	}
}

// TestPlainLines: a line for each change of a layer, and one a second for the whole.
func TestPlainLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out output
		view := newView(newScreen(&out), outputText)
		layer := image.LayerStatus{Digest: testDigest("1"), State: image.LayerWaiting, Total: 10_000_000}
		p := image.PullStatus{Ref: "r.example/x:1", Phase: image.PhasePulling, Started: epoch, Total: layer.Total, Layers: []image.LayerStatus{layer}}
		for i := range 40 { // 8 s
			l := &p.Layers[0]
			if i > 0 {
				l.State, l.Host = image.LayerDownloading, "r.example"
			}
			if i < 20 {
				p.Done += 100_000
				p.Rate = 500_000
			}
			l.Waiting = nil
			if i >= 20 && i < 30 {
				l.Waiting = &image.WaitStatus{Reason: "r.example: 503", Until: later(9 * time.Second)}
			}
			p.Seconds = float64(i) * 0.2
			view.update([]image.PullStatus{p})
			time.Sleep(200 * time.Millisecond)
		}
		p.Layers[0].State = image.LayerDone
		view.update([]image.PullStatus{p})
		view.clear()
		want := `layer     111111111111 waiting, 10.0 MB
layer     111111111111 downloading, 10.0 MB from r.example
image     r.example/x:1 6% of 10.0 MB, 500 kB/s, 1.0 s
image     r.example/x:1 11% of 10.0 MB, 500 kB/s, 2.0 s
image     r.example/x:1 16% of 10.0 MB, 500 kB/s, 3.0 s
layer     111111111111 downloading, 10.0 MB, again in 5 s: r.example: 503
image     r.example/x:1 20% of 10.0 MB, 500 kB/s, 4.0 s
layer     111111111111 downloading, 10.0 MB from r.example
layer     111111111111 done, 10.0 MB
`
		if got := out.String(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

// TestJSONLines: a line when something has moved, and each is a document.
func TestJSONLines(t *testing.T) {
	var out output
	view := newView(newScreen(&out), outputJSON)
	p := testPulls()["pulling"]
	for range 3 {
		p.Seconds++
		view.update([]image.PullStatus{p})
	}
	p.Done++
	view.update([]image.PullStatus{p})
	view.update(nil)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("got %d lines: %s", len(lines), out.String())
	}
	for i, line := range lines {
		var got image.PullStatus
		if err := json.Unmarshal([]byte(line), &got); err != nil || got.Done != p.Done-1+int64(i) || len(got.Layers) != len(p.Layers) {
			t.Errorf("line %d: got %+v, %v", i, got, err)
		}
	}
}

// TestScreenWithoutTerminal writes nothing that steers one.
func TestScreenWithoutTerminal(t *testing.T) {
	var out output
	s := newScreen(&out)
	s.show([]string{"x"})
	s.step("a", "%d", 1)
	s.show(nil)
	if got := out.String(); got != fmt.Sprintf("%-9s 1\n", "a") {
		t.Errorf("got %q", got)
	}
}
