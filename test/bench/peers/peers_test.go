package peers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// tools is a directory of programs that know their versions and nothing else.
func tools(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{}
	for _, name := range names {
		files[filepath.Join(dir, name)] = "#!/bin/sh\necho " + name + " version 1\n"
	}
	if err := stage.WriteFiles(files); err != nil {
		t.Fatal(err)
	}
	return dir
}

func place(t *testing.T) Place {
	t.Helper()
	dir := t.TempDir()
	return Place{Disk: filepath.Join(dir, "disk"), State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "cri.sock"), Cgroup: "bench/1"}
}

// document reads a configuration file as TOML.
func document(t *testing.T, file string) map[string]any {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := toml.Unmarshal(body, &v); err != nil {
		t.Fatalf("%s: %v\n%s", file, err, body)
	}
	return v
}

// at follows keys.
func at(t *testing.T, v any, keys ...string) any {
	t.Helper()
	for _, key := range keys {
		m, ok := v.(map[string]any)
		if !ok || m[key] == nil {
			t.Fatalf("no %q on the way %q", key, keys)
		}
		v = m[key]
	}
	return v
}

func TestContainerd(t *testing.T) {
	dir := tools(t, "containerd", shim, "runc", "cni/bridge")
	target, err := Containerd{Tools: dir, Network: &CNI{Bin: filepath.Join(dir, "cni")}, Runtime: filepath.Join(dir, "runc")}.Target(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := "containerd version 1; runc version 1"; target.Version != want {
		t.Errorf("version: got %q, want %q", target.Version, want)
	}
	p := place(t)
	argv, err := target.Command(p)
	if err != nil {
		t.Fatal(err)
	}
	config := document(t, argv[slices.Index(argv, "--config")+1])
	plugins := at(t, config, "plugins")
	if got := at(t, plugins, "io.containerd.cri.v1.runtime", "containerd", "runtimes", "bench", "options", "BinaryName"); got != filepath.Join(dir, "runc") {
		t.Errorf("runtime: got %v", got)
	}
	if got := at(t, plugins, "io.containerd.cri.v1.images", "pinned_images", "sandbox"); got != Pause {
		t.Errorf("sandbox image: got %v", got)
	}
	// It would turn the transfer service off.
	if images, _ := at(t, plugins, "io.containerd.cri.v1.images").(map[string]any); images["max_concurrent_downloads"] != nil {
		t.Error("max_concurrent_downloads is set in the CRI part")
	}
	network(t, at(t, plugins, "io.containerd.cri.v1.runtime", "cni", "conf_dir"))
}

// network sees that a directory has one conflist, of bridge and host-local.
func network(t *testing.T, dir any) {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(dir.(string), "10-bench.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	if len(list.Plugins) != 1 || list.Plugins[0].Type != "bridge" {
		t.Errorf("plugins: got %v, want one bridge", list.Plugins)
	}
}

func TestCRIO(t *testing.T) {
	dir := tools(t, "crio", "crun", "conmon", "pinns", "cni/bridge")
	in := func(name string) string { return filepath.Join(dir, name) }
	for name, tc := range map[string]struct {
		c                CRIO
		runtime, monitor string
	}{
		"pods":  {CRIO{Tools: dir, Network: &CNI{Bin: in("cni")}, Runtime: in("crun"), Conmon: in("conmon")}, "crun", in("conmon")},
		"pulls": {CRIO{Tools: dir}, "runc", ""},
	} {
		t.Run(name, func(t *testing.T) {
			target, err := tc.c.Target(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p := place(t)
			argv, err := target.Command(p)
			if err != nil {
				t.Fatal(err)
			}
			runtime := at(t, document(t, argv[slices.Index(argv, "--config")+1]), "crio", "runtime")
			if got := at(t, runtime, "default_runtime"); got != tc.runtime {
				t.Errorf("runtime: got %v, want %s", got, tc.runtime)
			}
			if tc.monitor == "" {
				tc.monitor = p.in("bin/conmon")
			}
			if got := at(t, runtime, "runtimes", tc.runtime, "monitor_path"); got != tc.monitor {
				t.Errorf("monitor: got %v, want %s", got, tc.monitor)
			}
		})
	}
}

func TestOurs(t *testing.T) {
	dir := tools(t, "cri-runtime", "cni/bridge")
	for name, tc := range map[string]struct {
		o    Ours
		want []string
	}{
		"built in": {Ours{Bin: dir, Builtin: true}, []string{"--network builtin"}},
		"binaries": {Ours{Bin: dir, Network: &CNI{Bin: filepath.Join(dir, "cni")}}, []string{"--network cni", "--cni-builtin off", "--cni-bin-dir " + filepath.Join(dir, "cni")}},
		"pulls":    {Ours{Bin: dir}, []string{"--network cni"}},
	} {
		t.Run(name, func(t *testing.T) {
			target, err := tc.o.Target(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			argv, err := target.Command(place(t))
			if err != nil {
				t.Fatal(err)
			}
			line := strings.Join(argv, " ")
			for _, want := range append(tc.want, "--cgroup-parent /bench/1/runtime", "--take-away") {
				if !strings.Contains(line, want) {
					t.Errorf("command lacks %q: %s", want, line)
				}
			}
			if tc.o.Network != nil {
				network(t, argv[slices.Index(argv, "--cni-conf-dir")+1])
			}
		})
	}
	if _, err := (Ours{Bin: dir, Store: "erofs"}).Target(t.Context()); err == nil {
		t.Error("a store that the build does not know: got no error")
	}
}

// TestMissing: what is not there is said with the command that makes it.
func TestMissing(t *testing.T) {
	dir, empty := tools(t, "containerd", "crio", "crun"), t.TempDir()
	network := &CNI{Bin: empty}
	for want, find := range map[string]func() error{
		"hack/testtools.sh containerd": func() error { _, err := Containerd{Tools: empty}.Target(t.Context()); return err },
		"hack/testtools.sh " + shim: func() error {
			_, err := Containerd{Tools: dir, Network: network, Runtime: filepath.Join(dir, "crun")}.Target(t.Context())
			return err
		},
		"hack/testtools.sh crio": func() error { _, err := CRIO{Tools: empty}.Target(t.Context()); return err },
		"hack/testtools.sh oci": func() error {
			_, err := CRIO{Tools: dir, Network: network, Runtime: filepath.Join(dir, "crun"), Conmon: filepath.Join(empty, "conmon")}.Target(t.Context())
			return err
		},
	} {
		if err := find(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %q", err, want)
		}
	}
}
