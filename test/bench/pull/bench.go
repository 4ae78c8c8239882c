package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
)

// bench is one run of the inner half.
type bench struct {
	setting
	set      *images.Set
	disk     *disk
	state    string // a tmpfs
	registry *process
	served   cgroup // the registry's
	serial   int
}

// process is a program that was started here.
type process struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	wait sync.WaitGroup
}

func start(ctx context.Context, log string, env, argv []string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	p := &process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), gone: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = f, f, append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	p.wait.Go(func() {
		_ = p.cmd.Wait()
		close(p.gone)
	})
	return p, nil
}

const stopLimit = 30 * time.Second

// stop asks the process to end, and kills it when it does not.
func (p *process) stop() error {
	if p == nil {
		return nil
	}
	defer p.wait.Wait()
	_ = p.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-p.gone:
		return nil
	case <-time.After(stopLimit):
		_ = p.cmd.Process.Kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM", p.cmd.Path, stopLimit)
	}
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
	if b.served, err = newCgroup(b.Cgroup + "/registry"); err != nil {
		return err
	}
	argv := b.served.command([]string{"/proc/self/exe"})
	argv[len(argv)-1], err = os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	env := []string{stageEnv + "=" + stageRegistry, settingEnv + "=" + b.Images}
	if b.registry, err = start(ctx, filepath.Join(b.Work, "registry.log"), env, argv); err != nil {
		return err
	}
	return b.preload(ctx)
}

// preload reads all blobs into the page cache: the disk must not read them in a pull.
func (b *bench) preload(context.Context) error {
	return filepath.WalkDir(b.Images, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, struct{ io.Reader }{f}) // a plain reader: it is to be read
		return err
	})
}

func (b *bench) close() error {
	err := errors.Join(b.registry.stop(), b.disk.close())
	if b.state != "" {
		err = errors.Join(err, unix.Unmount(b.state, unix.MNT_DETACH))
	}
	return err
}

// daemon is a runtime that serves.
type daemon struct {
	target
	process *process
	place   place
	cgroup  cgroup
	log     string
	conn    *grpc.ClientConn
	runtime rt.RuntimeServiceClient
	images  rt.ImageServiceClient
}

const startLimit = 20 * time.Second

// launch starts a runtime with an empty file system, and has it pull a tiny image, as
// one that has been serving for long.
func (b *bench) launch(ctx context.Context, t target) (d *daemon, err error) {
	b.serial++
	name := fmt.Sprintf("%s/%d", b.Cgroup, b.serial)
	d = &daemon{target: t, log: filepath.Join(b.Work, t.Name+".log")}
	d.place = place{Disk: b.disk.point, State: filepath.Join(b.state, fmt.Sprint(b.serial)), Cgroup: name}
	d.place.Socket = filepath.Join(d.place.State, "cri.sock")
	if err := os.Mkdir(d.place.State, 0o711); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	if err := b.disk.fresh(ctx); err != nil {
		return nil, err
	}
	if d.cgroup, err = newCgroup(name); err != nil {
		return nil, err
	}
	argv, err := t.command(d.place)
	if err != nil {
		return nil, err
	}
	if d.process, err = start(ctx, d.log, t.env, d.cgroup.command(argv)); err != nil {
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
		case <-d.process.gone:
			return fmt.Errorf("%s ended at its start: %s", d.Name, d.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s does not serve after %v: %w: %s", d.Name, startLimit, err, d.tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (d *daemon) tail() string {
	body, _ := os.ReadFile(d.log)
	return strings.TrimSpace(string(body[max(0, len(body)-2000):]))
}

func spec(image string) *rt.ImageSpec { return &rt.ImageSpec{Image: address + "/" + image} }

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
	err = errors.Join(err, d.process.stop())
	for _, pid := range d.cgroup.pids() {
		_ = unix.Kill(pid, unix.SIGKILL) // of our own cgroup: nobody else's
	}
	return errors.Join(err, removeCgroups(d.place.Cgroup), removeMounts(d.place.State), b.disk.drop(), os.RemoveAll(d.place.State))
}
