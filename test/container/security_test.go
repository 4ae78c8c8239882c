package container

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/container/node"
)

func id(v int64) *rt.Int64Value { return &rt.Int64Value{Value: v} }

func security(change func(*rt.LinuxContainerSecurityContext)) func(*rt.ContainerConfig) {
	return func(c *rt.ContainerConfig) { change(c.Linux.SecurityContext) }
}

// TestCapabilities tries what a capability is for, besides reading the sets.
func TestCapabilities(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	const (
		chown = "touch /tmp/f; chown 5 /tmp/f 2>/dev/null && echo chown; "
		admin = "mount -t tmpfs x /home 2>/dev/null && echo mount; "
		try   = chown + admin + "cat /proc/self/status"
	)
	caps := func(add, drop, ambient string) *rt.Capability {
		return &rt.Capability{AddCapabilities: strings.Fields(add), DropCapabilities: strings.Fields(drop), AddAmbientCapabilities: strings.Fields(ambient)}
	}
	for name, tc := range map[string]struct {
		user  *rt.Int64Value
		caps  *rt.Capability
		can   string
		field string
		want  string
	}{
		"the default":                 {nil, nil, "chown", "CapEff", "00000000a80425fb"},
		"one dropped":                 {nil, caps("", "CHOWN", ""), "", "CapEff", "00000000a80425fa"},
		"one added":                   {nil, caps("SYS_ADMIN", "", ""), "chown mount", "CapEff", "00000000a82425fb"},
		"all dropped":                 {nil, caps("", "ALL", ""), "", "CapBnd", "0000000000000000"},
		"all dropped, one added":      {nil, caps("CAP_CHOWN", "all", ""), "chown", "CapEff", "0000000000000001"},
		"all added, one dropped":      {nil, caps("ALL", "SYS_ADMIN", ""), "chown", "", ""},
		"a user has none":             {id(1000), caps("CHOWN", "", ""), "", "CapEff", "0000000000000000"},
		"a user may raise what is in": {id(1000), caps("CHOWN", "", ""), "", "CapBnd", "00000000a80425fb"},
		"ambient for a user":          {id(1000), caps("", "", "CHOWN"), "chown", "CapAmb", "0000000000000001"},
		"ambient of a dropped set":    {id(1000), caps("", "ALL", "CHOWN"), "chown", "CapPrm", "0000000000000001"},
		"ambient beyond the default":  {id(1000), caps("", "", "SYS_ADMIN"), "mount", "CapAmb", "0000000000200000"},
	} {
		t.Run(name, func(t *testing.T) {
			out := p.Shell(t, try, security(func(s *rt.LinuxContainerSecurityContext) {
				s.RunAsUser, s.Capabilities = tc.user, tc.caps
			}))
			can, _, _ := strings.Cut(out, "Name:")
			if got := node.Words(can); got != tc.can {
				t.Errorf("it can %q, want %q", got, tc.can)
			}
			if tc.field != "" && node.Field(out, tc.field) != tc.want {
				t.Errorf("%s: got %s, want %s", tc.field, node.Field(out, tc.field), tc.want)
			}
		})
	}
	t.Run("an exec has the same", func(t *testing.T) {
		c := p.ContainerConfig("exec", node.Sleeper()...)
		c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.Capabilities = id(1000), caps("", "ALL", "CHOWN")
		ctr := p.Start(t, c)
		if got := node.Words(p.Exec(t, ctr, "sh", "-c", chown+admin+"id -u")); got != "chown 1000" {
			t.Errorf("got %q, want chown by 1000", got)
		}
	})
}

func TestNoNewPrivileges(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	for name, tc := range map[string]struct {
		nnp  bool
		want string
	}{"off: a setuid program is root": {false, "0"}, "on: it is not": {true, "1000"}} {
		t.Run(name, func(t *testing.T) {
			got := p.Shell(t, "/opt/probe euid", security(func(s *rt.LinuxContainerSecurityContext) {
				s.RunAsUser, s.NoNewPrivs = id(1000), tc.nnp
			}))
			if got != tc.want {
				t.Errorf("effective user: got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestSeccomp(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	profile := filepath.Join(n.Dir, "profile.json")
	body, err := json.Marshal(map[string]any{
		"defaultAction": "SCMP_ACT_ALLOW", "architectures": []string{"SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"},
		"syscalls": []any{map[string]any{"names": []string{"mkdir", "mkdirat"}, "action": "SCMP_ACT_ERRNO", "errnoRet": 28}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(profile, body, 0o600); err != nil {
		t.Fatal(err)
	}
	const try = "/opt/probe keyctl; mkdir /tmp/d 2>&1 && echo made; grep Seccomp: /proc/self/status"
	use := func(kind rt.SecurityProfile_ProfileType, ref string) func(*rt.ContainerConfig) {
		return security(func(s *rt.LinuxContainerSecurityContext) {
			s.Seccomp = &rt.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		})
	}
	for name, tc := range map[string]struct {
		change func(*rt.ContainerConfig)
		want   string
	}{
		"none":           {nil, "ok made Seccomp: 0"},
		"Unconfined":     {use(rt.SecurityProfile_Unconfined, ""), "ok made Seccomp: 0"},
		"RuntimeDefault": {use(rt.SecurityProfile_RuntimeDefault, ""), "operation not permitted made Seccomp: 2"},
		"Localhost":      {use(rt.SecurityProfile_Localhost, profile), "ok mkdir: can't create directory '/tmp/d': No space left on device Seccomp: 2"},
		"privileged": {func(c *rt.ContainerConfig) {
			use(rt.SecurityProfile_RuntimeDefault, "")(c)
			c.Linux.SecurityContext.Privileged = true
		}, "ok made Seccomp: 0"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := node.Words(p.Shell(t, try, tc.change)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	t.Run("an exec has it, too", func(t *testing.T) {
		c := p.ContainerConfig("exec", node.Sleeper()...)
		use(rt.SecurityProfile_Localhost, profile)(c)
		if got := p.Exec(t, p.Start(t, c), "sh", "-c", "mkdir /tmp/d 2>&1; grep Seccomp: /proc/self/status"); !strings.Contains(got, "No space left") || !strings.Contains(got, "\t2") {
			t.Errorf("got %q", got)
		}
	})
	for name, ref := range map[string]string{"a file that is missing": n.Dir + "/nothing.json", "a file that is none": n.Dir} {
		t.Run(name, func(t *testing.T) {
			c := p.ContainerConfig("bad", "true")
			use(rt.SecurityProfile_Localhost, ref)(c)
			_, err := p.TryCreate(t.Context(), c)
			node.WantError(t, err, codes.InvalidArgument, "seccomp", ref)
		})
	}
}

func TestUsersAndGroups(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	for name, tc := range map[string]struct {
		change func(*rt.LinuxContainerSecurityContext)
		want   string // uid, gid, groups
	}{
		"nobody in particular": {func(*rt.LinuxContainerSecurityContext) {}, "0 0 0"},
		"by name: the image's groups, too": {func(s *rt.LinuxContainerSecurityContext) {
			s.RunAsUsername = "app"
		}, "1001 1002 1002 5001 5002"},
		"by number: the same": {func(s *rt.LinuxContainerSecurityContext) {
			s.RunAsUser = id(1001)
		}, "1001 1002 1002 5001 5002"},
		"Merge": {func(s *rt.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = id(1001), []int64{7000}
		}, "1001 1002 1002 5001 5002 7000"},
		"Strict": {func(s *rt.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = id(1001), []int64{7000}, rt.SupplementalGroupsPolicy_Strict
		}, "1001 1002 1002 7000"},
		"Strict with a group of one's own": {func(s *rt.LinuxContainerSecurityContext) {
			s.RunAsUsername, s.RunAsGroup, s.SupplementalGroupsPolicy = "app", id(8000), rt.SupplementalGroupsPolicy_Strict
		}, "1001 8000 8000"},
		"a number the image does not know": {func(s *rt.LinuxContainerSecurityContext) {
			s.RunAsUser = id(4711)
		}, "4711 0 0"},
	} {
		t.Run(name, func(t *testing.T) {
			out := p.Shell(t, "id -u; id -g; grep Groups: /proc/self/status", security(tc.change))
			lines := strings.SplitN(out, "\n", 3)
			// The kernel keeps the groups sorted; whether the first one is among them differs.
			got := lines[0] + " " + lines[1] + " " + node.Words(strings.TrimPrefix(lines[2], "Groups:"))
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
	t.Run("the home directory", func(t *testing.T) {
		got := p.Shell(t, "echo $HOME", security(func(s *rt.LinuxContainerSecurityContext) { s.RunAsUsername = "app" }))
		if got != "/home/app" {
			t.Errorf("got %s, want /home/app", got)
		}
	})
	t.Run("a name the image does not know", func(t *testing.T) {
		c := p.ContainerConfig("unknown", "true")
		c.Linux.SecurityContext.RunAsUsername = "nosuchuser"
		_, err := p.TryCreate(t.Context(), c)
		node.WantError(t, err, codes.InvalidArgument, "nosuchuser")
	})
	t.Run("a user re-opens its output", func(t *testing.T) {
		got := p.Shell(t, "echo out >/dev/stdout; echo err >/dev/stderr", security(func(s *rt.LinuxContainerSecurityContext) { s.RunAsUser = id(1001) }))
		if !strings.Contains(got, "out") || !strings.Contains(got, "err") {
			t.Errorf("got %q, want out and err", got)
		}
	})
}
