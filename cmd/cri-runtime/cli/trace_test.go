package cli

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/cri/admin"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// begun is in the zone that is printed.
var begun = time.Date(2026, 11, 21, 15, 4, 5, 250e6, time.Local) //nolint:gosmopolitan // times are printed for people

const ms = time.Millisecond

func traceOp(name string, at time.Duration, steps ...admin.Step) admin.TraceOp {
	op := admin.TraceOp{}
	op.Name, op.Begun, op.Steps = name, begun.Add(at), steps
	return op
}

func step(name string, took time.Duration) admin.Step { return admin.Step{Name: name, Took: took} }

// testTraces has a start that went well, one that hangs, and one that failed.
func testTraces() map[string]*admin.Trace {
	pull := traceOp("PullImage", 6*ms, step("resolving", 20*ms), step("pulling", 60*ms), step("publishing", 1*ms))
	pull.Container, pull.Image = "web", "example.com/web:1"
	create := traceOp("CreateContainer", 88*ms, step("find image", 100*time.Microsecond), step("mount root", 900*time.Microsecond))
	create.Container = "web"
	start := traceOp("StartContainer", 90*ms, step("make cgroup", 1*ms), step("launch", 3*ms))
	first := begun.Add(97 * ms)
	start.Container, start.FirstLog = "web", &first
	late := begun.Add(time.Minute)
	sidecar := traceOp("StartContainer", 92*ms, step("launch", 3*ms))
	sidecar.Container, sidecar.FirstLog = "quiet", &late
	later := traceOp("StartContainer", time.Hour, step("launch", 2*ms))
	later.Container, later.Attempt = "web", 3
	run := traceOp("RunPodSandbox", 0, step("make cgroup", 500*time.Microsecond), step("hidden", 9*time.Microsecond), step("attach network", 4491*time.Microsecond))
	good := &admin.Trace{Pod: "0123456789abcdef0123", Namespace: "default", Name: "web", State: "ready", Ops: []admin.TraceOp{run, pull, create, start, sidecar, later}}

	hangs := traceOp("RunPodSandbox", 0, step("make cgroup", 1*ms), step("attach network", 12*time.Second))
	hangs.Running, hangs.Waits, hangs.Joined = true, "plugin bridge (process 123)", 2
	fails := traceOp("RunPodSandbox", 0, step("make cgroup", 1*ms), step("attach network", 9*ms))
	fails.Error = "attach network: plugin bridge: no \x1b[31maddress left & <none>"
	return map[string]*admin.Trace{
		"good":  good,
		"hangs": {Pod: "0123456789abcdef0123", Namespace: "default", Name: "web", State: "creating", Ops: []admin.TraceOp{hangs}},
		"fails": {Namespace: "default", Name: "web", State: "failed", Ops: []admin.TraceOp{fails}},
		"empty": {Pod: "01", Namespace: "default", Name: "old", State: "ready"},
	}
}

// fakeTraces is behind a real admin server.
type fakeTraces map[string]*admin.Trace

func (f fakeTraces) Trace(name string) (*admin.Trace, error) {
	if t := f[name]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("pod %s: %w", name, errdef.ErrNotFound)
}

func TestTraceCommand(t *testing.T) {
	_, socket := startAdmin(t)
	var out output
	for name, want := range map[string][]string{
		"good":  {"default/web  0123456789ab  ready, 2026-11-21 15:04:05", "0.00 ms  5.00 ms  RunPodSandbox", "  publishing", "StartContainer web (attempt 3)"},
		"hangs": {"not over, asked for 2 more times", "attach network  so far; plugin bridge (process 123)"},
		"fails": {"failed", "attach network  attach network: plugin bridge: no [31maddress left"},
		"empty": {"default/old"},
	} {
		out = output{}
		if err := execute(t.Context(), &out, "trace", "--admin", socket, name); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s: got\n%s, want %q in it", name, out.String(), w)
			}
		}
		if strings.Contains(out.String(), "hidden") {
			t.Errorf("%s: a part of no length has a line", name)
		}
		if strings.Contains(out.String(), "\x1b") {
			t.Errorf("%s: an error steers the terminal", name)
		}
		out = output{}
		var doc admin.Trace
		if err := errors.Join(execute(t.Context(), &out, "trace", "--admin", socket, name, "-o", "json"), json.Unmarshal([]byte(out.String()), &doc)); err != nil {
			t.Errorf("%s: JSON: %v", name, err)
		}
		if doc.Name != testTraces()[name].Name || len(doc.Ops) != len(testTraces()[name].Ops) {
			t.Errorf("%s: JSON: got %+v", name, doc)
		}
	}
	if err := execute(t.Context(), &out, "trace", "--admin", socket, "nobody"); err == nil || !strings.Contains(err.Error(), "pod nobody: not found") {
		t.Errorf("got %v", err)
	}
	if err := execute(t.Context(), &out, "trace", "x", "-o", "yaml"); err == nil || !strings.Contains(err.Error(), "--output") {
		t.Errorf("unknown output: got %v", err)
	}
}

// What a terminal shows, at three widths: no line is wider but those that say what went wrong.
func TestTraceBars(t *testing.T) {
	for _, width := range []int{40, 80, 120} {
		var b strings.Builder
		for _, name := range []string{"good", "hangs", "fails", "empty"} {
			for _, line := range traceBars(testTraces()[name], width) {
				if len(line) > width && !strings.HasPrefix(line, "    ") {
					t.Errorf("%d columns in %q", len(line), line)
				}
				b.WriteString(line + "\n")
			}
			b.WriteString("\n")
		}
		testkit.Golden(t, fmt.Sprintf("trace%d.txt", width), []byte(b.String()))
	}
}

// The picture is well-formed, has no script, and refers to nothing outside.
func TestTraceSVG(t *testing.T) {
	for name, tr := range testTraces() {
		svg := traceSVG(tr)
		dec := xml.NewDecoder(strings.NewReader(svg))
		for {
			tok, err := dec.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if el, ok := tok.(xml.StartElement); ok && (el.Name.Local == "script" || el.Name.Local == "image" || el.Name.Local == "a") {
				t.Errorf("%s: has a %s", name, el.Name.Local)
			}
		}
		for _, w := range []string{"prefers-color-scheme:dark", "default/"} {
			if !strings.Contains(svg, w) {
				t.Errorf("%s: no %q", name, w)
			}
		}
	}
	testkit.Golden(t, "trace.svg", []byte(traceSVG(testTraces()["good"])))
}

// What begins long after all else has an axis of its own.
func TestSections(t *testing.T) {
	s := sections(testTraces()["good"])
	if len(s) != 2 || s[0].span != 97*ms || !s[0].rows[len(s[0].rows)-1].beyond || s[1].span != 2*ms || len(s[1].rows) != 2 {
		t.Errorf("got %+v", s)
	}
}

func TestTicks(t *testing.T) {
	for span, want := range map[time.Duration]string{
		97 * ms: "[0s 20ms 40ms 60ms 80ms]", 5 * ms: "[0s 1ms 2ms 3ms 4ms 5ms]", 12 * time.Second: "[0s 2s 4s 6s 8s 10s 12s]", 0: "[]",
	} {
		if got := fmt.Sprint(ticks(span, 6)); got != want {
			t.Errorf("%v: got %s, want %s", span, got, want)
		}
	}
}
