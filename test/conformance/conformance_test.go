package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/test/lab"
)

// What critest v1.36.0 holds. A runtime that reports fewer features skips specs of
// its own accord, so the number that passed is what counts. Where the kernel has
// SELinux, 17 more are registered.
const (
	validation = 117
	benchmarks = 5
	appArmor   = 9
)

// suiteLimit is how long one run may take on a slow machine.
const suiteLimit = 15 * time.Minute

func TestConformance(t *testing.T) {
	if *benchmark {
		t.Skip("-benchmark is given")
	}
	// Serially over the layer store that the kernel is best at, then at once over the other.
	if *serial > 0 {
		t.Run("auto", func(t *testing.T) {
			n := startNode(t, "auto")
			before := n.warmUp(t)
			for i := range *serial {
				t.Run(fmt.Sprintf("serial-%d", i+1), func(t *testing.T) {
					n.checkSuite(t, n.run(t))
					n.checkClean(t, before)
				})
			}
		})
	}
	if *workers > 1 {
		t.Run("directory", func(t *testing.T) {
			n := startNode(t, "directory")
			before := n.warmUp(t)
			t.Run(fmt.Sprintf("workers-%d", *workers), func(t *testing.T) {
				n.checkSuite(t, n.run(t, fmt.Sprintf("-parallel=%d", *workers)))
				n.checkClean(t, before)
			})
		})
	}
}

// TestBenchmark runs critest's benchmark mode: it must work; the figures are
// promised elsewhere, as this machine is not idle.
func TestBenchmark(t *testing.T) {
	if !*benchmark {
		t.Skip("give -benchmark to run it")
	}
	n := startNode(t, "auto")
	before := n.warmUp(t)
	out := filepath.Join(n.Dir, "benchmarks")
	params := filepath.Join(n.Dir, "params.yaml")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	var body strings.Builder
	for _, kind := range []string{"containers", "pods", "images"} {
		fmt.Fprintf(&body, "%[1]sNumber: 10\n%[1]sNumberParallel: 1\n", kind)
	}
	for _, kind := range []string{"container", "pod", "image", "podContainerStart"} {
		fmt.Fprintf(&body, "%sBenchmarkTimeoutSeconds: 60\n", kind)
	}
	if err := os.WriteFile(params, []byte(body.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	specs := n.run(t, "-benchmark", "-benchmarking-params-file="+params, "-benchmarking-output-dir="+out)
	if got := specs.count("passed"); got != benchmarks || specs.failed() != 0 {
		t.Errorf("benchmarks: got %d passed and %d failed, want %d and 0", got, specs.failed(), benchmarks)
	}
	n.checkClean(t, before)
}

// spec is one of ginkgo's reports.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeText            string
	LeafNodeType            string
	State                   string
	RunTime                 time.Duration
	Failure                 struct {
		Message        string
		ForwardedPanic string
		Location       struct {
			FileName   string
			LineNumber int
		}
	}
	CapturedGinkgoWriterOutput string
}

func (s spec) name() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

type specs []spec

func (all specs) count(state string) (n int) {
	for _, s := range all {
		if s.State == state {
			n++
		}
	}
	return n
}

func (all specs) failed() int {
	return len(all) - all.count("passed") - all.count("skipped")
}

// run runs critest and returns its specs; it logs those that failed, as errors.
func (n *node) run(t *testing.T, args ...string) specs {
	t.Helper()
	dir := filepath.Join(n.Dir, "run-"+filepath.Base(t.Name()))
	report, tmp := filepath.Join(dir, "report.json"), filepath.Join(dir, "tmp")
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	args = append(args, "-runtime-endpoint=unix://"+n.Socket, "-ginkgo.no-color", "-ginkgo.json-report="+report, "-test.timeout=0")
	if *focus != "" {
		args = append(args, "-ginkgo.focus="+*focus)
	}
	if *handler != "" {
		args = append(args, "-runtime-handler="+*handler)
	}
	ctx, cancel := context.WithTimeout(t.Context(), suiteLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.critest(), args...)
	cmd.Dir = dir // critest reads a crictl.yaml from the parent of its working directory
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "PATH="+n.tools+":"+os.Getenv("PATH"))
	start := time.Now()
	out, runErr := cmd.CombinedOutput()
	took := time.Since(start).Round(time.Second)
	_ = os.WriteFile(filepath.Join(dir, "output"), out, 0o600)
	body, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("critest left no report: %v, %v\n%s", runErr, ctx.Err(), out[max(0, len(out)-4000):])
	}
	all, err := parse(body)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("critest: %d passed, %d failed, %d skipped in %s", all.count("passed"), all.failed(), all.count("skipped"), took)
	for _, s := range all {
		if s.State != "passed" && s.State != "skipped" {
			t.Errorf("%s: %s (%.1f s)\n%s:%d: %s%s", s.State, s.name(), s.RunTime.Seconds(), s.Failure.Location.FileName,
				s.Failure.Location.LineNumber, s.Failure.Message, s.Failure.ForwardedPanic)
		}
	}
	if runErr != nil && all.failed() == 0 {
		t.Errorf("critest: %v\n%s", runErr, out[max(0, len(out)-4000):])
	}
	return all
}

// parse takes the specs out of a JSON report; set-up nodes count when they failed.
func parse(report []byte) (specs, error) {
	var suites []struct{ SpecReports specs }
	if err := json.NewDecoder(bytes.NewReader(report)).Decode(&suites); err != nil {
		return nil, fmt.Errorf("read critest's report: %w", err)
	}
	var all specs
	for _, suite := range suites {
		for _, s := range suite.SpecReports {
			if s.LeafNodeType == "It" || s.State != "passed" {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// checkSuite holds a full run to the number that must pass, and what was
// skipped to what this machine cannot run.
func (n *node) checkSuite(t *testing.T, all specs) {
	t.Helper()
	if *focus != "" {
		return
	}
	want := validation
	if !appArmorOn() {
		want -= appArmor
	}
	if got := all.count("passed"); got < want || all.failed() != 0 {
		t.Errorf("got %d passed and %d failed, want %d and 0", got, all.failed(), want)
	}
	for _, s := range all {
		name := s.name()
		if s.State != "skipped" || strings.Contains(strings.ToLower(name), "benchmark") {
			continue
		}
		if appArmorOn() || !strings.Contains(name, "AppArmor") {
			t.Errorf("skipped: %s: %s", name, s.Failure.Message)
		}
	}
}

func appArmorOn() bool {
	body, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(body), "Y")
}

// checkClean looks for pods and containers that the suite could not remove, for
// images that cannot be removed, and for kernel objects that nobody owns any more.
func (n *node) checkClean(t *testing.T, before lab.Snapshot) {
	t.Helper()
	for _, args := range [][]string{{"pods", "-q"}, {"ps", "-aq"}} {
		if out, err := n.crictl(t.Context(), args...); err != nil || out != "" {
			t.Errorf("crictl %s after the suite: got %q, %v, want nothing", strings.Join(args, " "), out, err)
		}
	}
	if _, err := n.crictl(t.Context(), "rmi", "-a"); err != nil {
		t.Error(err)
	}
	lab.CheckLeaks(t, n.State, before)
}

// TestParse keeps the count honest: what neither passed nor was skipped failed.
func TestParse(t *testing.T) {
	all, err := parse([]byte(`[{"SpecReports": [
		{"LeafNodeType": "BeforeSuite", "State": "passed"},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["[k8s.io] Image Manager"], "LeafNodeText": "works", "State": "passed"},
		{"LeafNodeType": "It", "State": "skipped"}, {"LeafNodeType": "It", "State": "panicked"},
		{"LeafNodeType": "It", "State": "timedout"}, {"LeafNodeType": "AfterSuite", "State": "failed"}]}]`))
	if err != nil {
		t.Fatal(err)
	}
	if got := []int{len(all), all.count("passed"), all.count("skipped"), all.failed()}; !slices.Equal(got, []int{5, 1, 1, 3}) {
		t.Errorf("total, passed, skipped, failed: got %v, want [5 1 1 3]", got)
	}
	if got := all[0].name(); got != "[k8s.io] Image Manager works" {
		t.Errorf("name: got %q", got)
	}
}
