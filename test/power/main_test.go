package power

import (
	"flag"
	"os"
	"testing"

	"github.com/cri-runtime/cri-runtime/test/container/node"
)

var long = flag.Bool("long", false, "hundreds of rounds, many minutes")

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" { // in namespaces already, and no test
		os.Exit(worker(os.Getenv(workerEnv)))
	}
	os.Exit(node.Main(m, "power"))
}
