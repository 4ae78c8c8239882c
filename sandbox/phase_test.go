package sandbox

import (
	"errors"
	"testing"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func TestEveryPodPhaseAgainstEveryEvent(t *testing.T) {
	legal := map[Phase]map[podEvent]Phase{
		PodCreating: {podSetUp: PodRunning, podStopAsked: PodStopping},
		PodRunning:  {podStopAsked: PodStopping},
		PodStopping: {podStopAsked: PodStopping, podTornDown: PodStopped},
	}
	for p := Phase(0); p <= PodStopped; p++ {
		for e := podEvent(0); e <= podTornDown; e++ {
			got, err := nextPod(p, e)
			check(t, p, e, got, err, legal[p])
		}
	}
}

func TestEveryContainerPhaseAgainstEveryEvent(t *testing.T) {
	legal := map[ContainerPhase]map[containerEvent]ContainerPhase{
		PhaseCreating: {ctrPrepared: PhaseCreated},
		PhaseCreated:  {ctrStartAsked: PhaseStarting},
		PhaseStarting: {ctrStarted: PhaseRunning, ctrNotStarted: PhaseCreated, ctrExited: PhaseExited},
		PhaseRunning:  {ctrExited: PhaseExited},
	}
	for p := ContainerPhase(0); p <= PhaseExited; p++ {
		for e := containerEvent(0); e <= ctrExited; e++ {
			got, err := nextContainer(p, e)
			check(t, p, e, got, err, legal[p])
		}
	}
}

func check[P, E comparable](t *testing.T, p P, e E, got P, err error, legal map[E]P) { //nolint:revive // a table's row
	t.Helper()
	want, ok := legal[e]
	if ok && (err != nil || got != want) {
		t.Errorf("%v + %v: got %v, %v, want %v", p, e, got, err, want)
	}
	if !ok && (!errors.Is(err, errdef.ErrPhase) || got != p) {
		t.Errorf("%v + %v: got %v, %v, want it refused", p, e, got, err)
	}
}
