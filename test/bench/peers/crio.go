package peers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// CRIO says how it is measured.
type CRIO struct {
	Tools   string // directory of its programs
	Network *CNI   // nil: none, as for pulls: then it needs no helpers either
	Runtime string // OCI runtime program
	Conmon  string
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
default_runtime = %q
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
pinns_path = %q
namespaces_dir = %q
container_exits_dir = %q
container_attach_socket_dir = %q
[crio.runtime.runtimes.%s]
runtime_path = %q
runtime_root = %q
monitor_path = %q
monitor_cgroup = "pod"
[crio.image]
signature_policy = %q
global_auth_file = ""
pause_image = %q
[crio.network]
network_dir = %q
plugin_dirs = [%q]
[crio.nri]
enable_nri = false
`

// Target is CRI-O.
func (c CRIO) Target(ctx context.Context) (Target, error) {
	program := filepath.Join(c.Tools, "crio")
	version, err := runnable(ctx, program, "crio")
	if err != nil {
		return Target{}, err
	}
	t := Target{Version: version, Settings: []string{"overlay", "NRI off"}, Programs: map[string]string{"crio": program}}
	if c.Network != nil {
		if err := c.pods(ctx, &t); err != nil {
			return Target{}, err
		}
	}
	t.Settings = append(t.Settings, "otherwise defaults")
	t.Command = func(p Place) ([]string, error) { return c.command(program, p) }
	return t, nil
}

func (c CRIO) pinns() string { return filepath.Join(c.Tools, "pinns") }

// pods adds what it runs pods with.
func (c CRIO) pods(ctx context.Context, t *Target) error {
	conmon, err := runnable(ctx, c.Conmon, "oci")
	if err != nil {
		return err
	}
	runtime, err := runnable(ctx, c.Runtime, "oci")
	if err != nil {
		return err
	}
	if _, err := os.Stat(c.pinns()); err != nil {
		return fmt.Errorf("pinns is not built: hack/testtools.sh pinns: %w", err)
	}
	t.Version += "; " + runtime + "; " + conmon
	t.Programs["conmon"], t.Programs["pinns"], t.Programs[filepath.Base(c.Runtime)] = c.Conmon, c.pinns(), c.Runtime
	t.Settings = append(t.Settings, "cgroupfs driver", "conmon_cgroup = pod", "drop_infra_ctr (default)", netSetting, c.Network.PluginVersion(ctx))
	return nil
}

func (c CRIO) command(program string, p Place) ([]string, error) {
	runtime, conmon, pinns, conf, plugins := p.in("bin/runc"), p.in("bin/conmon"), "/bin/true", p.in("net.d"), p.in("net.d")
	files := map[string]string{
		p.in("policy.json"):     `{"default":[{"type":"insecureAcceptAnything"}]}`,
		p.in("registries.conf"): "[[registry]]\nlocation = \"" + stage.Registry + "\"\ninsecure = true\n", p.in("storage.conf"): "",
		p.in("net.d/none"): "",
	}
	if c.Network == nil {
		// It looks for its helpers at the start, and pulls without them.
		files[conmon], files[runtime] = "#!/bin/sh\necho conmon version 2.2.1\n", "#!/bin/sh\necho {}\n"
	} else {
		runtime, conmon, pinns, plugins = c.Runtime, c.Conmon, c.pinns(), c.Network.Bin
		var err error
		if conf, err = c.Network.write(p); err != nil {
			return nil, err
		}
	}
	files[p.in("crio.conf")] = fmt.Sprintf(crioConfig, filepath.Join(p.Disk, "root"), p.in("run"), p.in("log"), p.in("version"), p.Socket,
		filepath.Base(runtime), pinns, p.in("ns"), p.in("exits"), p.in("attach"), filepath.Base(runtime), runtime, p.in("runtime"), conmon, p.in("policy.json"), Pause, conf, plugins)
	if err := stage.WriteFiles(files); err != nil {
		return nil, err
	}
	return []string{
		"/usr/bin/env", "PATH=" + filepath.Dir(conmon) + ":" + os.Getenv("PATH"), "CONTAINERS_STORAGE_CONF=" + p.in("storage.conf"),
		program, "--registries-conf", p.in("registries.conf"), "--config", p.in("crio.conf"), "--config-dir", p.in("none.d"), "--log-level", "warn",
	}, nil
}
