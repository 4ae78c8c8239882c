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

	"github.com/cri-runtime/cri-runtime/test/bench/peers"
	"github.com/cri-runtime/cri-runtime/test/bench/stage"
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

// targets finds what can be measured here, and says of the rest why not.
func targets(ctx context.Context, s setting) (found []peers.Target, missing map[string]string, err error) {
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

func find(ctx context.Context, s setting, name string) (t peers.Target, why string) {
	var err error
	switch name {
	case oursErofs, oursDirectory:
		store := strings.TrimPrefix(name, "ours-")
		if s.Options.Store != "both" && s.Options.Store != store {
			return t, "not asked for: -store " + s.Options.Store
		}
		t, err = peers.Ours{Bin: s.Options.Bin, Store: store}.Target(ctx)
	case containerd:
		t, err = peers.Containerd{Tools: s.Tools}.Target(ctx)
	case containerdIgzip:
		if !s.Options.Igzip {
			return t, "not asked for: -igzip"
		}
		if _, err := exec.LookPath("igzip"); err != nil {
			return t, "igzip is not installed (Debian: isal)"
		}
		t, err = peers.Containerd{Tools: s.Tools, Igzip: true}.Target(ctx)
	case containerdErofs:
		dir, version, why := mkfsErofs(ctx, s.Tools)
		if why != "" {
			return t, why
		}
		t, err = peers.Containerd{Tools: s.Tools, Snapshotter: "erofs"}.Target(ctx)
		t.Env = append(t.Env, "PATH="+dir+":"+os.Getenv("PATH"))
		t.Settings = append(t.Settings, "mkfs_options = -T0 --mkfs-time --sort=none", version)
	default:
		t, err = peers.CRIO{Tools: s.Tools}.Target(ctx)
	}
	if err != nil {
		return t, err.Error()
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
			version = stage.FirstLine(ctx, program, "--version")
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
