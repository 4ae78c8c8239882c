package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
)

// The environment of the processes that this program starts of itself.
const (
	stageEnv      = "CRI_BENCH_STAGE"
	settingEnv    = "CRI_BENCH_SETTING"
	stageInner    = "inner"
	stageRegistry = "registry"
)

// address is where the registry listens, in the network namespace of the inner half.
const address = "127.0.0.1:5000"

// setting is what the outer half prepares for the inner one.
type setting struct {
	Options options
	Work    string // directory on the disk that is measured
	Tools   string // directory of the peers' programs
	Images  string // directory of the images
	Cgroup  string // name of the cgroups that all others go below
}

func (o options) resultsFile() string { return filepath.Join(o.Out, "results.json") }

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench-pull: "+format+"\n", args...) }

// outside prepares what needs a network, runs the inner half and removes what it left.
func outside(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("root is needed: namespaces, mounts and cgroups of its own")
	}
	cache, err := catalogue.CacheDir()
	if err != nil {
		return err
	}
	set, err := images.Build(ctx, cache, say)
	if err != nil {
		return err
	}
	for _, dir := range []*string{&o.Bin, &o.Out, &o.Perf} {
		if *dir == "" {
			continue
		}
		if *dir, err = filepath.Abs(*dir); err != nil {
			return fmt.Errorf("find directory: %w", err)
		}
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return fmt.Errorf("make output directory: %w", err)
	}
	s := setting{Options: o, Images: set.Dir, Tools: filepath.Join(cache, "bin")}
	if s.Work, err = os.MkdirTemp(o.Disk, "cri-bench."); err != nil {
		return fmt.Errorf("make work directory: %w", err)
	}
	s.Cgroup = filepath.Base(s.Work)
	defer func() { err = errors.Join(err, removeCgroups(s.Cgroup), os.RemoveAll(s.Work)) }()
	return reexec(ctx, s)
}

// reexec runs the inner half in new namespaces. The process namespace ends every
// process that is left when its first one ends.
func reexec(ctx context.Context, s setting) error {
	value, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode setting: %w", err)
	}
	runtime.LockOSThread() // Pdeathsig follows the thread
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), stageEnv+"="+stageInner, settingEnv+"="+string(value))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("measure: %w", err))
	}
	return nil
}

// inside is the first process of the new namespaces.
func inside(ctx context.Context) (err error) {
	var s setting
	if err := json.Unmarshal([]byte(os.Getenv(settingEnv)), &s); err != nil {
		return fmt.Errorf("decode setting: %w", err)
	}
	for _, step := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error {
			return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		},
		func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(lo)
		},
	} {
		if err := step(); err != nil {
			return fmt.Errorf("prepare namespaces: %w", err)
		}
	}
	set, err := images.Open(s.Images)
	if err != nil {
		return err
	}
	b := &bench{setting: s, set: set}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.open(ctx); err != nil {
		return err
	}
	result, err := b.measure(ctx)
	if err != nil {
		return err
	}
	return result.write(s.Options.resultsFile())
}

// chosen are the images to measure, in the order of the set. Those that need another
// one first, such as debian-app:b, are measured with that.
func (s setting) chosen(set *images.Set) ([]images.Image, error) {
	var out []images.Image
	var wanted []string
	if s.Options.Images != "" {
		wanted = strings.Split(s.Options.Images, ",")
	}
	for _, i := range set.Images {
		name := strings.TrimPrefix(i.Name, "bench/")
		at := slices.Index(wanted, name)
		if strings.HasPrefix(name, "warm:") || strings.HasPrefix(name, "debian-app:b") || wanted != nil && at < 0 {
			continue
		}
		if at >= 0 {
			wanted = slices.Delete(wanted, at, at+1)
		}
		out = append(out, i)
	}
	if len(wanted) > 0 {
		return nil, fmt.Errorf("-images: no image %q to choose", wanted)
	}
	return out, nil
}

// sharer is the image that shares all layers of another but one; "" for none.
func sharer(name string) string {
	if rest, ok := strings.CutPrefix(name, "bench/debian-app:a"); ok {
		return "bench/debian-app:b" + rest
	}
	return ""
}

// serveImages is the registry's process.
func serveImages(ctx context.Context) error {
	set, err := images.Open(os.Getenv(settingEnv))
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("serve images: %w", err)
	}
	server := &http.Server{Handler: set, ReadHeaderTimeout: time.Minute}
	var wait sync.WaitGroup
	wait.Go(func() {
		<-ctx.Done()
		_ = server.Close()
	})
	err = server.Serve(l)
	wait.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve images: %w", err)
}
