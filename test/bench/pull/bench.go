package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/bench/peers"
	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// bench is one run of the inner half.
type bench struct {
	setting
	set      *images.Set
	disk     *disk
	state    string // a tmpfs
	registry *stage.Process
	served   stage.Cgroup // the registry's
	serial   int
}

// open prepares what all samples use.
func (b *bench) open(ctx context.Context) (err error) {
	say("writing a disk of %d GiB in %s", diskSize>>30, b.Work)
	if b.disk, err = newDisk(b.Work); err != nil {
		return err
	}
	b.state = filepath.Join(b.Work, "state")
	if err := os.Mkdir(b.state, 0o711); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if err := unix.Mount("tmpfs", b.state, "tmpfs", 0, "mode=0711"); err != nil {
		return fmt.Errorf("mount state directory: %w", err)
	}
	if b.served, err = stage.NewCgroup(b.Cgroup + "/registry"); err != nil {
		return err
	}
	b.registry, err = stage.StartRegistry(ctx, b.served, b.Images, filepath.Join(b.Work, "registry.log"))
	return err
}

func (b *bench) close() error {
	err := errors.Join(b.registry.Stop(), b.disk.close())
	if b.state != "" {
		err = errors.Join(err, unix.Unmount(b.state, unix.MNT_DETACH))
	}
	return err
}

// daemon is a runtime that serves.
type daemon struct {
	peers.Target
	process *stage.Process
	place   peers.Place
	cgroup  stage.Cgroup
	conn    *grpc.ClientConn
	runtime rt.RuntimeServiceClient
	images  rt.ImageServiceClient
}

const startLimit = 20 * time.Second

// launch starts a runtime with an empty file system, and has it pull a tiny image, as
// one that has been serving for long.
func (b *bench) launch(ctx context.Context, t peers.Target) (d *daemon, err error) {
	b.serial++
	name := fmt.Sprintf("%s/%d", b.Cgroup, b.serial)
	d = &daemon{Target: t}
	d.place = peers.Place{Disk: b.disk.point, State: filepath.Join(b.state, fmt.Sprint(b.serial)), Cgroup: name}
	d.place.Socket = filepath.Join(d.place.State, "cri.sock")
	if err := os.Mkdir(d.place.State, 0o711); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	if err := b.disk.fresh(ctx); err != nil {
		return nil, err
	}
	if d.cgroup, err = stage.NewCgroup(name); err != nil {
		return nil, err
	}
	argv, err := t.Command(d.place)
	if err != nil {
		return nil, err
	}
	if d.process, err = stage.Start(ctx, filepath.Join(b.Work, t.Name+".log"), t.Env, d.cgroup.Command(argv)); err != nil {
		return nil, err
	}
	if d.conn, err = grpc.NewClient("unix:"+d.place.Socket, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return d, fmt.Errorf("connect: %w", err)
	}
	d.runtime, d.images = rt.NewRuntimeServiceClient(d.conn), rt.NewImageServiceClient(d.conn)
	return d, d.ready(ctx)
}

// ready waits until the runtime answers and can pull.
func (d *daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		_, err := d.runtime.Version(ctx, &rt.VersionRequest{})
		if err == nil {
			if _, err = d.pull(ctx, "bench/warm:1"); err == nil {
				return nil
			}
		}
		select {
		case <-d.process.Gone():
			return fmt.Errorf("%s ended at its start: %s", d.Name, d.process.Tail())
		case <-ctx.Done():
			return fmt.Errorf("%s does not serve after %v: %w: %s", d.Name, startLimit, err, d.process.Tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func spec(image string) *rt.ImageSpec { return &rt.ImageSpec{Image: stage.Registry + "/" + image} }

func (d *daemon) pull(ctx context.Context, image string) (time.Duration, error) {
	begin := time.Now()
	if _, err := d.images.PullImage(ctx, &rt.PullImageRequest{Image: spec(image)}); err != nil {
		return 0, fmt.Errorf("%s: pull %s: %w", d.Name, image, err)
	}
	return time.Since(begin), nil
}

func (d *daemon) remove(ctx context.Context, image string) (time.Duration, error) {
	begin := time.Now()
	if _, err := d.images.RemoveImage(ctx, &rt.RemoveImageRequest{Image: spec(image)}); err != nil {
		return 0, fmt.Errorf("%s: remove %s: %w", d.Name, image, err)
	}
	return time.Since(begin), nil
}

// present sees that the runtime lists the image.
func (d *daemon) present(ctx context.Context, image string) error {
	reply, err := d.images.ImageStatus(ctx, &rt.ImageStatusRequest{Image: spec(image)})
	if err != nil {
		return fmt.Errorf("%s: status of %s: %w", d.Name, image, err)
	}
	if reply.GetImage() == nil {
		return fmt.Errorf("%s: %s is not there after its pull", d.Name, image)
	}
	return nil
}

// end stops the runtime and all that it left, and takes its file system away.
func (b *bench) end(d *daemon) error {
	if d == nil {
		return b.disk.drop()
	}
	var err error
	if d.conn != nil {
		err = d.conn.Close()
	}
	err = errors.Join(err, d.process.Stop())
	for _, pid := range d.cgroup.PIDs() {
		_ = unix.Kill(pid, unix.SIGKILL) // of our own cgroup: nobody else's
	}
	return errors.Join(err, stage.RemoveCgroups(d.place.Cgroup), stage.RemoveMounts(d.place.State), b.disk.drop(), os.RemoveAll(d.place.State))
}
