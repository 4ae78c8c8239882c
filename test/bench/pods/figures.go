package main

import (
	"strings"

	"github.com/cri-runtime/cri-runtime/test/bench/load"
)

// figure is one number of a sample.
type figure struct {
	phase, name, unit string
	more              bool // is better
	said              bool // while measuring
	of                func(sample) (float64, bool)
}

func (f figure) key() string { return f.phase + "/" + f.name }

func (f figure) value(s sample) (float64, bool) {
	if f.phase != s.Phase && f.phase != anyPhase {
		return 0, false
	}
	return f.of(s)
}

// anyPhase is that of figures that each start of a runtime gives.
const anyPhase = "start"

// steps of a pod's life, in their order.
var (
	startSteps = []string{"RunPodSandbox", "CreateContainer", "StartContainer", "FirstLog", "Ready"}
	stopSteps  = []string{"StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox", "Teardown"}
	pollSteps  = []string{"ListPodSandbox", "ListContainers", "PodSandboxStatus", "ContainerStatus", "ListContainerStats", "ListPodSandboxStats", "round"}
)

// figures are all that is looked at, in the order of the report.
func figures() (all []figure) {
	all = append(all,
		figure{phase: anyPhase, name: "to the first answer", unit: "ms", of: func(s sample) (float64, bool) { return s.Start, s.Start > 0 }},
		figure{phase: "idle", name: "PSS", unit: "MiB", said: true, of: ofIdle(func(i idle) float64 { return mib(i.Memory[load.Total].PSS) })},
		figure{phase: "idle", name: "private dirty", unit: "MiB", of: ofIdle(func(i idle) float64 { return mib(i.Memory[load.Total].PrivateDirty) })},
		figure{phase: "idle", name: "CPU", unit: "% of a core", of: ofIdle(func(i idle) float64 { return i.CPU })},
	)
	for _, phase := range []string{"latency", "latency-host", "latency-seccomp"} {
		for _, step := range append(append([]string{}, startSteps...), stopSteps...) {
			all = append(all, figure{phase: phase, name: step, unit: "ms", said: step == "Ready" || step == "Teardown", of: median(func(s sample) load.Steps {
				if s.Latency == nil {
					return nil
				}
				return s.Latency.Steps
			}, step)})
		}
		all = append(all, figure{phase: phase, name: "CPU per pod life", unit: "ms", said: true, of: metered(of(func(s sample) *load.Latency { return s.Latency }, func(l load.Latency) float64 { return l.CPUPerPod }))})
	}
	all = append(all,
		figure{phase: "throughput", name: "pods started per second", more: true, said: true, of: ofThroughput(func(t load.Throughput) float64 { return t.StartsPerSecond })},
		figure{phase: "throughput", name: "pods removed per second", more: true, of: ofThroughput(func(t load.Throughput) float64 { return t.StopsPerSecond })},
		figure{phase: "throughput", name: "CPU per start", unit: "ms", of: metered(ofThroughput(func(t load.Throughput) float64 { return t.CPUPerStart }))},
		figure{phase: "throughput", name: "CPU per removal", unit: "ms", of: metered(ofThroughput(func(t load.Throughput) float64 { return t.CPUPerStop }))},
		figure{phase: "throughput", name: "Ready", unit: "ms", of: median(func(s sample) load.Steps {
			if s.Throughput == nil {
				return nil
			}
			return s.Throughput.Steps
		}, "Ready")},
	)
	for _, phase := range []string{"density", "density-more"} {
		all = append(all, densityFigures(phase)...)
	}
	all = append(all,
		figure{phase: "exec", name: "one after the other", unit: "ms", said: true, of: ofExec(func(e load.Exec) float64 { return e.Serial.At(0.5) })},
		figure{phase: "exec", name: "one after the other, p95", unit: "ms", of: ofExec(func(e load.Exec) float64 { return e.Serial.At(0.95) })},
		figure{phase: "exec", name: "CPU per exec", unit: "ms", of: metered(ofExec(func(e load.Exec) float64 { return e.CPUPerExec }))},
		figure{phase: "exec", name: "in parallel", unit: "ms", of: ofExec(func(e load.Exec) float64 { return e.Parallel.At(0.5) })},
		figure{phase: "exec", name: "in parallel, per second", more: true, said: true, of: ofExec(func(e load.Exec) float64 { return e.PerSecond })},
		figure{phase: "logs", name: "MB per second", more: true, said: true, of: ofLogs(func(l load.Logs) float64 { return l.MBps })},
		figure{phase: "logs", name: "CPU per GB", unit: "s", said: true, of: metered(ofLogs(func(l load.Logs) float64 { return l.CPUPerGB }))},
		figure{phase: "logs", name: "lines lost, torn or out of order", of: ofLogs(func(l load.Logs) float64 { return float64(l.Bad) })},
		figure{phase: "logs", name: "lines split", unit: "%", of: ofLogs(func(l load.Logs) float64 { return 100 * float64(l.Partial) / float64(max(1, l.Lines)) })},
	)
	for _, phase := range []string{"restart", "restart-more"} {
		all = append(all,
			figure{phase: phase, name: "to a complete list", unit: "ms", said: true, of: ofRestart(func(r load.Restart) float64 { return r.Complete })},
			figure{phase: phase, name: "to the first answer", unit: "ms", of: ofRestart(func(r load.Restart) float64 { return r.FirstList })},
			figure{phase: phase, name: "what is not as before", of: ofRestart(notAsBefore)},
		)
	}
	return append(all,
		figure{phase: "counts", name: "programs executed per pod life", said: true, of: ofCounts(func(c counts) int { return sum(c.Programs) })},
		figure{phase: "counts", name: "processes made per pod life, the pod's own included", of: ofCounts(func(c counts) int { return c.Processes })},
		figure{phase: "counts", name: "fsync, fdatasync and the like per pod life", said: true, of: ofCounts(func(c counts) int { return sum(c.Syncs) })},
	)
}

func densityFigures(phase string) (all []figure) {
	all = []figure{
		{phase: phase, name: "Ready", unit: "ms", said: true, of: ofDensity(func(d load.Density) float64 { return d.Ready.At(0.5) })},
		{phase: phase, name: "Ready of the last ten pods / of the first ten", of: ofDensity(func(d load.Density) float64 {
			first, last := d.FirstAndLast()
			return last / first
		})},
		{phase: phase, name: "CPU per start", unit: "ms", of: metered(ofDensity(func(d load.Density) float64 { return d.CPUPerPod }))},
		{phase: phase, name: "PSS per pod", unit: "KiB", said: true, of: ofMemory(func(m load.Memory) int64 { return m.PSS })},
		{phase: phase, name: "private dirty per pod", unit: "KiB", of: ofMemory(func(m load.Memory) int64 { return m.PrivateDirty })},
		{phase: phase, name: "processes per pod", of: ofMemory(func(m load.Memory) int64 { return int64(m.Processes) })},
		{phase: phase, name: "PSS with all pods", unit: "MiB", of: ofMemoryOf(func(d load.Density) float64 { return mib(d.After[load.Total].PSS) })},
		{phase: phase, name: "PSS after their removal", unit: "MiB", of: ofMemoryOf(func(d load.Density) float64 { return mib(d.AfterTeardown[load.Total].PSS) })},
		{phase: phase, name: "CPU while nobody asks", unit: "% of a core", of: ofMemoryOf(func(d load.Density) float64 { return d.IdleCPU })},
		{phase: phase, name: "CPU polled each second", unit: "% of a core", said: true, of: ofMemoryOf(func(d load.Density) float64 { return d.PollCPU })},
	}
	for _, step := range pollSteps {
		all = append(all, figure{phase: phase, name: strings.Replace(step, "round", "whole round of polling", 1), unit: "ms", of: median(func(s sample) load.Steps {
			if s.Density == nil {
				return nil
			}
			return s.Density.Poll
		}, step)})
	}
	return append(all, figure{phase: phase, name: "Teardown", unit: "ms", of: ofDensity(func(d load.Density) float64 { return d.Teardown.At(0.5) })})
}

func mib(kib int64) float64 { return float64(kib) / 1024 }

// median of one step.
func median(steps func(sample) load.Steps, step string) func(sample) (float64, bool) {
	return func(s sample) (float64, bool) {
		v := steps(s)[step]
		return v.At(0.5), len(v) > 0
	}
}

func of[T any](part func(sample) *T, f func(T) float64) func(sample) (float64, bool) {
	return func(s sample) (float64, bool) {
		v := part(s)
		if v == nil {
			return 0, false
		}
		return f(*v), true
	}
}

// metered is a figure of CPU: work takes some, and 0 means that nobody measured.
func metered(f func(sample) (float64, bool)) func(sample) (float64, bool) {
	return func(s sample) (float64, bool) {
		v, ok := f(s)
		return v, ok && v > 0
	}
}

func ofIdle(f func(idle) float64) func(sample) (float64, bool) {
	return of(func(s sample) *idle { return s.Idle }, f)
}

func ofThroughput(f func(load.Throughput) float64) func(sample) (float64, bool) {
	return of(func(s sample) *load.Throughput { return s.Throughput }, f)
}

func ofDensity(f func(load.Density) float64) func(sample) (float64, bool) {
	return of(func(s sample) *load.Density { return s.Density }, f)
}

// ofMemoryOf needs a Meter: somebody else's runtime has none.
func ofMemoryOf(f func(load.Density) float64) func(sample) (float64, bool) {
	return func(s sample) (float64, bool) {
		if s.Density == nil || s.Density.Before[load.Total].Processes == 0 {
			return 0, false
		}
		return f(*s.Density), true
	}
}

// ofMemory is what each pod adds.
func ofMemory(f func(load.Memory) int64) func(sample) (float64, bool) {
	return ofMemoryOf(func(d load.Density) float64 {
		return float64(f(d.After[load.Total])-f(d.Before[load.Total])) / float64(d.Pods)
	})
}

func ofExec(f func(load.Exec) float64) func(sample) (float64, bool) {
	return of(func(s sample) *load.Exec { return s.Exec }, f)
}

func ofLogs(f func(load.Logs) float64) func(sample) (float64, bool) {
	return of(func(s sample) *load.Logs { return s.Logs }, f)
}

func ofRestart(f func(load.Restart) float64) func(sample) (float64, bool) {
	return of(func(s sample) *load.Restart { return s.Restart }, f)
}

func ofCounts(f func(counts) int) func(sample) (float64, bool) {
	return of(func(s sample) *counts { return s.Counts }, func(c counts) float64 { return float64(f(c)) / float64(c.Pods) })
}

// notAsBefore counts what a restart has broken.
func notAsBefore(r load.Restart) (n float64) {
	for _, fine := range []bool{r.ExecWorks, r.LogGoesOn, r.SamePIDs, r.Sandboxes == r.Pods, r.Containers == r.Pods} {
		if !fine {
			n++
		}
	}
	return n
}
