package apparmor

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != got {
		t.Errorf("%s: got\n%s\nwant\n%s\n%v", name, got, want, err)
	}
}

// fakeHost is a directory that looks like the kernel's interface.
func fakeHost(t *testing.T, enabled, profiles string) *Host {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"enabled": enabled, "profiles": profiles, "current": "unconfined\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &Host{
		securityfs: dir, enabled: filepath.Join(dir, "enabled"), current: filepath.Join(dir, "current"),
		config: dir, parser: filepath.Join(dir, "parser"),
	}
}

// writeParser makes a parser that does what the script says.
func (h *Host) writeParser(t *testing.T, script string) {
	t.Helper()
	if err := os.WriteFile(h.parser, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestProfileText(t *testing.T) {
	golden(t, "default.txt", defaultProfile{Name: DefaultName, ABI: "abi/3.0"}.text())
	golden(t, "confined.txt", defaultProfile{Name: DefaultName, Daemon: "/usr/bin/cri-runtime"}.text())
}

func TestTextDependsOnHost(t *testing.T) {
	h := fakeHost(t, "Y\n", "")
	if text := h.profile(); strings.Contains(text, "abi <") {
		t.Errorf("names an abi that is not installed:\n%s", text)
	}
	if err := os.MkdirAll(filepath.Join(h.config, "abi"), 0o755); err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]string{filepath.Join(h.config, "abi", abi): "", h.current: "my daemon (enforce)\n"} {
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text := h.profile()
	for _, want := range []string{"abi <abi/3.0>,\n", `peer="my daemon",`} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}

func TestLoaded(t *testing.T) {
	h := fakeHost(t, "Y\n", "a (enforce)\nb c (d) (complain)\nunder//child (enforce)\n")
	for name, want := range map[string]bool{"a": true, "b c (d)": true, "under//child": true, "b": false, "": false, "a (enforce)": false} {
		if got, err := h.Loaded(name); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", name, got, err, want)
		}
	}
	if err := os.Remove(filepath.Join(h.securityfs, "profiles")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Loaded("a"); err == nil || !strings.Contains(err.Error(), "securityfs") {
		t.Errorf("without securityfs: got %v, want a hint", err)
	}
}

func TestOff(t *testing.T) {
	h := fakeHost(t, "N\n", "a (enforce)\n")
	if name, err := h.EnsureDefault(t.Context()); name != "" || err != nil {
		t.Errorf("got %q, %v, want nothing", name, err)
	}
	if loaded, err := h.Loaded("a"); loaded || err != nil {
		t.Errorf("got %v, %v, want false", loaded, err)
	}
}

func TestEnsureDefault(t *testing.T) {
	h := fakeHost(t, "Y\n", "")
	_, err := h.EnsureDefault(t.Context())
	if !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, os.ErrNotExist) || !errors.Is(err, errdef.ErrRetry) || !strings.Contains(err.Error(), "apparmor package") {
		t.Errorf("without parser: got %v, want one that names the package", err)
	}
	h.writeParser(t, "echo 'syntax error at line 3' >&2; exit 1\n")
	if _, err = h.EnsureDefault(t.Context()); err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("failing parser: got %v, want its words", err)
	}
	dir := h.securityfs
	h.writeParser(t, `cat > "`+dir+`/text" && echo "`+DefaultName+` (enforce)" > "`+dir+`/profiles" && echo x >> "`+dir+`/runs"`+"\n")
	for range 3 {
		if name, err := h.EnsureDefault(t.Context()); name != DefaultName || err != nil {
			t.Fatalf("got %q, %v", name, err)
		}
	}
	if text, _ := os.ReadFile(filepath.Join(dir, "text")); string(text) != h.profile() {
		t.Errorf("the parser got\n%s", text)
	}
	if runs, _ := os.ReadFile(filepath.Join(dir, "runs")); string(runs) != "x\n" {
		t.Errorf("runs of the parser: got %q, want one", runs)
	}
	// Taken out behind our back: the next container loads it again.
	if err := os.WriteFile(filepath.Join(dir, "profiles"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := h.EnsureDefault(t.Context()); err != nil {
		t.Fatal(err)
	}
	if runs, _ := os.ReadFile(filepath.Join(dir, "runs")); string(runs) != "x\nx\n" {
		t.Errorf("runs of the parser: got %q, want two", runs)
	}
}

// TestRealParser compiles the text where there is a parser, and loads it where there
// is a kernel with AppArmor. Loading needs root and leaves nothing: it is taken out.
func TestRealParser(t *testing.T) {
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		t.Skip("apparmor_parser is not installed")
	}
	h := New()
	cmd := exec.Command(parser, "--skip-kernel-load", "--skip-cache")
	cmd.Stdin = strings.NewReader(h.profile())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile: %v: %s", err, out)
	}
	if !h.Enabled() || os.Getuid() != 0 {
		t.Skip("compiled; the kernel has no AppArmor, or we are not root")
	}
	name, err := h.EnsureDefault(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd := exec.Command(parser, "--remove")
		cmd.Stdin = strings.NewReader(h.profile())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("remove: %v: %s", err, out)
		}
	})
	if loaded, err := h.Loaded(name); !loaded || err != nil {
		t.Errorf("loaded: got %v, %v", loaded, err)
	}
	testConfinement(t, name)
}

// testConfinement runs a shell under the profile.
func testConfinement(t *testing.T, name string) {
	t.Helper()
	for script, want := range map[string]bool{
		"cat /proc/self/attr/current | grep -q " + name: true,
		"echo 1 > /proc/sys/vm/drop_caches":             false,
		"cat /proc/sysrq-trigger > /dev/null":           false,
		"ls /sys/kernel/security":                       false,
		"echo 0 > /proc/self/oom_score_adj":             true,
		"mount -t tmpfs none /mnt":                      false,
		"echo 100 > /proc/sys/kernel/shmmni":            true,
		"echo 1 > /proc/sys/kernel/msg_next_id":         true,
		"echo x > /proc/sys/kernel/hostname":            false,
		"echo 1 > /sys/kernel/profiling":                false,
		"kill -0 $$":                                    true,
	} {
		cmd := exec.Command("unshare", "-m", "-i", "sh", "-c", `echo "exec $1" > /proc/self/attr/exec && exec sh -c "$2"`, "sh", name, script)
		if out, err := cmd.CombinedOutput(); (err == nil) != want {
			t.Errorf("%s: got %v, %s; want success %v", script, err, out, want)
		}
	}
}
