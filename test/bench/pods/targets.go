package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cri-runtime/cri-runtime/test/bench/peers"
)

// The runtimes that can be measured.
const (
	ours           = "ours"
	oursCNI        = "ours-cni"
	containerdRunc = "containerd-runc"
	containerdCrun = "containerd-crun"
	crioCrun       = "crio-crun"
)

var targetNames = []string{ours, oursCNI, containerdRunc, containerdCrun, crioCrun}

func isOurs(name string) bool { return name == ours || name == oursCNI }

// targets finds what can be measured here, and says of the rest why not.
func (s setting) targets(ctx context.Context) (found []runtime, missing map[string]string, err error) {
	missing = map[string]string{}
	only := strings.Split(s.Options.Only, ",")
	wanted := func(name string) bool {
		return s.Options.Only == "" || slices.Contains(only, name) || isOurs(name) && slices.Contains(only, ours)
	}
	for _, name := range targetNames {
		if !wanted(name) {
			continue
		}
		t, err := s.find(ctx, name)
		if err != nil {
			missing[name] = err.Error()
			continue
		}
		t.Name = name
		found = append(found, runtime{Target: t, Sizes: sizes(t.Programs)})
	}
	for _, p := range s.Options.Peers {
		name, socket, _ := strings.Cut(p, "=")
		if wanted(name) {
			t := peers.Target{Name: name, Settings: []string{"somebody else's, at " + socket}}
			found = append(found, runtime{Target: t, Socket: s.socket(name)})
		}
	}
	if len(found) == 0 {
		return nil, nil, fmt.Errorf("nothing to measure: %v", missing)
	}
	return found, missing, nil
}

// runtime is a target, and how large it is.
type runtime struct {
	peers.Target

	Sizes  map[string]int64 `json:"bytes,omitempty"`  // of its programs
	Socket string           `json:"socket,omitempty"` // of one that somebody else has started
}

func sizes(programs map[string]string) map[string]int64 {
	all := map[string]int64{}
	for name, file := range programs {
		if st, err := os.Stat(file); err == nil {
			all[name] = st.Size()
		}
	}
	return all
}

func (s setting) find(ctx context.Context, name string) (peers.Target, error) {
	network := &peers.CNI{Bin: filepath.Join(s.Tools, "cni")}
	switch name {
	case ours:
		return peers.Ours{Bin: s.Options.Bin, Builtin: true}.Target(ctx)
	case oursCNI:
		return peers.Ours{Bin: s.Options.Bin, Network: network}.Target(ctx)
	case containerdRunc:
		return peers.Containerd{Tools: s.Tools, Network: network, Runtime: filepath.Join(s.Tools, "runc")}.Target(ctx)
	case containerdCrun:
		return peers.Containerd{Tools: s.Tools, Network: network, Runtime: s.program("crun")}.Target(ctx)
	default:
		return peers.CRIO{Tools: s.Tools, Network: network, Runtime: s.program("crun"), Conmon: s.program("conmon")}.Target(ctx)
	}
}

// program finds crun or conmon: where the user says, else Debian's newest, else the machine's.
func (s setting) program(name string) string {
	if s.Options.OCI != "" {
		return filepath.Join(s.Options.OCI, name)
	}
	newest := filepath.Join(s.Tools, "oci", name)
	if _, err := os.Stat(newest); err == nil {
		return newest
	}
	if found, err := exec.LookPath(name); err == nil {
		return found
	}
	return newest // which says what is missing
}

// socket is where the inner half finds the socket of somebody else's runtime.
func (s setting) socket(name string) string { return filepath.Join(s.Work, "peer-"+name+".sock") }
