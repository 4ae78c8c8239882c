package spec

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, name string, v any) {
	t.Helper()
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != string(got) {
		t.Errorf("%s differs (%v): run with -update and look at the difference; got\n%s", file, err, got)
	}
}

// plain is a container as the kubelet asks for, and the base of all cases.
func plain() Container {
	adj := 1000
	in := func(kind string) Namespace { return Namespace{Mode: Join, Path: "/run/cri-runtime/pod/1/ns/" + kind} }
	return Container{
		Hostname: "web-0",
		Process: Process{
			Args: []string{"/bin/server", "-p", "80"}, Env: []string{"A=1"}, Home: "/root",
			User: User{Groups: []uint32{0}}, OOMScoreAdj: &adj,
		},
		Paths:      Paths{Default: true},
		Namespaces: Namespaces{PID: Namespace{Mode: New}, IPC: in("ipc"), Network: in("net"), UTS: in("uts"), Cgroup: Namespace{Mode: New}, User: Namespace{Mode: Host}},
		Mounts: []Mount{
			{Destination: "/data/deep", Source: "/host/deep", Propagation: HostToContainer},
			{Destination: "/data", Source: "/host/data", ReadOnly: true, RecursiveReadOnly: true, Options: []string{"noexec"}},
			{Destination: "/etc/hosts", Source: "/run/hosts"},
			{Destination: "/dev/shm", Source: "/run/shm", Options: []string{"nosuid", "nodev", "noexec"}},
		},
		Resources: Resources{CPUShares: 102, CPUQuota: -1, CPUPeriod: 100000, MemoryLimit: 64 << 20, MemorySwap: 64 << 20, PidsLimit: 100,
			Hugepages: []Hugepages{{"2MB", 0}}, Unified: map[string]string{"memory.high": "1"}},
		Cgroup:      Cgroup{Path: "/kubepods/pod1/c1"},
		Annotations: map[string]string{"k": "v"},
	}
}

func changed(f func(c *Container)) Container {
	c := plain()
	f(&c)
	return c
}

func userNamespace(c *Container) {
	c.Namespaces.User = Namespace{Mode: Join, Path: "/run/ns/user"}
	c.Namespaces.UIDs = []IDMap{{0, 65536, 65536}}
	c.Namespaces.GIDs = c.Namespaces.UIDs
}

func TestBuildGolden(t *testing.T) {
	one := int64(1)
	for name, c := range map[string]Container{
		"plain": plain(),
		"privileged": changed(func(c *Container) {
			c.Privileged, c.Seccomp = true, DefaultSeccomp("amd64", nil)
			c.Process.Capabilities = Capabilities{Drop: []string{"ALL"}}
			c.Devices.Nodes = []Device{{Path: "/dev/sda", Type: "b", Major: 8, Mode: 0o660, Permissions: "rwm"}}
		}),
		"user": changed(func(c *Container) {
			c.Process.User = User{UID: 1000, GID: 1000, Groups: []uint32{1000, 5}}
			c.Process.Capabilities = Capabilities{Drop: []string{"all"}, Add: []string{"net_admin"}, AddAmbient: []string{"CAP_NET_BIND_SERVICE"}}
			c.Process.NoNewPrivileges, c.ReadonlyRootfs, c.Process.Terminal = true, true, true
			c.Process.AppArmorProfile, c.Process.SelinuxLabel, c.MountLabel = "p", "a:b:c:d", "e"
			c.Process.Rlimits = []Rlimit{{"RLIMIT_NOFILE", 10, 20}}
			c.Process.Cwd = "work/../here"
		}),
		"userns": changed(func(c *Container) {
			userNamespace(c)
			c.Mounts = []Mount{{Destination: "/v", Source: "/h", UIDs: c.Namespaces.UIDs, GIDs: c.Namespaces.GIDs}}
		}),
		"userns-host": changed(func(c *Container) {
			userNamespace(c)
			c.Namespaces.GIDs = []IDMap{{0, 65536, 5}}
			c.Namespaces.Network, c.Namespaces.PID, c.Namespaces.IPC = Namespace{Mode: Host}, Namespace{Mode: Host}, Namespace{Mode: Host}
			c.Mounts = nil
		}),
		"own-dev": changed(func(c *Container) {
			c.Mounts = []Mount{{Destination: "/dev/", Source: "/dev", Propagation: Bidirectional}, {Destination: "/tmp", Type: "tmpfs", Options: []string{"size=1m", "noexec"}}, {Destination: "/proc/meminfo", Source: "/lxcfs/meminfo"}}
			c.Devices = Devices{Nodes: []Device{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, Mode: 0o666, Permissions: "rw"}}, Rules: []DeviceRule{{"b", &one, nil, "r"}}}
			c.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "5", "net/ipv4/conf/eth0.1/forwarding": "1"}
		}),
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Build(c)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name, s)
		})
	}
}

func TestBuildRefuses(t *testing.T) {
	adj := 1001
	for want, f := range map[string]func(c *Container){
		"args: no command":                       func(c *Container) { c.Process.Args = []string{""} },
		"args[1]: has a NUL":                     func(c *Container) { c.Process.Args = []string{"a", "b\x00"} },
		`env: variable "X"`:                      func(c *Container) { c.Process.Env = []string{"X"} },
		`env: variable ""`:                       func(c *Container) { c.Process.Env = []string{"=x"} },
		"oom_score_adj: 1001":                    func(c *Container) { c.Process.OOMScoreAdj = &adj },
		"rlimit \"RLIMIT_X\"":                    func(c *Container) { c.Process.Rlimits = []Rlimit{{Type: "RLIMIT_X"}} },
		`capabilities.add[0]: capability "sudo"`: func(c *Container) { c.Process.Capabilities.Add = []string{"sudo"} },
		"capabilities.drop[1]":                   func(c *Container) { c.Process.Capabilities.Drop = []string{"KILL", "CAP_X"} },
		"not hold CAP_SYS_RESOURCE": func(c *Container) {
			c.Process.Capabilities = Capabilities{Add: []string{"SYS_RESOURCE"}, Available: []string{"CAP_KILL"}}
		},
		"add_ambient: CAP_KILL is dropped": func(c *Container) {
			c.Process.Capabilities = Capabilities{AddAmbient: []string{"KILL"}, Drop: []string{"KILL"}}
		},
		"masked_paths[0]":                      func(c *Container) { c.Paths = Paths{Masked: []string{"proc"}} },
		"readonly_paths[0]":                    func(c *Container) { c.Paths = Paths{Readonly: []string{"/.."}} },
		"namespace ipc":                        func(c *Container) { c.Namespaces.IPC = Namespace{} },
		"namespace network":                    func(c *Container) { c.Namespaces.Network = Namespace{Mode: Join} },
		"user namespace without id mappings":   func(c *Container) { c.Namespaces.User.Mode = New },
		"id mappings without a user namespace": func(c *Container) { c.Namespaces.UIDs = []IDMap{{0, 1, 1}} },
		"/data is mounted twice":               func(c *Container) { c.Mounts = append(c.Mounts, Mount{Destination: "/data/", Source: "/x"}) },
		"below /proc":                          func(c *Container) { c.Mounts = []Mount{{Destination: "/x/../proc/self", Source: "/x"}} },
		"replace the root":                     func(c *Container) { c.Mounts = []Mount{{Destination: "/.", Source: "/x"}} },
		`"etc" is not absolute`:                func(c *Container) { c.Mounts = []Mount{{Destination: "etc", Source: "/x"}} },
		"host path":                            func(c *Container) { c.Mounts = []Mount{{Destination: "/etc", Source: "x"}} },
		"recursive read-only without":          func(c *Container) { c.Mounts = []Mount{{Destination: "/e", Source: "/x", RecursiveReadOnly: true}} },
		"recursive read-only with propagation": func(c *Container) {
			c.Mounts = []Mount{{Destination: "/e", Source: "/x", RecursiveReadOnly: true, ReadOnly: true, Propagation: HostToContainer}}
		},
		`mount option "bind" is not supported`: func(c *Container) { c.Mounts = []Mount{{Destination: "/e", Source: "/x", Options: []string{"bind"}}} },
		`mount option "size=1,mode=0"`: func(c *Container) {
			c.Mounts = []Mount{{Destination: "/e", Type: "tmpfs", Options: []string{"size=1,mode=0"}}}
		},
		`type "overlay"`:                          func(c *Container) { c.Mounts = []Mount{{Destination: "/e", Type: "overlay"}} },
		"device /dev/x: permissions":              func(c *Container) { c.Devices.Nodes = []Device{{Path: "/dev/x", Type: "c", Permissions: "x"}} },
		"no absolute path":                        func(c *Container) { c.Devices.Nodes = []Device{{Path: "x", Type: "c", Permissions: "r"}} },
		"resources.memory_limit: -1":              func(c *Container) { c.Resources.MemoryLimit = -1 },
		"below the memory limit":                  func(c *Container) { c.Resources.MemorySwap = 1 },
		`resources.unified: "../memory.max"`:      func(c *Container) { c.Resources.Unified = map[string]string{"../memory.max": "1"} },
		`sysctl "kernel.core_pattern" belongs to`: func(c *Container) { c.Sysctls = map[string]string{"kernel.core_pattern": "|/x"} },
		`sysctl "net.ipv4.x" would change`: func(c *Container) {
			c.Sysctls = map[string]string{"net.ipv4.x": "1"}
			c.Namespaces.Network = Namespace{Mode: Host}
		},
		`sysctl "net/../vm/drop_caches": not a`:    func(c *Container) { c.Sysctls = map[string]string{"net/../vm/drop_caches": "1"} },
		`sysctl "kernel.sem": the value has a NUL`: func(c *Container) { c.Sysctls = map[string]string{"kernel.sem": "1\n+"} },
	} {
		if _, err := Build(changed(f)); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want one that says %q", err, want)
		}
	}
}

func TestEnvironmentKeepsSecretsOutOfErrors(t *testing.T) {
	_, err := Build(changed(func(c *Container) { c.Process.Env = []string{"TOKEN=hunter2\x00"} }))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v, want an error without the value", err)
	}
}

// TestBytesSurvive: values of the environment need not be UTF-8.
func TestBytesSurvive(t *testing.T) {
	s, err := Build(changed(func(c *Container) { c.Process.Env = []string{"X=\xff\xfe"}; c.Process.Args = []string{"\xff"} }))
	if err != nil || !slices.Contains(s.Process.Env, "X=\xff\xfe") || s.Process.Args[0] != "\xff" {
		t.Errorf("got %q, %v", s.Process.Env, err)
	}
}

func TestCapabilities(t *testing.T) {
	for name, tc := range map[string]struct {
		c    Capabilities
		uid  uint32
		want map[string]string // set: names that must be all of it, "14" for the default
	}{
		"default":           {Capabilities{}, 0, map[string]string{"bounding": "14", "effective": "14", "inheritable": "", "ambient": ""}},
		"user":              {Capabilities{}, 7, map[string]string{"bounding": "14", "effective": "", "permitted": ""}},
		"drop all, add":     {Capabilities{Drop: []string{"ALL"}, Add: []string{"kill"}}, 0, map[string]string{"bounding": "CAP_KILL", "permitted": "CAP_KILL"}},
		"add and drop all":  {Capabilities{Drop: []string{"ALL"}, Add: []string{"ALL"}}, 0, map[string]string{"bounding": ""}},
		"one dropped twice": {Capabilities{Drop: []string{"ALL"}, Add: []string{"KILL", "CHOWN"}, Available: nil}, 0, map[string]string{"bounding": "CAP_CHOWN CAP_KILL"}},
		"ambient":           {Capabilities{Drop: []string{"ALL"}, AddAmbient: []string{"KILL"}}, 7, map[string]string{"bounding": "CAP_KILL", "effective": "CAP_KILL", "inheritable": "CAP_KILL", "ambient": "CAP_KILL"}},
		"what there is":     {Capabilities{Add: []string{"ALL"}, Available: []string{"CAP_KILL", "CAP_BPF"}}, 0, map[string]string{"bounding": "CAP_KILL CAP_BPF"}},
	} {
		got, err := processCapabilities(Process{Capabilities: tc.c, User: User{UID: tc.uid}}, false)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		sets := map[string][]string{"bounding": got.Bounding, "effective": got.Effective, "permitted": got.Permitted, "inheritable": got.Inheritable, "ambient": got.Ambient}
		for set, want := range tc.want {
			text := strings.Join(sets[set], " ")
			if want == "14" && len(sets[set]) == 14 || text == want {
				continue
			}
			t.Errorf("%s: %s: got %q, want %q", name, set, text, want)
		}
	}
}

func TestBuildProcess(t *testing.T) {
	s, err := Build(plain())
	if err != nil {
		t.Fatal(err)
	}
	p, err := BuildProcess(s.Process, Exec{Args: []string{"sh"}, Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(p.Env, "TERM=xterm") || slices.Contains(s.Process.Env, "TERM=xterm") {
		t.Errorf("environment: exec %q, container %q", p.Env, s.Process.Env)
	}
	if !p.Terminal || s.Process.Terminal || p.Cwd != s.Process.Cwd || p.Capabilities != s.Process.Capabilities {
		t.Errorf("got %+v", p)
	}
	if _, err := BuildProcess(s.Process, Exec{}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("no command: got %v", err)
	}
}

// FuzzParseSeccomp: whatever a file says, there is an answer.
func FuzzParseSeccomp(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"read","action":"SCMP_ACT_ERRNO"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseSeccomp(b, "amd64", nil)
		if (p == nil) == (err == nil) {
			t.Errorf("got %v, %v", p, err)
		}
	})
}
