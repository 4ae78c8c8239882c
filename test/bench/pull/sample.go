package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/bench/peers"
	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// sample is one pull. Bytes are bytes, times are seconds.
type sample struct {
	Image  string `json:"image"`
	Target string `json:"target"`
	Run    int    `json:"run"`
	Load   string `json:"load"` // before the pull

	Wall    float64 `json:"wall"`         // PullImage
	Durable float64 `json:"wall_durable"` // until all of it is on the disk: PullImage and a syncfs
	CPU     float64 `json:"cpu"`          // of the runtime and its children, work behind the reply included
	CPUWall float64 `json:"cpu_at_reply"`
	// Others' time on the processors during the pull: the registry's, and that of all
	// the rest, kernel threads and whatever else the machine does.
	RegistryCPU float64 `json:"registry_cpu"`
	OtherCPU    float64 `json:"other_cpu"`

	// What may have disturbed it: time of the whole machine, from the call to its reply.
	MemoryStall float64 `json:"memory_stall"` // nobody got on for lack of memory
	Stolen      float64 `json:"stolen"`       // by the hypervisor

	Fetched     int64 `json:"fetched"`      // over the loopback, protocol included
	DeviceWrote int64 `json:"device_wrote"` // what reached the device, the journal included
	DaemonWrote int64 `json:"daemon_wrote"` // by the kernel's accounting of processes
	DiskUsed    int64 `json:"disk_used"`    // by which the file system got fuller
	Peak        int64 `json:"peak"`         // resident memory of all its processes
	Idle        int64 `json:"idle"`         // the daemon's before the pull

	Remove float64 `json:"remove"` // RemoveImage
	Freed  float64 `json:"freed"`  // until the file system is as empty as before; -1: not in freeLimit
}

// disturbed says what is wrong with a sample; "" when nothing is.
func (s sample) disturbed() string { return stage.Disturbed(s.Wall, s.MemoryStall, s.Stolen) }

// freeLimit is how long a runtime may delete behind RemoveImage.
const freeLimit = 20 * time.Second

// reading is what is counted before and after a pull.
type reading struct {
	cpu, registry, machine time.Duration
	written, used, daemon  int64
	received               int64
}

func (b *bench) read(d *daemon) (r reading, err error) {
	var errs [5]error
	r.machine = stage.MachineCPU()
	r.cpu, errs[0] = d.cgroup.CPU()
	r.registry, errs[1] = b.served.CPU()
	r.written, errs[2] = b.disk.written()
	r.used, errs[3] = b.disk.used()
	r.received, errs[4] = stage.Received()
	r.daemon = stage.Wrote(d.process.PID())
	return r, errors.Join(errs[:]...)
}

// pull measures the pull of one image by a runtime that is idle.
func (b *bench) pull(ctx context.Context, d *daemon, image string) (s sample, err error) {
	s = sample{Image: strings.TrimPrefix(image, "bench/"), Target: d.Name, Load: stage.LoadAverage(), Freed: -1}
	if err := b.settle(ctx, d); err != nil {
		return s, err
	}
	pid := d.process.PID()
	if err := stage.ResetPeak(pid); err != nil {
		return s, err
	}
	s.Idle = stage.Resident(pid)
	profile, err := b.profile(ctx, d, s.Image)
	if err != nil {
		return s, err
	}
	watch := stage.WatchPeak(ctx, d.cgroup)
	before, err := b.read(d)
	if err != nil {
		return s, errors.Join(err, fmt.Errorf("peak was %d", watch.End()))
	}
	stall, steal, begin := stage.Stalled(), stage.Stolen(), time.Now()
	wall, err := d.pull(ctx, image)
	s.MemoryStall, s.Stolen = (stage.Stalled() - stall).Seconds(), (stage.Stolen() - steal).Seconds()
	cpu, _ := d.cgroup.CPU()
	machine := stage.MachineCPU()
	s.Peak = max(watch.End(), stage.Status(pid, "VmHWM"))
	err = errors.Join(err, profile.Stop(), b.disk.sync())
	if err != nil {
		return s, errors.Join(err, errors.New(d.process.Tail()))
	}
	s.Wall, s.Durable = wall.Seconds(), time.Since(begin).Seconds()
	if err := errors.Join(d.present(ctx, image), b.settle(ctx, d)); err != nil {
		return s, err
	}
	after, err := b.read(d)
	if err != nil {
		return s, err
	}
	s.CPU, s.CPUWall = (after.cpu - before.cpu).Seconds(), (cpu - before.cpu).Seconds()
	s.RegistryCPU = (after.registry - before.registry).Seconds()
	s.OtherCPU = max(0, (machine-before.machine).Seconds()-s.CPUWall-s.RegistryCPU)
	s.DeviceWrote, s.DaemonWrote, s.DiskUsed = after.written-before.written, after.daemon-before.daemon, after.used-before.used
	s.Fetched = after.received - before.received
	return s, nil
}

// quiet is the time in which an idle runtime uses less than idleShare of a processor.
const (
	quiet     = 200 * time.Millisecond
	idleShare = 20
)

// settle waits until the runtime has done what it does behind its replies, and writes
// everything to the device.
func (b *bench) settle(ctx context.Context, d *daemon) error {
	last, err := d.cgroup.CPU()
	for deadline := time.Now().Add(freeLimit); err == nil; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(quiet):
		}
		var now time.Duration
		if now, err = d.cgroup.CPU(); now-last < quiet/idleShare || time.Now().After(deadline) {
			break
		}
		last = now
	}
	return errors.Join(err, b.disk.sync())
}

// measureOne is one sample of an image, and of the one that shares its layers.
func (b *bench) measureOne(ctx context.Context, t peers.Target, image images.Image) (out []sample, err error) {
	d, err := b.launch(ctx, t)
	defer func() { err = errors.Join(err, b.end(d)) }()
	if err != nil {
		return nil, err
	}
	names := []string{image.Name}
	if second := sharer(image.Name); second != "" {
		names = append(names, second)
	}
	empty, err := b.disk.used()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		s, err := b.pull(ctx, d, name)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	// The one that shares goes first: it frees only its own layer.
	for i := len(out) - 1; i >= 0; i-- {
		left := empty
		if i > 0 {
			left += out[0].DiskUsed
		}
		if err := b.measureRemove(ctx, d, names[i], left, &out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (b *bench) measureRemove(ctx context.Context, d *daemon, image string, left int64, s *sample) error {
	begin := time.Now()
	took, err := d.remove(ctx, image)
	if err != nil {
		return err
	}
	s.Remove = took.Seconds()
	// Directories of the store and the logs of databases stay; a hundredth is not the image.
	slack := max(1<<20, s.DiskUsed/100)
	for time.Since(begin) < freeLimit {
		used, err := b.disk.used()
		if err != nil {
			return err
		}
		if used <= left+slack {
			s.Freed = time.Since(begin).Seconds()
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
	return b.disk.sync()
}

// profile records a pull of ours with perf, when that is asked for.
func (b *bench) profile(ctx context.Context, d *daemon, image string) (*stage.Process, error) {
	if b.Options.Perf == "" || !isOurs(d.Name) {
		return nil, nil //nolint:nilnil // stop of no process does nothing
	}
	if err := os.MkdirAll(b.Options.Perf, 0o755); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	file := filepath.Join(b.Options.Perf, strings.ReplaceAll(d.Name+"-"+image, ":", "-")+".data")
	p, err := stage.Start(ctx, filepath.Join(b.Work, "perf.log"), nil, []string{
		"perf", "record", "-q", "-F", "499", "-e", "cpu-clock", "-g", "-o", file, "-p", fmt.Sprint(d.process.PID()),
	})
	if err != nil {
		return nil, err
	}
	<-time.After(300 * time.Millisecond) // until it has attached
	return p, nil
}
