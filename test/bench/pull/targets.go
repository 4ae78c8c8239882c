package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// The runtimes that can be measured.
const (
	oursErofs       = "ours-erofs"
	oursDirectory   = "ours-directory"
	containerd      = "containerd"
	containerdIgzip = "containerd-igzip"
	containerdErofs = "containerd-erofs"
	crio            = "crio"
)

var targetNames = []string{oursErofs, oursDirectory, containerd, containerdIgzip, containerdErofs, crio}

func isTarget(name string) bool { return slices.Contains(targetNames, name) }

func isOurs(name string) bool { return strings.HasPrefix(name, "ours") }

// place is where one runtime works for the time of one sample.
type place struct {
	Disk   string // on the file system that is measured
	State  string // on a tmpfs, as /run is; also for configuration
	Socket string
	Cgroup string // the cgroup of the sample, below each hierarchy's root
}

// target is a runtime as it is measured.
type target struct {
	Name     string   `json:"name"`
	Version  string   `json:"version"`
	Settings []string `json:"settings"` // what differs from the defaults

	command func(place) ([]string, error) // writes configuration, returns the command line
	env     []string
}

// targets finds what can be measured here, and says of the rest why not.
func targets(ctx context.Context, s setting) (found []target, missing map[string]string, err error) {
	missing = map[string]string{}
	wanted := func(name string) bool {
		only := strings.Split(s.Options.Only, ",")
		return s.Options.Only == "" || slices.Contains(only, name) || isOurs(name) && slices.Contains(only, "ours")
	}
	for _, name := range targetNames {
		if !wanted(name) {
			continue
		}
		t, why := find(ctx, s, name)
		if why != "" {
			missing[name] = why
			continue
		}
		t.Name = name
		found = append(found, t)
	}
	if len(found) == 0 {
		return nil, nil, fmt.Errorf("nothing to measure: %v", missing)
	}
	return found, missing, nil
}

func find(ctx context.Context, s setting, name string) (t target, why string) {
	switch name {
	case oursErofs, oursDirectory:
		return ours(ctx, s, strings.TrimPrefix(name, "ours-"))
	case containerd:
		return peerContainerd(ctx, s, "overlayfs", false)
	case containerdIgzip:
		if !s.Options.Igzip {
			return t, "not asked for: -igzip"
		}
		if _, err := exec.LookPath("igzip"); err != nil {
			return t, "igzip is not installed (Debian: isal)"
		}
		return peerContainerd(ctx, s, "overlayfs", true)
	case containerdErofs:
		dir, version, why := mkfsErofs(ctx, s.Tools)
		if why != "" {
			return t, why
		}
		if t, why = peerContainerd(ctx, s, "erofs", false); why == "" {
			t.env = append(t.env, "PATH="+dir+":"+os.Getenv("PATH"))
			t.Settings = append(t.Settings, "mkfs_options = -T0 --mkfs-time --sort=none", version)
		}
		return t, why
	default:
		return peerCRIO(ctx, s)
	}
}

// ours is this project's runtime with one of its layer stores.
func ours(ctx context.Context, s setting, store string) (target, string) {
	if s.Options.Store != "both" && s.Options.Store != store {
		return target{}, "not asked for: -store " + s.Options.Store
	}
	program := filepath.Join(s.Options.Bin, "cri-runtime")
	help, err := exec.CommandContext(ctx, program, "serve", "--help").CombinedOutput()
	if err != nil {
		return target{}, fmt.Sprintf("%s: %v", program, err)
	}
	t := target{Version: firstLine(ctx, program, "--version"), Settings: []string{"defaults"}}
	var more []string
	switch hasOption := bytes.Contains(help, []byte("--layer-store")); {
	case hasOption:
		more = []string{"--layer-store", store}
		t.Settings = more
	case store != "directory":
		return target{}, "this build has no option --layer-store"
	}
	t.command = func(p place) ([]string, error) {
		hosts := filepath.Join(p.State, "certs.d")
		conf := filepath.Join(p.State, "net.d")
		return append([]string{
			program, "serve", "--root", filepath.Join(p.Disk, "root"), "--state", filepath.Join(p.State, "run"), "--listen", p.Socket,
			"--registry-config", hosts, "--network", "cni", "--cni-conf-dir", conf, "--cgroup-parent", "/" + p.Cgroup + "/pods", "--take-away",
		}, more...), writeFiles(map[string]string{hostsFile(hosts): hostsToml, filepath.Join(conf, "none"): ""})
	}
	return t, ""
}

func hostsFile(dir string) string { return filepath.Join(dir, address, "hosts.toml") }

const hostsToml = `server = "http://` + address + `"

[host."http://` + address + `"]
  capabilities = ["pull", "resolve"]
`

// containerdConfig is tuned as its documentation and its users tune it for pulls:
// parallel unpacking, more downloads, large ranges fetched in parallel.
const containerdConfig = `version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
  address = %q

[plugins."io.containerd.cri.v1.images"]
  snapshotter = %q
  max_concurrent_downloads = 6
  concurrent_layer_fetch_buffer = 8388608
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = %q

[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 6
  concurrent_layer_fetch_buffer = 8388608
  max_concurrent_unpacks = 4
  config_path = %q
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux/amd64"
    snapshotter = %q
    differ = %q

[plugins."io.containerd.service.v1.diff-service"]
  default = [%[9]s]

[plugins."io.containerd.differ.v1.erofs"]
  mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]
`

func peerContainerd(ctx context.Context, s setting, snapshotter string, igzip bool) (target, string) {
	program := filepath.Join(s.Tools, "containerd")
	if _, err := os.Stat(program); err != nil {
		return target{}, "not built: hack/testtools.sh containerd"
	}
	differ, differs := "walking", `"walking"`
	if snapshotter == "erofs" {
		differ, differs = "erofs", `"erofs", "walking"`
	}
	t := target{Version: firstLine(ctx, program, "--version"), Settings: []string{
		"snapshotter = " + snapshotter, "max_concurrent_downloads = 6", "max_concurrent_unpacks = 4", "concurrent_layer_fetch_buffer = 8 MiB",
		"transfer service (default)", "image_pull_with_sync_fs = false (default)",
	}}
	if igzip {
		t.Settings = append(t.Settings, "decompresses with "+firstLine(ctx, "igzip", "--version"))
	} else {
		// It would take them from PATH by itself; measured apart, so that a run means the same on every machine.
		t.env = []string{"CONTAINERD_DISABLE_PIGZ=1", "CONTAINERD_DISABLE_IGZIP=1"}
		t.Settings = append(t.Settings, "decompresses with its own gzip")
	}
	t.command = func(p place) ([]string, error) {
		hosts, config := filepath.Join(p.State, "certs.d"), filepath.Join(p.State, "config.toml")
		body := fmt.Sprintf(containerdConfig, filepath.Join(p.Disk, "root"), filepath.Join(p.State, "run"), p.Socket, snapshotter, hosts, hosts, snapshotter, differ, differs)
		return []string{program, "--config", config, "--log-level", "warn"}, writeFiles(map[string]string{hostsFile(hosts): hostsToml, config: body})
	}
	return t, ""
}

// mkfsErofs finds a mkfs.erofs that makes images of tar streams, its directory and version,
// or says why containerd's erofs snapshotter cannot be measured.
func mkfsErofs(ctx context.Context, tools string) (dir, version, why string) {
	why = "mkfs.erofs is not installed (Debian 13: erofs-utils)"
	for _, dir := range append([]string{tools}, filepath.SplitList(os.Getenv("PATH"))...) {
		program := filepath.Join(dir, "mkfs.erofs")
		help, _ := exec.CommandContext(ctx, program, "--help").CombinedOutput() // some exit with 1
		for line := range strings.Lines(string(help)) {
			if strings.HasPrefix(line, "mkfs.erofs ") {
				version = strings.TrimSpace(line)
			}
		}
		if version == "" { // newer ones print it only when asked
			version = firstLine(ctx, program, "--version")
		}
		if bytes.Contains(help, []byte("--tar=")) && bytes.Contains(help, []byte("--sort=")) {
			return dir, version, ""
		}
		if len(help) > 0 {
			why = program + ", " + version + ", has no --tar and --sort: erofs-utils 1.8.2 or later are needed (Debian 13 has them)"
		}
	}
	return "", "", why
}

const crioConfig = `[crio]
root = %q
runroot = %q
log_dir = %q
storage_driver = "overlay"
version_file = %q
version_file_persist = ""
clean_shutdown_file = ""
internal_wipe = false
[crio.api]
listen = %q
[crio.runtime]
default_runtime = "runc"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
pinns_path = "/bin/true"
[crio.runtime.runtimes.runc]
runtime_path = %q
monitor_path = %q
monitor_cgroup = "pod"
[crio.image]
signature_policy = %q
global_auth_file = ""
[crio.network]
network_dir = %q
plugin_dirs = [%[9]q]
[crio.nri]
enable_nri = false
`

func peerCRIO(ctx context.Context, s setting) (target, string) {
	program := filepath.Join(s.Tools, "crio")
	if _, err := os.Stat(program); err != nil {
		return target{}, "not built: hack/testtools.sh crio"
	}
	if out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput(); err != nil {
		return target{}, fmt.Sprintf("%s --version: %v: %s", program, err, out)
	}
	t := target{Version: firstLine(ctx, program, "--version"), Settings: []string{"overlay", "defaults"}}
	t.command = func(p place) ([]string, error) {
		in := func(name string) string { return filepath.Join(p.State, name) }
		body := fmt.Sprintf(crioConfig, filepath.Join(p.Disk, "root"), in("run"), in("log"), in("version"), p.Socket, in("bin/runc"), in("bin/conmon"), in("policy.json"), in("net.d"))
		// It looks for its helpers at the start, and pulls without them.
		err := writeFiles(map[string]string{
			in("crio.conf"): body, in("policy.json"): `{"default":[{"type":"insecureAcceptAnything"}]}`,
			in("registries.conf"): "[[registry]]\nlocation = \"" + address + "\"\ninsecure = true\n", in("storage.conf"): "",
			in("bin/conmon"): "#!/bin/sh\necho conmon version 2.2.1\n", in("bin/runc"): "#!/bin/sh\necho {}\n", in("net.d/none"): "",
		})
		if err != nil {
			return nil, err
		}
		return []string{
			"/usr/bin/env", "PATH=" + in("bin") + ":" + os.Getenv("PATH"), "CONTAINERS_STORAGE_CONF=" + in("storage.conf"),
			program, "--registries-conf", in("registries.conf"), "--config", in("crio.conf"), "--config-dir", in("none.d"), "--log-level", "warn",
		}, nil
	}
	return t, ""
}

// firstLine is the first line that a program prints; "" when it fails.
func firstLine(ctx context.Context, program string, args ...string) string {
	out, _ := exec.CommandContext(ctx, program, args...).CombinedOutput()
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

// writeFiles makes configuration files, and their directories. All may be run: some are programs.
func writeFiles(files map[string]string) error {
	for name, body := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("configure: %w", err)
		}
		if err := os.WriteFile(name, []byte(body), 0o755); err != nil {
			return fmt.Errorf("configure: %w", err)
		}
	}
	return nil
}
