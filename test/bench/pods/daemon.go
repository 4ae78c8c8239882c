package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/bench/load"
	"github.com/cri-runtime/cri-runtime/test/bench/peers"
	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// daemon is a runtime that serves; it is also what load.Restart kills and starts.
type daemon struct {
	runtime

	ctx     context.Context //nolint:containedctx // of the phase: load.Daemon's methods take none
	process *stage.Process
	place   peers.Place
	cgroup  stage.Cgroup // of the sample
	inner   stage.Cgroup // of the daemon itself
	argv    []string
	traced  bool // argv starts what counts, which starts the daemon
	log     string
	began   time.Time
	first   time.Duration // from its start to its first answer
}

// external says that somebody else has started it.
func (d *daemon) external() bool { return d.process == nil && d.Socket != "" }

// launch starts a runtime with empty directories and waits until it is ready; before is a
// command that starts it.
func (b *bench) launch(ctx context.Context, r runtime, before []string) (d *daemon, err error) {
	if r.Socket != "" {
		d = &daemon{runtime: r, ctx: ctx, place: peers.Place{Socket: r.Socket}}
		return d, d.ready(ctx)
	}
	b.serial++
	number := fmt.Sprint(b.serial)
	d = &daemon{runtime: r, ctx: ctx, log: filepath.Join(b.Work, r.Name+".log")}
	d.place = peers.Place{Disk: filepath.Join(b.Work, number), State: filepath.Join(stateDir, number), Cgroup: b.Cgroup + "/" + number}
	d.place.Socket = filepath.Join(d.place.State, "cri.sock")
	for _, dir := range []string{d.place.Disk, d.place.State} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			return d, fmt.Errorf("make directory of the sample: %w", err)
		}
	}
	for _, part := range []string{"pods", "runtime"} {
		if err := stage.MakeCgroups(d.place.Cgroup + "/" + part); err != nil {
			return d, err
		}
	}
	if d.cgroup, err = stage.NewCgroup(d.place.Cgroup); err != nil {
		return d, err
	}
	if d.inner, err = stage.NewCgroup(d.place.Cgroup + "/daemon"); err != nil {
		return d, err
	}
	if d.argv, err = r.Command(d.place); err != nil {
		return d, err
	}
	d.argv, d.traced = append(slices.Clone(before), d.argv...), len(before) > 0
	_ = os.Remove(d.log)
	if err := d.Start(); err != nil {
		return d, err
	}
	return d, d.ready(ctx)
}

// Start starts it, as launch and load.Restart do.
func (d *daemon) Start() (err error) {
	d.began = time.Now()
	d.process, err = stage.Start(d.ctx, d.log, d.Env, d.inner.Command(d.argv))
	return err
}

// Kill ends it as a crash does.
func (d *daemon) Kill() error {
	d.process.Kill()
	return nil
}

const startLimit = 30 * time.Second

// ready waits for the first answer, and then until the runtime says that it and its network
// are ready.
func (d *daemon) ready(ctx context.Context) error {
	limit := startLimit
	if d.traced {
		limit *= 3
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := d.asked(ctx)
		if err == nil {
			return nil
		}
		var gone <-chan struct{} // of somebody else's: never
		if d.process != nil {
			gone = d.process.Gone()
		}
		select {
		case <-gone:
			return fmt.Errorf("%s ended at its start", d.Name)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %v: %w", d.Name, limit, err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// asked asks over a connection of its own: no back-off of gRPC's in the figure.
func (d *daemon) asked(ctx context.Context) (err error) {
	conn, err := grpc.NewClient("unix:"+d.place.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	client := rt.NewRuntimeServiceClient(conn)
	version, err := client.Version(ctx, &rt.VersionRequest{})
	if err != nil {
		return err
	}
	if d.first == 0 {
		d.first = time.Since(d.began)
	}
	if d.external() {
		d.Version = version.RuntimeName + " " + version.RuntimeVersion
	}
	status, err := client.Status(ctx, &rt.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range status.Status.Conditions {
		if !c.Status && (c.Type == rt.RuntimeReady || c.Type == rt.NetworkReady) {
			return fmt.Errorf("%s is false: %s", c.Type, c.Message)
		}
	}
	return nil
}

// meter reads what it costs; nil of somebody else's.
func (d *daemon) meter() load.Meter {
	if d.external() {
		return nil
	}
	programs := append(slices.Collect(maps.Keys(d.Programs)), "pause")
	return load.Cgroup{Dirs: []string{d.cgroup.Dir()}, Programs: programs}
}

// options are those of pods like a kubelet's.
func (b *bench) pods(d *daemon) load.Options {
	o := load.Options{Socket: d.place.Socket, Image: stage.Registry + "/" + images.SmallName, LogDir: b.Logs}
	if !d.external() {
		o.CgroupParent = "/" + d.place.Cgroup + "/pods"
	}
	return o
}

// end stops the runtime and takes away all that it left.
func (b *bench) end(d *daemon) error {
	if d == nil || d.external() {
		return nil
	}
	err := d.stop()
	for _, pid := range d.cgroup.PIDs() {
		_ = unix.Kill(pid, unix.SIGKILL) // of our own cgroup: nobody else's
	}
	err = errors.Join(err, stage.RemoveCgroups(d.place.Cgroup), stage.RemoveMounts(d.place.State), stage.RemoveMounts(d.place.Disk))
	return errors.Join(err, removeLinks(), os.RemoveAll(d.place.State), os.RemoveAll(d.place.Disk))
}

// stop ends the daemon, which in the phase of counts is the child of what counts.
func (d *daemon) stop() error {
	if d.process == nil {
		return nil
	}
	for _, pid := range d.inner.PIDs() {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if d.traced && err == nil && slices.Contains([]string{"cri-runtime", "containerd", "crio"}, filepath.Base(exe)) {
			_ = unix.Kill(pid, unix.SIGTERM)
		}
	}
	if d.traced {
		select {
		case <-d.process.Gone():
		case <-time.After(tracedLimit):
		}
	}
	return d.process.Stop()
}

// tracedLimit is how long what counts may take to end after all that it counts.
const tracedLimit = 5 * time.Second
