package runtime

import (
	"context"
	"errors"
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/pidfd"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// The id of a container's process may belong to another process by the time of an exec,
// one of the host for instance, whose namespaces the command must not get.
func TestExecKnowsItsContainerAgain(t *testing.T) {
	testkit.Need(t, testkit.Root)
	host, err := cgroup.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	parent, err := host.Create(testkit.CgroupParent(t).Join("exec"), cgroup.Resources{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := parent.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	start, err := pidfd.StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	process := &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"}
	spec := &specs.Spec{Version: specs.Version, Process: process, Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}}}
	b := NewBuiltin(nil, host, Features{})
	_, err = b.Exec(t.Context(), Exec{ID: "e", PID: os.Getpid(), StartTime: start + 1, Spec: spec, Process: process, Group: parent})
	if !errors.Is(err, errdef.ErrPhase) {
		t.Errorf("got %v, want %v", err, errdef.ErrPhase)
	}
}
