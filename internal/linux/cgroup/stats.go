package cgroup

import "time"

// Stats is one reading of a cgroup. Nil pointers: the kernel does not have it.
type Stats struct {
	Time   time.Time
	CPU    CPUStats
	Memory MemoryStats
	Swap   SwapStats
	IO     IOStats
}

// CPUStats are times in nanoseconds.
type CPUStats struct {
	Usage uint64
	PSI   *Pressure
}

// MemoryStats are bytes and counts.
type MemoryStats struct {
	Usage      uint64
	WorkingSet uint64 // usage less the inactive file pages, as the kubelet evicts by it
	RSS        uint64
	Limit      uint64 // 0: unlimited
	Available  uint64 // limit less working set; 0 when unlimited
	PageFaults uint64
	MajorFault uint64
	PSI        *Pressure
}

// SwapStats are bytes.
type SwapStats struct {
	Usage     uint64
	Limit     uint64 // 0: unlimited or unknown
	Available uint64
	Known     bool // the kernel accounts swap for this cgroup
}

// IOStats are about all devices together.
type IOStats struct{ PSI *Pressure }

// Pressure is the stall information of one resource.
type Pressure struct{ Some, Full PressureLine }

// PressureLine has averages in percent and a total in microseconds.
type PressureLine struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}
