package cni_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/cni"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// files is a node that follows a directory, with plugins that are shell scripts.
type files struct {
	conf, bin, cache string
}

func newFiles(t testing.TB) files {
	root := t.TempDir()
	f := files{filepath.Join(root, "net.d"), filepath.Join(root, "bin"), filepath.Join(root, "cache")}
	must(t, os.Mkdir(f.conf, 0o755))
	must(t, os.Mkdir(f.bin, 0o755))
	return f
}

func (f files) config() cni.Config {
	return cni.Config{ConfDir: f.conf, BinDirs: []string{f.bin}, CacheDir: f.cache, Builtin: cni.WhenMissing, PluginTimeout: 20 * time.Second}
}

func (f files) plugin(t testing.TB, name, script string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(f.bin, name), []byte("#!/bin/sh\n"+script), 0o755))
}

func (f files) network(t testing.TB, version, name, subnet string, more ...string) {
	t.Helper()
	plugins := append([]string{fmt.Sprintf(`{"type":"bridge","bridge":"br-test","isDefaultGateway":true,"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]]}}`,
		filepath.Join(f.cache, "networks"), subnet)}, more...)
	must(t, os.WriteFile(filepath.Join(f.conf, "10-test.conflist"),
		fmt.Appendf(nil, `{"cniVersion":%q,"name":%q,"plugins":[%s]}`, version, name, strings.Join(plugins, ",")), 0o644))
}

func TestEveryVersionOfTheSpecification(t *testing.T) {
	f := newFiles(t)
	n := node(t, f.config())
	t.Cleanup(func() { dropBridge(t) })
	for i, v := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		f.network(t, v, "net", "10.66.0.0/24", `{"type":"portmap","capabilities":{"portMappings":true}}`, `{"type":"loopback"}`)
		p := cni.Pod{ID: fmt.Sprint("v", i), NetNS: newNS(t), PortMappings: []cni.PortMapping{{HostPort: 99, ContainerPort: 99, Protocol: cni.TCP}}}
		a, err := n.Attach(t.Context(), p)
		if err != nil || len(a.IPs) != 1 || !strings.Contains(string(a.Result), fmt.Sprintf("%q", v)) {
			t.Errorf("version %s: %+v, %v", v, a, err)
		}
		if err := n.Check(t.Context(), p); err != nil {
			t.Errorf("version %s: check: %v", v, err)
		}
		must(t, n.Detach(t.Context(), p))
	}
}

func TestHungPluginIsStopped(t *testing.T) {
	f := newFiles(t)
	c := f.config()
	c.PluginTimeout = 300 * time.Millisecond
	n := node(t, c)
	t.Cleanup(func() { dropBridge(t) })
	pids := filepath.Join(t.TempDir(), "pids")
	f.plugin(t, "hangs", "cat >/dev/null\n[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 &\necho $! $$ > "+pids+"\nwait")
	f.network(t, "1.0.0", "net", "10.66.0.0/24", `{"type":"hangs"}`)
	p := cni.Pod{ID: "p", NetNS: newNS(t)}
	began := time.Now()
	_, err := n.Attach(t.Context(), p)
	pe, ok := errors.AsType[*cni.PluginError](err)
	if !ok || pe.Plugin != "hangs" || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer to ADD after") {
		t.Errorf("attach: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("attach took %v", took)
	}
	b, err := os.ReadFile(pids)
	must(t, err)
	for s := range strings.FieldsSeq(string(b)) {
		pid, _ := strconv.Atoi(s)
		for end := time.Now().Add(5 * time.Second); alive(pid); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("process %d of the plugin is still there", pid)
				break
			}
		}
	}
	must(t, n.Detach(t.Context(), p))
	if got := allocated(t, f.cache); len(got) != 0 {
		t.Errorf("addresses left: %v", got)
	}
}

// alive is false for zombies, which this machine's pid 1 may reap late.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && syscall.Kill(pid, 0) == nil && !strings.Contains(string(b), ") Z ")
}

func TestPluginErrors(t *testing.T) {
	f := newFiles(t)
	n := node(t, f.config())
	t.Cleanup(func() { dropBridge(t) })
	long := strings.Repeat("long ", 2000)
	for name, tc := range map[string]struct {
		script, want string
		code         uint
	}{
		"error in JSON":     {`echo '{"code":11,"msg":"try again","details":"later"}'; exit 1`, "plugin bad: try again (later)", 11},
		"text on stderr":    {`echo oops >&2; exit 3`, "plugin bad: exit status 3 (oops)", 0},
		"nothing":           {`exit 1`, "plugin bad: exit status 1 without a message", 0},
		"page of text":      {`echo '` + long + `' >&2; exit 1`, "long...", 0},
		"no JSON as result": {`echo hello`, "network net: ", 0},
	} {
		f.plugin(t, "bad", "cat >/dev/null\n[ $CNI_COMMAND = DEL ] && exit 0\n"+tc.script)
		f.network(t, "1.0.0", "net", "10.66.0.0/24", `{"type":"bad"}`)
		p := cni.Pod{ID: "p", NetNS: newNS(t)}
		_, err := n.Attach(t.Context(), p)
		if err == nil || !strings.Contains(err.Error(), tc.want) || len(err.Error()) > 2000 {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
		if pe, ok := errors.AsType[*cni.PluginError](err); ok && pe.Code != tc.code {
			t.Errorf("%s: code %d, want %d", name, pe.Code, tc.code)
		}
		must(t, n.Detach(t.Context(), p))
		if got := allocated(t, f.cache); len(got) != 0 {
			t.Fatalf("%s: addresses left: %v", name, got)
		}
	}
}

func TestUnsupportedOptionsAreRefused(t *testing.T) {
	f := newFiles(t)
	n := node(t, f.config())
	must(t, os.WriteFile(filepath.Join(f.conf, "1.conf"), []byte(`{"cniVersion":"1.0.0","name":"net","type":"bridge","vlan":7,"ipam":{"type":"host-local","subnet":"10.66.0.0/24"}}`), 0o644))
	p := cni.Pod{ID: "p", NetNS: newNS(t)}
	if _, err := n.Attach(t.Context(), p); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), "option vlan") {
		t.Errorf("vlan: %v", err)
	}
	must(t, n.Detach(t.Context(), p))
	if _, err := n.Attach(t.Context(), cni.Pod{ID: "p", Namespace: "a;IP=10.0.0.1"}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("argument in a name: %v", err)
	}
}

// A daemon that dies between the plugins leaves a record; the next one cleans up.
func TestCrashBetweenIntentAndResult(t *testing.T) {
	needNode(t)
	f := newFiles(t)
	f.plugin(t, "fails", "cat >/dev/null\n[ $CNI_COMMAND = DEL ] && exit 0\nexit 1")
	f.network(t, "0.4.0", "net", "10.66.0.0/24", `{"type":"fails"}`)
	t.Cleanup(func() { dropBridge(t) })
	p := cni.Pod{ID: "p", NetNS: newNS(t)}
	first, err := cni.New(t.Context(), f.config())
	must(t, err)
	if _, err := first.Attach(t.Context(), p); err == nil {
		t.Fatal("attach succeeds")
	}
	must(t, first.Close())
	if got := allocated(t, f.cache); len(got) != 1 || len(vethNames(t)) != 1 {
		t.Fatalf("the crash left %v and links %v, want one each", got, vethNames(t))
	}
	// Meanwhile the configuration changed; the old one counts.
	f.network(t, "1.0.0", "other", "10.67.0.0/24")
	n := node(t, f.config())
	must(t, n.GC(t.Context(), nil))
	if got := allocated(t, f.cache); len(got) != 0 {
		t.Errorf("addresses left: %v", got)
	}
	// The same pod is tried anew after another crash, without a clean-up between.
	f.network(t, "0.4.0", "net", "10.66.0.0/24", `{"type":"fails"}`)
	_, _ = n.Attach(t.Context(), p)
	f.plugin(t, "fails", `cat >/dev/null; [ $CNI_COMMAND = DEL ] && exit 0; echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.66.0.9/24"}]}'`)
	if a, err := n.Attach(t.Context(), p); err != nil || a.IPs[0].String() != "10.66.0.9" {
		t.Errorf("attach after a failed one: %+v, %v", a, err)
	}
	if got := allocated(t, f.cache); len(got) != 1 {
		t.Errorf("addresses in use: %v, want one", got)
	}
	must(t, n.Detach(t.Context(), p))
	dropNS(p.NetNS)
}

func TestCorruptRecord(t *testing.T) {
	f := newFiles(t)
	n := node(t, f.config())
	t.Cleanup(func() { dropBridge(t) })
	f.network(t, "1.0.0", "net", "10.66.0.0/24")
	p := cni.Pod{ID: "p", NetNS: newNS(t)}
	_, err := n.Attach(t.Context(), p)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(f.cache, "pods/p.json"), nil, 0o600))
	must(t, n.GC(t.Context(), nil))
	if got := allocated(t, f.cache); len(got) != 0 {
		t.Errorf("addresses left: %v", got)
	}
}

func TestReadyFollowsTheDirectory(t *testing.T) {
	f := newFiles(t)
	must(t, os.Remove(f.conf))
	n := node(t, f.config())
	expect := func(step, want string) {
		t.Helper()
		err := n.Ready()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", step, err, want)
		}
	}
	expect("no directory", "does not exist")
	if _, err := n.Attach(t.Context(), cni.Pod{ID: "p"}); !errors.Is(err, errdef.ErrRetry) {
		t.Errorf("attach without configuration: %v", err)
	}
	must(t, os.Mkdir(f.conf, 0o755))
	expect("empty", "no network configuration in")
	path := filepath.Join(f.conf, "20-x.conflist")
	must(t, os.WriteFile(path, []byte(`{"name":`), 0o644))
	expect("broken", "20-x.conflist")
	f.network(t, "1.0.0", "net", "10.66.0.0/24")
	expect("a valid one beside it", "")
	f.network(t, "1.0.0", "net", "10.66.0.0/24", `{"type":"absent"}`)
	expect("missing plugin", "plugin absent: not installed in")
	f.plugin(t, "absent", "exit 0")
	expect("plugin arrives", "")
	must(t, os.RemoveAll(f.conf))
	expect("directory gone", "does not exist")
	must(t, os.Mkdir(f.conf, 0o755))
	f.network(t, "1.0.0", "net", "10.66.0.0/24")
	expect("directory again", "")
	f.plugin(t, "bridge", "exit 0")
	expect("bridge program without host-local", "address manager host-local must be installed")
	must(t, os.Remove(filepath.Join(f.bin, "bridge")))
	f.plugin(t, "moody", `cat >/dev/null; [ $CNI_COMMAND = STATUS ] && echo '{"code":50,"msg":"no uplink"}' && exit 1`)
	f.network(t, "1.1.0", "net", "10.66.0.0/24", `{"type":"moody"}`)
	for end := time.Now().Add(10 * time.Second); n.Ready() == nil && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	expect("STATUS refuses", "plugin moody: no uplink")
}

func TestRuntimeConfigReachesPlugins(t *testing.T) {
	f := newFiles(t)
	n := node(t, f.config())
	t.Cleanup(func() { dropBridge(t) })
	seen := filepath.Join(t.TempDir(), "seen")
	f.plugin(t, "shows", `cat >`+seen+`; echo "$CNI_ARGS" >> `+seen+`; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.66.0.9/24"}]}'`)
	f.network(t, "1.0.0", "net", "10.66.0.0/24", `{"type":"shows","capabilities":{"bandwidth":true,"dns":true,"cgroupPath":true,"portMappings":true}}`)
	p := cni.Pod{ID: "p", Namespace: "ns", Name: "nm", UID: "u", NetNS: newNS(t), CgroupPath: "/kubepods/p",
		DNS: cni.DNS{Servers: []string{"10.0.0.10"}}, Annotations: map[string]string{"kubernetes.io/ingress-bandwidth": "10M"},
		PortMappings: []cni.PortMapping{{HostPort: 1, ContainerPort: 2, Protocol: cni.UDP}}}
	_, err := n.Attach(t.Context(), p)
	must(t, err)
	b, err := os.ReadFile(seen)
	must(t, err)
	for _, want := range []string{`"ingressRate":10000000`, `"servers":["10.0.0.10"]`, `"cgroupPath":"/kubepods/p"`, `"protocol":"udp"`,
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=nm;K8S_POD_INFRA_CONTAINER_ID=p;K8S_POD_UID=u"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("plugin did not see %s in %s", want, b)
		}
	}
	must(t, n.Detach(t.Context(), p))
	p.Annotations["kubernetes.io/egress-bandwidth"] = "lots"
	if _, err := n.Attach(t.Context(), p); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("bad annotation: %v", err)
	}
}
