package container

import (
	"os"
	"testing"

	"github.com/cri-runtime/cri-runtime/test/container/node"
)

func TestMain(m *testing.M) { os.Exit(node.Main(m, "container")) }
