package spec

import (
	"errors"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/oci/launch/seccomp"
)

// TestEveryCallIsSorted: a call that the kernel's tables gain must be looked at, and
// none may be in two lists that contradict each other.
func TestEveryCallIsSorted(t *testing.T) {
	place := map[string]string{}
	put := func(list, calls string) {
		for name := range strings.FieldsSeq(calls) {
			if was, ok := place[name]; ok && (list != "capability" || was != list) {
				t.Errorf("%s is %s and %s", name, was, list)
			}
			place[name] = list
		}
	}
	for _, g := range allowedCalls {
		put("allowed", g.calls)
	}
	for _, g := range capabilityCalls {
		put("capability", g.calls)
		if !slices.Contains(capabilities, g.capabilities) {
			t.Errorf("%s is no capability", g.capabilities)
		}
	}
	for _, g := range deniedCalls {
		put("denied: "+g.why, g.calls)
	}
	for _, name := range callsWithArguments {
		if was := place[name]; was != "" && was != "capability" {
			t.Errorf("%s has rules by argument and is %s", name, was)
		}
		place[name] = "arguments"
	}
	known := seccomp.Names()
	for _, name := range known {
		if place[name] == "" {
			t.Errorf("%s is in no list: allow it or deny it with a reason", name)
		}
		delete(place, name)
	}
	// Some names are of calls so old that today's tables have dropped them.
	for name, list := range place {
		if list == "allowed" || list == "capability" || list == "arguments" {
			t.Errorf("%s is %s, but no architecture has it", name, list)
		}
	}
}

func allowed(p *specs.LinuxSeccomp, name string) bool {
	return slices.ContainsFunc(p.Syscalls, func(s specs.LinuxSyscall) bool {
		return len(s.Args) == 0 && s.Action == specs.ActAllow && slices.Contains(s.Names, name)
	})
}

func TestCapabilitiesOpenCalls(t *testing.T) {
	without := DefaultSeccomp("arm64", defaultCapabilities)
	for _, name := range []string{"mount", "setns", "bpf", "clone", "clone3", "clock_settime", "init_module", "io_uring_setup", "keyctl"} {
		if allowed(without, name) {
			t.Errorf("%s is allowed by default", name)
		}
	}
	if !allowed(without, "chroot") {
		t.Error("chroot is denied though CAP_SYS_CHROOT is there")
	}
	for capability, name := range map[string]string{"CAP_SYS_ADMIN": "clone3", "CAP_BPF": "bpf", "CAP_SYS_TIME": "clock_settime", "CAP_SYS_MODULE": "init_module"} {
		if !allowed(DefaultSeccomp("arm64", []string{capability}), name) {
			t.Errorf("%s does not open %s", capability, name)
		}
	}
	if everything := DefaultSeccomp("amd64", capabilities); allowed(everything, "io_uring_setup") || allowed(everything, "kexec_load") {
		t.Error("capabilities open what is denied to all")
	}
}

const dockerProfile = `{
	"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
	"archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}, {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}],
	"syscalls": [
		{"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "x"},
		{"name": "old", "action": "SCMP_ACT_ALLOW", "args": null, "includes": {}, "excludes": {}},
		{"names": ["k48"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
		{"names": ["armed"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm", "arm64"]}},
		{"names": ["admin"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
		{"names": ["noadmin"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390x"]}}
	]}`

func TestParseSeccompDocker(t *testing.T) {
	for _, tc := range []struct {
		arch  string
		caps  []string
		names string
		archs int
	}{
		{"amd64", nil, "read old k48 noadmin", 3},
		{"arm64", nil, "read old k48 armed noadmin", 1},
		{"amd64", []string{"CAP_SYS_ADMIN"}, "read old k48 admin", 3},
	} {
		p, err := ParseSeccomp([]byte(dockerProfile), tc.arch, tc.caps)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range p.Syscalls {
			names = append(names, s.Names...)
		}
		if got := strings.Join(names, " "); got != tc.names || len(p.Architectures) != tc.archs || *p.DefaultErrnoRet != 1 {
			t.Errorf("%s %v: got %q, %v, want %q", tc.arch, tc.caps, got, p.Architectures, tc.names)
		}
	}
}

func TestParseSeccompRefuses(t *testing.T) {
	for profile, want := range map[string]string{
		``:                                      "EOF",
		`{}`:                                    "defaultAction is missing",
		`{"defaultAction":"SCMP_ACT_ALLOW"} {}`: "more than one document",
		`{"defaultAction":"SCMP_ACT_ALLOW","sycalls":[]}`:                                                                        "unknown field",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO"}]}`:                                            "syscalls[0]: no names",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_ERRNO"}]}`:                   "both name and names",
		`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}`:   "both architectures and archMap",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_ERRNO","includes":{"minKernel":"99.0"}}]}`: "minKernel 99.0",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_ERRNO","excludes":{"minKernel":"new"}}]}`:  "is not a version",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_ERRNO","args":[{"index":-1,"value":1}]}]}`: "seccomp profile",
		`{"defaultAction":"SCMP_ACT_ALLOW","comment":"` + strings.Repeat("x", maxProfile) + `"}`:                                 "larger than",
	} {
		if _, err := ParseSeccomp([]byte(profile), "amd64", nil); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: got %v, want %q", profile, err, want)
		}
	}
}
