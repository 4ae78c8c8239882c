// Package load measures a CRI v1 runtime through its socket, the way a kubelet uses it. It
// knows nothing about any particular runtime: what one costs is read by a Meter.
//
// It waits for log lines by inotify, so that on a machine with two processors the client
// does not take the time that it measures. The caller must be outside of what a Meter counts.
//
// Each measurement starts its own pods and removes them again, also when it fails. It refuses
// pods outside its own namespace. It writes log directories below Options.LogDir only.
// Goroutines are waited for by the call that started them.
package load

import "time"

// Options say what the pods look like. They are like a kubelet's: two file mounts,
// environment, DNS, a log directory, a cgroup parent.
type Options struct {
	Socket       string // of the runtime
	Image        string // has the workload as /bench, and /bin/true
	Handler      string // runtime handler; "" is the default one
	CgroupParent string // exists; each pod gets a cgroup below it, made by us as a kubelet does; "": the runtime's affair
	LogDir       string
	HostNetwork  bool
	Seccomp      bool // RuntimeDefault instead of Unconfined, the kubelet's default
}

// A Meter reads what the runtime costs. The pods' own work counts where it cannot be told apart.
type Meter interface {
	// CPU is the time used so far by the runtime and the pods, by what has ended as well.
	CPU() (time.Duration, error)
	// Memory is that of the runtime's processes by program, without the pods'; "total" sums it.
	Memory() (map[string]Memory, error)
}

// Memory is in KiB, summed over processes.
type Memory struct {
	Processes    int   `json:"processes"`
	PSS          int64 `json:"pss_kib"`
	RSS          int64 `json:"rss_kib"`
	PrivateDirty int64 `json:"private_dirty_kib"`
}

// A Daemon can be killed and started again. Start returns at once.
type Daemon interface {
	Kill() error
	Start() error
}

// Samples are durations in milliseconds; those of a single worker are in the order in which
// they were taken.
type Samples []float64

// Steps are the samples of each CRI call of a pod's life, and of "FirstLog" (from
// StartContainer's return to the first log line), "Ready" (all up to that) and "Teardown".
type Steps map[string]Samples

// Latency is of pods started and removed one after the other.
type Latency struct {
	Steps     Steps   `json:"steps"`
	CPUPerPod float64 `json:"cpu_ms_per_pod"` // start and end
}

// Throughput is of pods started, then removed, by several workers.
type Throughput struct {
	Pods, Workers   int
	StartsPerSecond float64 `json:"starts_per_s"`
	StopsPerSecond  float64 `json:"stops_per_s"`
	CPUPerStart     float64 `json:"cpu_ms_per_start"`
	CPUPerStop      float64 `json:"cpu_ms_per_stop"`
	Steps           Steps   `json:"steps"`
}

// Density is of a node that fills up with pods.
type Density struct {
	Pods          int               `json:"pods"`
	Ready         Samples           `json:"ready_ms"`
	CPUPerPod     float64           `json:"cpu_ms_per_pod"`
	Before        map[string]Memory `json:"memory_before"`
	After         map[string]Memory `json:"memory_after"`
	IdleCPU       float64           `json:"idle_cpu_percent"`
	PollCPU       float64           `json:"poll_cpu_percent"`
	Poll          Steps             `json:"poll"` // each call, and "round"
	Teardown      Samples           `json:"teardown_ms"`
	AfterTeardown map[string]Memory `json:"memory_after_teardown"`
}

// Exec is of ExecSync of a program that does nothing.
type Exec struct {
	Serial     Samples `json:"serial_ms"`
	Parallel   Samples `json:"parallel_ms"`
	Workers    int     `json:"workers"`
	PerSecond  float64 `json:"parallel_per_s"`
	CPUPerExec float64 `json:"cpu_ms_per_exec"` // of the serial ones
}

// Logs is of one container that writes as many lines as it can.
type Logs struct {
	Line     int     `json:"line_bytes"`
	Lines    int64   `json:"lines_written"`
	Bad      int64   `json:"lines_lost_torn_or_out_of_order"`
	Partial  int64   `json:"partial_records"`
	MBps     float64 `json:"payload_mb_per_s"`
	CPUPerGB float64 `json:"runtime_cpu_s_per_gb"` // without the workload's own
}

// Restart is of a daemon killed under running pods.
type Restart struct {
	Pods       int     `json:"pods"`
	FirstList  float64 `json:"first_list_ms"`    // to the first answer
	Complete   float64 `json:"complete_list_ms"` // to the answer that has all containers running
	ExecWorks  bool    `json:"exec_works"`
	LogGoesOn  bool    `json:"log_goes_on"`
	SamePIDs   bool    `json:"no_container_was_restarted"`
	Sandboxes  int     `json:"sandboxes_ready"`
	Containers int     `json:"containers_running"`
}
