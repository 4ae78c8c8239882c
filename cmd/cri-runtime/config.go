package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
)

// config is all that can be set. Its zero value is not useful: see defaults.
type config struct {
	Root           string            // images, writable layers, addresses; survives a reboot
	State          string            // pods, containers, pins; on tmpfs
	Listen         string            // unix socket of the CRI server
	StreamAddr     string            // loopback address of exec, attach and port-forward
	MetricsAddress string            // TCP address of /metrics; empty: only on the admin socket
	OTLPEndpoint   string            // URL of a collector of traces; "": what the environment says
	OTLPProtocol   string            // grpc or http/protobuf; "": by the environment or the port
	LayerStore     string            // how layers are kept: auto, erofs, directory
	RegistryConfig string            // certs.d directory
	Signatures     string            // containers-policy.json: who must have signed images; "" accepts any
	Network        string            // cni or builtin
	CNIConf        string            // directory of conflists
	CNIBin         []string          // directories of plugins
	CNIBuiltin     string            // when the built-in plugins are used: missing, always, off
	CgroupParent   string            // of pods whose request names none
	CgroupDriver   string            // cgroupfs or systemd
	Runtimes       map[string]string // further runtime handlers: name to program
	DefaultRuntime string            // handler of pods that name none
	Monitor        string            // path of cri-monitor
	SeccompDir     string            // of relative Localhost profiles
	Pinned         []string          // images that the kubelet does not collect
	Owned          bool              // take everything away at the end: for a runtime started by hand
}

// builtinRuntime is the name of the built-in launcher as a handler.
const builtinRuntime = "builtin"

func defaults() config {
	return config{
		Root: "/var/lib/cri-runtime", State: "/run/cri-runtime", Listen: "/run/cri-runtime/cri-runtime.sock",
		StreamAddr: "127.0.0.1:0", LayerStore: "auto", RegistryConfig: "/etc/cri-runtime/certs.d",
		Network: "cni", CNIConf: "/etc/cni/net.d", CNIBin: []string{"/opt/cni/bin"}, CNIBuiltin: "missing",
		CgroupParent: "/cri-runtime", CgroupDriver: "cgroupfs", Runtimes: map[string]string{}, DefaultRuntime: builtinRuntime,
		Monitor: besides("cri-monitor"), SeccompDir: "/var/lib/kubelet/seccomp",
	}
}

// besides is the path of a program that is installed beside this one.
func besides(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

func (c *config) flags(f *pflag.FlagSet) {
	f.StringVar(&c.Root, "root", c.Root, "directory of images and writable layers; survives a reboot")
	f.StringVar(&c.State, "state", c.State, "directory of runtime state, on tmpfs")
	f.StringVar(&c.Listen, "listen", c.Listen, "unix socket of the CRI server")
	f.StringVar(&c.StreamAddr, "stream-address", c.StreamAddr, "loopback address for exec, attach and port-forward")
	f.StringVar(&c.MetricsAddress, "metrics-address", c.MetricsAddress, "TCP address that serves /metrics, such as 127.0.0.1:9474; without, only the admin socket does")
	f.StringVar(&c.OTLPEndpoint, "otlp-endpoint", c.OTLPEndpoint, "URL of an OpenTelemetry collector that gets the spans of pods' starts, such as http://127.0.0.1:4317; without, OTEL_EXPORTER_OTLP_ENDPOINT")
	f.StringVar(&c.OTLPProtocol, "otlp-protocol", c.OTLPProtocol, `"grpc" or "http/protobuf"; without, OTEL_EXPORTER_OTLP_PROTOCOL, or gRPC for port 4317 and else HTTP`)
	f.StringVar(&c.LayerStore, "layer-store", c.LayerStore, `how new image layers are kept: "erofs" (needs Linux 6.15), "directory", or "auto": the first where it works`)
	f.StringVar(&c.RegistryConfig, "registry-config", c.RegistryConfig, "directory with HOST/hosts.toml files")
	f.StringVar(&c.Signatures, "signature-policy", c.Signatures, "containers-policy.json: which images are accepted, by whose signature; none: any image")
	f.StringVar(&c.Network, "network", c.Network, `"cni": what the CNI directory says; "builtin": a bridge network that needs no configuration`)
	f.StringVar(&c.CNIConf, "cni-conf-dir", c.CNIConf, "directory of CNI conflists")
	f.StringSliceVar(&c.CNIBin, "cni-bin-dir", c.CNIBin, "directories of CNI plugins")
	f.StringVar(&c.CNIBuiltin, "cni-builtin", c.CNIBuiltin, `when the built-in bridge, host-local and portmap are used: "missing" (no such binary), "always", "off"`)
	f.StringVar(&c.CgroupParent, "cgroup-parent", c.CgroupParent, "cgroup of pods whose request names none")
	f.StringVar(&c.CgroupDriver, "cgroup-driver", c.CgroupDriver, "who makes cgroups; cgroupfs is the only choice so far")
	f.StringToStringVar(&c.Runtimes, "runtime", c.Runtimes, "further runtime handler, NAME=PROGRAM of an OCI runtime")
	f.StringVar(&c.DefaultRuntime, "default-runtime", c.DefaultRuntime, "runtime handler of pods that name none")
	f.StringVar(&c.Monitor, "monitor", c.Monitor, "program of the monitor")
	f.StringVar(&c.SeccompDir, "seccomp-dir", c.SeccompDir, "directory of relative seccomp profiles")
	f.StringSliceVar(&c.Pinned, "pinned-image", c.Pinned, "image that the kubelet shall not collect; may be a pattern")
	f.BoolVar(&c.Owned, "take-away", c.Owned, "at the end stop and remove all pods and end the monitor")
}

// check reports all that is wrong at once.
func (c *config) check() error {
	var errs []error
	bad := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--"+flag+": "+format, args...))
	}
	for flag, path := range map[string]string{"root": c.Root, "state": c.State, "listen": c.Listen, "monitor": c.Monitor} {
		if !filepath.IsAbs(path) {
			bad(flag, "%q is not an absolute path", path)
		}
	}
	if c.Signatures != "" && !filepath.IsAbs(c.Signatures) {
		bad("signature-policy", "%q is not an absolute path", c.Signatures)
	}
	oneOf := func(flag, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			bad(flag, "%q is none of %s", value, strings.Join(allowed, ", "))
		}
	}
	oneOf("network", c.Network, "cni", "builtin")
	oneOf("cni-builtin", c.CNIBuiltin, "missing", "always", "off")
	oneOf("layer-store", c.LayerStore, "auto", "erofs", "directory")
	oneOf("cgroup-driver", c.CgroupDriver, "cgroupfs")
	if err := cgroup.Path(c.CgroupParent).Valid(); err != nil {
		bad("cgroup-parent", "%w", err)
	}
	if _, ok := c.Runtimes[builtinRuntime]; ok {
		bad("runtime", "the name %q is taken", builtinRuntime)
	}
	oneOf("default-runtime", c.DefaultRuntime, append([]string{builtinRuntime}, slices.Sorted(maps.Keys(c.Runtimes))...)...)
	if addr, err := netip.ParseAddrPort(c.StreamAddr); err != nil || !addr.Addr().IsLoopback() {
		bad("stream-address", "%q is no loopback address with a port, such as 127.0.0.1:0", c.StreamAddr)
	}
	if _, err := netip.ParseAddrPort(c.MetricsAddress); err != nil && c.MetricsAddress != "" {
		bad("metrics-address", "%q is no address with a port, such as 127.0.0.1:9474", c.MetricsAddress)
	}
	for name, program := range c.Runtimes {
		if !filepath.IsAbs(program) {
			bad("runtime", "program %q of %s is not an absolute path", program, name)
		}
	}
	return errors.Join(errs...)
}
