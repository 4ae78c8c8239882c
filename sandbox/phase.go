package sandbox

import (
	"fmt"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Phase is where a pod is in its life. The zero value is invalid.
type Phase int

// The phases of a pod. Stopped is the only one in which nothing of it is left in the
// kernel.
const (
	PodCreating Phase = iota + 1
	PodRunning
	PodStopping
	PodStopped
)

var phaseNames = map[Phase]string{PodCreating: "creating", PodRunning: "ready", PodStopping: "stopping", PodStopped: "stopped"}

// String is the phase's name in messages.
func (p Phase) String() string { return nameOf(phaseNames, p) }

type podEvent int

const (
	podSetUp podEvent = iota + 1
	podStopAsked
	podTornDown
)

var podEventNames = map[podEvent]string{podSetUp: "set up", podStopAsked: "stop", podTornDown: "torn down"}

func (e podEvent) String() string { return nameOf(podEventNames, e) }

// nextPod holds every legal step of a pod's life.
func nextPod(p Phase, e podEvent) (Phase, error) {
	switch {
	case p == PodCreating && e == podSetUp:
		return PodRunning, nil
	case p != PodStopped && p != 0 && e == podStopAsked:
		return PodStopping, nil
	case p == PodStopping && e == podTornDown:
		return PodStopped, nil
	}
	return p, fmt.Errorf("%v a pod that is %v: %w", e, p, errdef.ErrPhase)
}

// ContainerPhase is where a container is in its life. The zero value is invalid.
type ContainerPhase int

// The phases of a container. Starting is committed before anything runs, so that a
// restarted daemon knows that a process may exist.
const (
	PhaseCreating ContainerPhase = iota + 1
	PhaseCreated
	PhaseStarting
	PhaseRunning
	PhaseExited
)

var containerPhaseNames = map[ContainerPhase]string{
	PhaseCreating: "creating", PhaseCreated: "created", PhaseStarting: "starting", PhaseRunning: "running", PhaseExited: "exited",
}

// String is the phase's name in messages.
func (p ContainerPhase) String() string { return nameOf(containerPhaseNames, p) }

type containerEvent int

const (
	ctrPrepared containerEvent = iota + 1
	ctrStartAsked
	ctrStarted
	ctrNotStarted // the start was cut off before a process existed
	ctrExited
)

var containerEventNames = map[containerEvent]string{
	ctrPrepared: "finish creating", ctrStartAsked: "start", ctrStarted: "run", ctrNotStarted: "take back the start of", ctrExited: "end",
}

func (e containerEvent) String() string { return nameOf(containerEventNames, e) }

// nextContainer holds every legal step of a container's life.
func nextContainer(p ContainerPhase, e containerEvent) (ContainerPhase, error) {
	switch {
	case p == PhaseCreating && e == ctrPrepared:
		return PhaseCreated, nil
	case p == PhaseCreated && e == ctrStartAsked:
		return PhaseStarting, nil
	case p == PhaseStarting && e == ctrStarted:
		return PhaseRunning, nil
	case p == PhaseStarting && e == ctrNotStarted:
		return PhaseCreated, nil
	case (p == PhaseStarting || p == PhaseRunning) && e == ctrExited:
		return PhaseExited, nil
	}
	return p, fmt.Errorf("%v a container that is %v: %w", e, p, errdef.ErrPhase)
}

func nameOf[K comparable](names map[K]string, k K) string {
	if s, ok := names[k]; ok {
		return s
	}
	return "in no known phase"
}
