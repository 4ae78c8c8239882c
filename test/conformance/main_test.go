package conformance

import (
	"flag"
	"os"
	"testing"

	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

var (
	serial    = flag.Int("serial", 1, "how many times critest runs with one worker")
	workers   = flag.Int("workers", 4, "workers of one more run of critest; 0: no such run")
	focus     = flag.String("focus", "", "run only the specs that match, and expect no certain number of them")
	benchmark = flag.Bool("benchmark", false, "run critest's benchmarks instead")
	handler   = flag.String("handler", "", "runtime handler to test: runc or crun; empty: the daemon's own launcher")
	keep      = flag.Bool("keep", false, "keep logs and reports, and say where they are")
	bin       = flag.String("bin", "", "directory of the daemon and monitor to test; empty: build them from this tree")
	toolDir   = flag.String("tools", "", "directory of the test tools; empty: what hack/testtools.sh made")
	serve     = flag.String("serve", "", "command line of another runtime, with {root} {state} {socket} {hosts} {cgroup} to be filled in")
)

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, func() lab.Needs {
		n := lab.Needs{
			Name: "conformance", Tools: []string{"critest", "crictl", "ginkgo", "runc", "cni"}, Bin: *bin, ToolIn: *toolDir, Keep: *keep,
			Images: catalogue.Critest,
		}
		if *serve != "" && n.Bin == "" {
			n.Bin = "/nonexistent" // nothing of ours is run
		}
		return n
	}))
}
