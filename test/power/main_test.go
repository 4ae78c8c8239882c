package power

import (
	"os"
	"testing"

	"github.com/cri-runtime/cri-runtime/test/container/node"
)

// long makes the rounds many: CRI_SOAK, as in package image.
var long = os.Getenv("CRI_SOAK") != ""

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" { // in namespaces already, and no test
		os.Exit(worker(os.Getenv(workerEnv)))
	}
	os.Exit(node.Main(m, "power"))
}
