package peers

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// Containerd says how it is measured.
type Containerd struct {
	Tools       string // directory of its programs
	Snapshotter string // "": overlayfs
	Igzip       bool   // leave it the igzip or pigz that it finds
	Network     *CNI   // nil: none, as for pulls
	Runtime     string // OCI runtime program
}

// Its documentation and its users tune it so for pulls: parallel unpacking, more
// downloads, large ranges fetched in parallel. All of it is said to the transfer service:
// max_concurrent_downloads in the CRI part would turn that off.
const containerdConfig = `version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
  address = %q

[plugins."io.containerd.cri.v1.images"]
  snapshotter = %q
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = %q
%s
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 6
  concurrent_layer_fetch_buffer = 8388608
  max_concurrent_unpacks = 4
  config_path = %[5]q
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux/amd64"
    snapshotter = %[4]q
    differ = %[7]q

[plugins."io.containerd.service.v1.diff-service"]
  default = [%[8]s]

[plugins."io.containerd.differ.v1.erofs"]
  mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]
`

const containerdPods = `  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%q]
    conf_dir = %q
    use_internal_loopback = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "bench"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.bench]
      runtime_type = "io.containerd.runc.v2"
      runtime_path = %q
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.bench.options]
        BinaryName = %q
        SystemdCgroup = false
`

// Target is containerd.
func (c Containerd) Target(ctx context.Context) (Target, error) {
	program := filepath.Join(c.Tools, "containerd")
	version, err := runnable(ctx, program, "containerd")
	if err != nil {
		return Target{}, err
	}
	if c.Snapshotter == "" {
		c.Snapshotter = "overlayfs"
	}
	t := Target{Version: version, Programs: map[string]string{"containerd": program}, Settings: []string{
		"snapshotter = " + c.Snapshotter, "max_concurrent_downloads = 6", "max_concurrent_unpacks = 4", "concurrent_layer_fetch_buffer = 8 MiB",
		"transfer service (default)", "image_pull_with_sync_fs = false (default)", "NRI off",
	}}
	if c.Igzip {
		t.Settings = append(t.Settings, "decompresses with "+stage.FirstLine(ctx, "igzip", "--version"))
	} else {
		// It would take them from PATH by itself; measured apart, so that a run means the same on every machine.
		t.Env = []string{"CONTAINERD_DISABLE_PIGZ=1", "CONTAINERD_DISABLE_IGZIP=1"}
		t.Settings = append(t.Settings, "decompresses with its own gzip")
	}
	if c.Network != nil {
		if err := c.pods(ctx, &t); err != nil {
			return Target{}, err
		}
	}
	t.Command = func(p Place) ([]string, error) {
		body, err := c.config(p)
		if err != nil {
			return nil, err
		}
		file := p.in("config.toml")
		return []string{program, "--config", file, "--log-level", "warn"}, stage.WriteFiles(map[string]string{file: body})
	}
	return t, nil
}

const shim = "containerd-shim-runc-v2"

func (c Containerd) shim() string { return filepath.Join(c.Tools, shim) }

// pods adds what it runs pods with.
func (c Containerd) pods(ctx context.Context, t *Target) error {
	if _, err := runnable(ctx, c.shim(), shim); err != nil {
		return err
	}
	runtime, err := runnable(ctx, c.Runtime, filepath.Base(c.Runtime))
	if err != nil {
		return err
	}
	t.Version += "; " + runtime
	t.Programs[shim], t.Programs[filepath.Base(c.Runtime)] = c.shim(), c.Runtime
	t.Settings = append(t.Settings, "cgroupfs driver", "restrict_oom_score_adj", "netns_mounts_under_state_dir", "use_internal_loopback",
		"stats_collect_period = 1 s (default)", netSetting, c.Network.PluginVersion(ctx))
	return nil
}

func (c Containerd) config(p Place) (string, error) {
	registry, err := hosts(p)
	if err != nil {
		return "", err
	}
	pods := ""
	if c.Network != nil {
		conf, err := c.Network.write(p)
		if err != nil {
			return "", err
		}
		pods = fmt.Sprintf(containerdPods, Pause, c.Network.Bin, conf, c.shim(), c.Runtime)
	}
	differ, differs := "walking", `"walking"`
	if c.Snapshotter == "erofs" {
		differ, differs = "erofs", `"erofs", "walking"`
	}
	return fmt.Sprintf(containerdConfig, filepath.Join(p.Disk, "root"), p.in("run"), p.Socket, c.Snapshotter, registry, pods, differ, differs), nil
}
