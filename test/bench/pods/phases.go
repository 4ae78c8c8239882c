package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/test/bench/load"
	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// sample is what one phase has measured of one runtime in one round.
type sample struct {
	Phase  string `json:"phase"`
	Target string `json:"target"`
	Round  int    `json:"round"`
	Load   string `json:"load"` // before it

	// What may have disturbed it, seconds of the whole machine.
	Length      float64 `json:"length_s"`
	MemoryStall float64 `json:"memory_stall_s"`
	Stolen      float64 `json:"stolen_s"`
	// Others is CPU of all that is neither runtime, pods nor client: kernel threads, and
	// whatever else the machine did.
	Others float64 `json:"others_cpu_s"`

	Start float64 `json:"start_ms,omitempty"` // from the start of the daemon to its first answer

	Idle       *idle            `json:"idle,omitempty"`
	Latency    *load.Latency    `json:"latency,omitempty"`
	Throughput *load.Throughput `json:"throughput,omitempty"`
	Density    *load.Density    `json:"density,omitempty"`
	Exec       *load.Exec       `json:"exec,omitempty"`
	Logs       *load.Logs       `json:"logs,omitempty"`
	Restart    *load.Restart    `json:"restart,omitempty"`
	Counts     *counts          `json:"counts,omitempty"`
}

// idle is of a runtime without pods.
type idle struct {
	Memory map[string]load.Memory `json:"memory"`
	CPU    float64                `json:"cpu_percent"`
}

// sizes of the measurements.
type size struct {
	latency, throughput, workers, density, more, execs, execWorkers, restart, restartMore, traced int
	settle, idle, poll, logs                                                                      time.Duration
}

var (
	whole = size{30, 40, 8, 100, 200, 200, 10, 50, 200, 5, 5 * time.Second, 10 * time.Second, 10 * time.Second, 4 * time.Second}
	short = size{5, 8, 4, 10, 20, 20, 10, 5, 10, 2, time.Second, 2 * time.Second, 3 * time.Second, time.Second}
)

// phase is one thing to measure.
type phase struct {
	name   string
	what   string // in the report
	rounds int    // at most; 0: all that were asked for
	alone  bool   // needs a runtime that was started here: its cgroup, its death
	few    bool   // takes long: only ours and the first peer of fewPeers that is there
	plain  bool   // does not depend on the pod network: not measured again with plugin binaries
	traced bool   // with what counts system calls around it
	run    func(context.Context, *bench, *daemon, *sample) error
}

var fewPeers = []string{crioCrun, containerdCrun, containerdRunc}

func phases() []phase {
	return []phase{
		{name: "idle", what: "the runtime without pods", alone: true, plain: true, run: runIdle},
		{name: "latency", what: "one pod after the other, bridge network", run: latency(func(*load.Options) {})},
		{name: "latency-host", what: "one pod after the other, host network", plain: true, run: latency(func(o *load.Options) { o.HostNetwork = true })},
		{name: "latency-seccomp", what: "one pod after the other, bridge network, seccomp RuntimeDefault", plain: true, run: latency(func(o *load.Options) { o.Seccomp = true })},
		{name: "throughput", what: "several workers, bridge network", run: runThroughput},
		{name: "density", what: "a node that fills up, is idle, is polled like by a kubelet, and is emptied", rounds: 2, plain: true, run: density(func(s size) int { return s.density })},
		{name: "density-more", what: "the same with twice as many pods", rounds: 1, few: true, plain: true, run: density(func(s size) int { return s.more })},
		{name: "exec", what: "ExecSync of /bin/true", plain: true, run: runExec},
		{name: "logs", what: "one container writes lines of 100 bytes as fast as it can", plain: true, run: runLogs},
		{name: "restart", what: "the daemon killed under pods, and started again", rounds: 2, alone: true, plain: true, run: restart(func(s size) int { return s.restart })},
		{name: "restart-more", what: "the same with four times as many pods", rounds: 1, alone: true, few: true, plain: true, run: restart(func(s size) int { return s.restartMore })},
		{name: "counts", what: "programs, processes and syncs of a pod's life, counted by strace", rounds: 1, alone: true, traced: true, run: runCounts},
	}
}

func phaseNames() (names []string) {
	for _, p := range phases() {
		names = append(names, p.name)
	}
	return names
}

// applies says whether a phase is measured of a runtime.
func (p phase) applies(r runtime, all []runtime) bool {
	if p.alone && r.Socket != "" || p.plain && r.Name == oursCNI {
		return false
	}
	if !p.few || isOurs(r.Name) {
		return true
	}
	for _, name := range fewPeers {
		if slices.ContainsFunc(all, func(r runtime) bool { return r.Name == name }) {
			return r.Name == name
		}
	}
	return false
}

// bench is one run of the inner half.
type bench struct {
	setting

	serial int
}

func (b *bench) size() size {
	if b.Options.Short {
		return short
	}
	return whole
}

// client is a load client whose pods are changed by how.
func (b *bench) client(ctx context.Context, d *daemon, how func(*load.Options)) (*load.Client, error) {
	o := b.pods(d)
	how(&o)
	return load.Dial(ctx, o, d.meter())
}

// with runs one measurement over a client.
func with[T any](ctx context.Context, b *bench, d *daemon, how func(*load.Options), f func(*load.Client) (T, error)) (_ *T, err error) {
	c, err := b.client(ctx, d, how)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	v, err := f(c)
	if err != nil {
		return nil, errors.Join(err, c.RemoveAll(ctx))
	}
	return &v, nil
}

func asTheyAre(*load.Options) {}

func runIdle(ctx context.Context, b *bench, d *daemon, s *sample) error {
	m := d.meter()
	if err := pause(ctx, b.size().settle); err != nil {
		return err
	}
	memory, err := m.Memory()
	if err != nil {
		return err
	}
	before, err := m.CPU()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := pause(ctx, b.size().idle); err != nil {
		return err
	}
	after, err := m.CPU()
	s.Idle = &idle{memory, 100 * float64(after-before) / float64(time.Since(begin))}
	return err
}

func latency(how func(*load.Options)) func(context.Context, *bench, *daemon, *sample) error {
	return func(ctx context.Context, b *bench, d *daemon, s *sample) (err error) {
		s.Latency, err = with(ctx, b, d, how, func(c *load.Client) (load.Latency, error) { return c.Latency(ctx, b.size().latency) })
		return err
	}
}

func runThroughput(ctx context.Context, b *bench, d *daemon, s *sample) (err error) {
	n := b.size()
	s.Throughput, err = with(ctx, b, d, asTheyAre, func(c *load.Client) (load.Throughput, error) { return c.Throughput(ctx, n.throughput, n.workers) })
	return err
}

func density(pods func(size) int) func(context.Context, *bench, *daemon, *sample) error {
	return func(ctx context.Context, b *bench, d *daemon, s *sample) (err error) {
		n := b.size()
		plan := load.DensityPlan{Pods: pods(n), Settle: n.settle, Idle: n.idle, Poll: n.poll}
		s.Density, err = with(ctx, b, d, asTheyAre, func(c *load.Client) (load.Density, error) { return c.Density(ctx, plan) })
		return err
	}
}

func runExec(ctx context.Context, b *bench, d *daemon, s *sample) (err error) {
	n := b.size()
	s.Exec, err = with(ctx, b, d, asTheyAre, func(c *load.Client) (load.Exec, error) { return c.Exec(ctx, n.execs, n.execWorkers) })
	return err
}

func runLogs(ctx context.Context, b *bench, d *daemon, s *sample) (err error) {
	s.Logs, err = with(ctx, b, d, asTheyAre, func(c *load.Client) (load.Logs, error) { return c.Logs(ctx, b.size().logs, 100) })
	return err
}

func restart(pods func(size) int) func(context.Context, *bench, *daemon, *sample) error {
	return func(ctx context.Context, b *bench, d *daemon, s *sample) (err error) {
		s.Restart, err = with(ctx, b, d, asTheyAre, func(c *load.Client) (load.Restart, error) { return c.Restart(ctx, d, pods(b.size())) })
		return err
	}
}

func pause(ctx context.Context, length time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(length):
		return nil
	}
}

// phaseLimit ends a runtime that hangs.
const phaseLimit = 10 * time.Minute

// measureOne takes one sample.
func (b *bench) measureOne(ctx context.Context, p phase, r *runtime) (s sample, err error) {
	s = sample{Phase: p.name, Target: r.Name, Load: stage.LoadAverage()}
	var before []string
	if p.traced {
		if before, err = b.counter(); err != nil {
			return s, err
		}
	}
	d, err := b.launch(ctx, *r, before)
	defer func() {
		if err != nil && d != nil && d.process != nil {
			tail := d.process.Tail()
			err = fmt.Errorf("%w; the runtime's log: %s", err, tail[max(0, len(tail)-600):])
		}
		err = errors.Join(err, b.end(d))
	}()
	if err != nil {
		return s, err
	}
	r.Version = d.Version // somebody else's says it only now
	if !d.external() && !d.traced {
		s.Start = float64(d.first) / 1e6
	}
	limited, cancel := context.WithTimeout(ctx, phaseLimit)
	defer cancel()
	stall, steal, others, begin := stage.Stalled(), stage.Stolen(), d.others(), time.Now()
	err = p.run(limited, b, d, &s)
	s.Length, s.MemoryStall, s.Stolen = time.Since(begin).Seconds(), (stage.Stalled() - stall).Seconds(), (stage.Stolen() - steal).Seconds()
	if !d.external() { // whose CPU is among that of the others
		s.Others = max(0, (d.others() - others).Seconds())
	}
	return s, err
}

// others is the time that the processors have worked for neither the runtime nor us.
func (d *daemon) others() time.Duration {
	var self unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &self); err != nil {
		return 0
	}
	used, _ := d.cgroup.CPU() // of somebody else's: none
	return stage.MachineCPU() - used - time.Duration(self.Utime.Nano()+self.Stime.Nano())
}

// busy says that others have used more than a quarter of a processor.
func (s sample) busy() bool { return s.Others > s.Length/4 }

// chosen are the phases that were asked for.
func (o options) chosen() (out []phase) {
	only := strings.Split(o.Phases, ",")
	for _, p := range phases() {
		if o.Phases == "" || slices.Contains(only, p.name) {
			out = append(out, p)
		}
	}
	return out
}
