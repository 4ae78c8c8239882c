// Package peers starts runtimes for the benchmarks: ours, containerd and CRI-O, each with
// the settings that its users would give it, all of which are listed in the results.
//
// It starts nothing by itself: a Target makes a command line, and writes the configuration
// that this names, below the Place that it is given and nowhere else.
package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// Place is where one runtime works for the time of one sample.
type Place struct {
	Disk   string // on a disk
	State  string // on a tmpfs, as /run is; also for configuration
	Socket string
	Cgroup string // the cgroup of the sample, below each hierarchy's root
}

func (p Place) in(name string) string { return filepath.Join(p.State, name) }

// Target is a runtime as it is measured.
type Target struct {
	Name     string            `json:"name"`
	Version  string            `json:"version"`
	Settings []string          `json:"settings"`           // what differs from the defaults
	Programs map[string]string `json:"programs,omitempty"` // files, by what they are

	Env     []string                      `json:"-"`
	Command func(Place) ([]string, error) `json:"-"` // writes configuration, returns the command line
}

// Pause is the image of sandboxes, for those who run one.
const Pause = stage.Registry + "/bench/pause:1"

// CNI is a pod network by plugin binaries.
type CNI struct{ Bin string } // their directory

// PluginVersion is what they say that they are.
func (c CNI) PluginVersion(ctx context.Context) string {
	return stage.FirstLine(ctx, filepath.Join(c.Bin, "bridge"), "--version")
}

const (
	netSetting = "CNI bridge + host-local, without masquerade and portmap"
	conflist   = `{"cniVersion": "1.0.0", "name": "bench", "plugins": [{
  "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.91.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
`
)

// write makes the configuration of the network, for one place, and names its directory.
func (c CNI) write(p Place) (dir string, err error) {
	dir = p.in("net.d")
	return dir, stage.WriteFiles(map[string]string{filepath.Join(dir, "10-bench.conflist"): fmt.Sprintf(conflist, p.in("host-local"))})
}

// hosts makes the registry configuration that sends pulls to our registry.
func hosts(p Place) (dir string, err error) {
	dir = p.in("certs.d")
	return dir, stage.WriteFiles(map[string]string{filepath.Join(dir, stage.Registry, "hosts.toml"): hostsToml})
}

const hostsToml = `server = "http://` + stage.Registry + `"

[host."http://` + stage.Registry + `"]
  capabilities = ["pull", "resolve"]
`

// Ours says what of this project's runtime differs from its defaults.
type Ours struct {
	Bin     string // directory of its programs
	Network *CNI   // nil: none, as for pulls
	Builtin bool   // the built-in bridge, without plugin binaries
	Store   string // --layer-store; "": the default
}

// Target is this project's runtime.
func (o Ours) Target(ctx context.Context) (Target, error) {
	program, monitor := filepath.Join(o.Bin, "cri-runtime"), filepath.Join(o.Bin, "cri-monitor")
	help, err := exec.CommandContext(ctx, program, "serve", "--help").CombinedOutput()
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w", program, err)
	}
	t := Target{Version: stage.FirstLine(ctx, program, "--version"), Programs: map[string]string{"cri-runtime": program, "cri-monitor": monitor}}
	more := []string{"--network", "cni"}
	switch {
	case o.Builtin:
		more[1] = "builtin"
		t.Settings = append(t.Settings, "--network builtin")
	case o.Network != nil:
		more = append(more, "--cni-builtin", "off", "--cni-bin-dir", o.Network.Bin)
		t.Settings = append(t.Settings, netSetting, o.Network.PluginVersion(ctx))
	}
	switch hasOption := bytes.Contains(help, []byte("--layer-store")); {
	case o.Store == "":
	case hasOption:
		more = append(more, "--layer-store", o.Store)
		t.Settings = append(t.Settings, "--layer-store "+o.Store)
	case o.Store != "directory":
		return Target{}, errors.New("this build has no option --layer-store")
	}
	t.Settings = append(t.Settings, "otherwise defaults")
	t.Command = func(p Place) ([]string, error) {
		registry, err := hosts(p)
		if err != nil {
			return nil, err
		}
		conf := p.in("net.d")
		if o.Network != nil {
			conf, err = o.Network.write(p)
		}
		return append([]string{
			program, "serve", "--root", filepath.Join(p.Disk, "root"), "--state", p.in("run"), "--listen", p.Socket, "--cni-conf-dir", conf,
			"--registry-config", registry, "--cgroup-parent", "/" + p.Cgroup + "/runtime", "--take-away",
		}, more...), err
	}
	return t, nil
}

// runnable finds out whether a program can be started, and what it says that it is.
func runnable(ctx context.Context, program, tool string) (string, error) {
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("%s is not built: hack/testtools.sh %s", filepath.Base(program), tool)
	}
	out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w: %s", program, err, out)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), nil
}
