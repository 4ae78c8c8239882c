package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/cni"
	"github.com/cri-runtime/cri-runtime/cri"
	"github.com/cri-runtime/cri-runtime/cri/admin"
	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/image/policy"
	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/probe"
	"github.com/cri-runtime/cri-runtime/oci/launch/apparmor"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
	"github.com/cri-runtime/cri-runtime/oci/runtime"
	"github.com/cri-runtime/cri-runtime/oci/spec"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// node is everything, built once, top to bottom, in reading order.
type node struct {
	config    config
	features  probe.Features
	cgroups   *cgroup.Host
	images    *image.Store
	network   *cni.Network
	monitor   *monitor.Client
	sandboxes *sandbox.Service
	server    *cri.Server
	admin     *admin.Server
	telemetry *telemetry // nil: no collector is configured
	exits     sync.WaitGroup
}

// wire builds the node. What was opened is closed again when a later part fails.
func wire(ctx context.Context, c config) (_ *node, err error) {
	n := &node{config: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close(ctx))
		}
	}()
	if err := os.MkdirAll(c.Root, 0o711); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	if n.cgroups, err = cgroup.Open(ctx); err != nil {
		return nil, fmt.Errorf("open cgroups: %w", err)
	}
	if n.telemetry, err = openTelemetry(ctx, c); err != nil {
		return nil, fmt.Errorf("open telemetry: %w", err)
	}
	if err := n.open(ctx); err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Kernel features found", "features", strings.Join(n.features.Lines(), "; "))
	// Exits that come while the records are read wait for them.
	opened := make(chan struct{})
	n.monitor.OnExit(func(id string, e monitor.Exit) {
		n.exits.Go(func() {
			<-opened
			if n.sandboxes != nil {
				n.sandboxes.Exited(ctx, id, e)
			}
		})
	})
	n.sandboxes, err = n.openSandboxes(ctx)
	close(opened)
	if err != nil {
		return nil, fmt.Errorf("open sandboxes: %w", err)
	}
	n.server = cri.New(cri.Deps{
		Runtime: n.sandboxes, Images: n.images, Pulls: n.images, Version: strings.TrimPrefix(version, "v"), StateDir: c.Root,
		StreamAddr: c.StreamAddr, Starts: n.sandboxes, Parent: n.telemetry.parents(),
	})
	n.admin = admin.New(admin.Deps{Images: n.images, Archives: n.images, Keeper: n.images, Traces: n.sandboxes, Version: version})
	return n, nil
}

// open makes, at the same time, what does not need each other.
func (n *node) open(ctx context.Context) error {
	var g errgroup.Group // all end, also when one fails: close needs what they have opened
	g.Go(func() (err error) {
		m, err := probe.Remember(ctx, filepath.Join(n.config.State, "kernel.json"), n.config.Root)
		if err == nil {
			n.features, err = probe.Run(ctx, n.cgroups, m)
		}
		if err != nil {
			return fmt.Errorf("probe the kernel: %w", err)
		}
		return nil
	})
	g.Go(func() (err error) {
		if n.images, err = openImages(ctx, n.config); err != nil {
			return fmt.Errorf("open images: %w", err)
		}
		return nil
	})
	g.Go(func() (err error) {
		if n.network, err = openNetwork(ctx, n.config); err != nil {
			return fmt.Errorf("open network: %w", err)
		}
		return nil
	})
	g.Go(func() (err error) {
		n.monitor, err = n.connectMonitor(ctx)
		return err
	})
	return g.Wait()
}

func openImages(ctx context.Context, c config) (*image.Store, error) {
	o := image.Options{
		Root: filepath.Join(c.Root, "image"), State: filepath.Join(c.State, "image"), HostsDir: c.RegistryConfig, Pinned: c.Pinned,
		LayerStore: snapshot.Format(c.LayerStore), Settled: releaseMemory,
	}
	if c.Signatures == "" {
		klog.FromContext(ctx).Info("No signature policy: any image is accepted")
	} else {
		p, err := policy.Load(c.Signatures)
		if err != nil {
			return nil, err
		}
		o.Policy = p
	}
	return image.Open(ctx, o)
}

func openNetwork(ctx context.Context, c config) (*cni.Network, error) {
	nc := cni.Config{
		ConfDir: c.CNIConf, BinDirs: c.CNIBin, CacheDir: filepath.Join(c.Root, "cni"), StateDir: filepath.Join(c.State, "cni"),
		Builtin: map[string]cni.Builtin{"missing": cni.WhenMissing, "always": cni.Always, "off": cni.Off}[c.CNIBuiltin],
	}
	if c.Network == "builtin" {
		nc.Default, nc.Builtin = &cni.DefaultNetwork{}, cni.Always
	}
	return cni.New(ctx, nc)
}

// connectMonitor finds or starts the monitor, in a cgroup of its own: stopping the
// daemon's must not end it.
func (n *node) connectMonitor(ctx context.Context) (*monitor.Client, error) {
	g, err := n.cgroups.Create(cgroup.Path(n.config.CgroupParent).Join("monitor"), cgroup.Resources{})
	if err != nil {
		return nil, fmt.Errorf("make cgroup of the monitor: %w", err)
	}
	defer g.Close()
	dirs := []string{}
	for _, tasks := range g.TasksPaths() {
		dirs = append(dirs, filepath.Dir(tasks))
	}
	if d := g.DirPath(); d != "" {
		dirs = append(dirs, d)
	}
	m, err := monitor.Connect(ctx, monitor.Config{StateDir: filepath.Join(n.config.State, "monitor"), Binary: n.config.Monitor, CgroupDirs: dirs})
	if err != nil {
		return nil, fmt.Errorf("connect to the monitor: %w", err)
	}
	return m, nil
}

func (n *node) openSandboxes(ctx context.Context) (*sandbox.Service, error) {
	c := n.config
	builtin := runtime.NewBuiltin(n.monitor, n.cgroups, runtime.Features{
		UserNamespaces: n.features.UserNamespaces, RecursiveReadOnly: n.features.RecursiveReadOnly,
	})
	runtimes := map[string]sandbox.Runtime{builtinRuntime: builtin}
	for _, name := range slices.Sorted(maps.Keys(c.Runtimes)) {
		rt, err := n.external(ctx, name, c.Runtimes[name])
		if err != nil {
			return nil, err
		}
		runtimes[name] = rt
	}
	caps, err := ownCapabilities()
	if err != nil {
		return nil, err
	}
	return sandbox.Open(ctx, sandbox.Config{
		State: filepath.Join(c.State, "sandbox"), CgroupParent: cgroup.Path(c.CgroupParent), Driver: cgroup.Cgroupfs, SeccompDir: c.SeccompDir,
		Images: n.images, Snapshots: n.images, Network: n.network, Processes: n.monitor, Streams: n.monitor, Cgroups: n.cgroups, Pulls: n.images, Traced: n.telemetry.receiver(),
		Runtimes: runtimes, Default: c.DefaultRuntime, Init: builtin, Security: security{apparmor.New()}, Capabilities: caps,
		Info: map[string]any{"version": version, "config": c, "kernel": n.features, "layerStore": n.images.LayerStore()},
		Features: sandbox.NodeFeatures{
			UserNamespaces: n.features.UserNamespaces, RecursiveReadOnly: n.features.RecursiveReadOnly, IDMap: n.features.IDMap, PSI: n.features.PSI,
		},
	}, n.images.WritablePath())
}

// external wires a runtime handler that is an OCI runtime program.
func (n *node) external(ctx context.Context, name, program string) (sandbox.Runtime, error) {
	return runtime.NewCLI(ctx, runtime.CLIConfig{
		Name: name, Program: program, Dir: filepath.Join(n.config.State, "oci", name), Parent: n.monitor,
		Kernel: runtime.Features{UserNamespaces: n.features.UserNamespaces, RecursiveReadOnly: n.features.RecursiveReadOnly},
	})
}

// close ends everything that was opened, last first. Pods go on running.
func (n *node) close(ctx context.Context) error {
	var errs []error
	if n.sandboxes != nil {
		errs = append(errs, n.sandboxes.Close())
	}
	if n.monitor != nil {
		errs = append(errs, n.monitor.Close())
	}
	n.exits.Wait()
	if n.network != nil {
		errs = append(errs, n.network.Close())
	}
	if n.images != nil {
		errs = append(errs, n.images.Close())
	}
	if n.telemetry != nil {
		n.telemetry.close(ctx)
	}
	return errors.Join(errs...)
}

// security gives this node's profiles.
type security struct{ appArmor *apparmor.Host }

func (security) Seccomp(caps []string) *specs.LinuxSeccomp {
	return spec.DefaultSeccomp(goruntime.GOARCH, caps)
}

func (s security) AppArmor(ctx context.Context) (string, error) {
	if !s.appArmor.Enabled() {
		return "", nil
	}
	return s.appArmor.EnsureDefault(ctx)
}

func (s security) AppArmorLoaded(name string) (bool, error) { return s.appArmor.Loaded(name) }

// ownCapabilities are what this process may hand on: its bounding set.
func ownCapabilities() ([]string, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, fmt.Errorf("read own capabilities: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		hex, ok := strings.CutPrefix(line, "CapBnd:")
		if !ok {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		if err != nil {
			return nil, fmt.Errorf("read own capabilities: %w", err)
		}
		var caps []string
		for bit, name := range spec.CapabilityNames() {
			if mask>>bit&1 == 1 {
				caps = append(caps, name)
			}
		}
		return caps, nil
	}
	return nil, errors.New("read own capabilities: no CapBnd in /proc/self/status")
}
