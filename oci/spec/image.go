package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// ImageConfig is what an image says about how to run it.
type ImageConfig struct {
	Entrypoint, Cmd, Env []string
	WorkingDir           string
	StopSignal           string
	Volumes              []string
}

// A Request is what the kubelet says about the same things.
type Request struct {
	Command, Args []string
	Env           []string // "NAME=value"
	WorkingDir    string
	StopSignal    int      // 0: not said
	Mounted       []string // destinations of the request's mounts
}

// Merged is what to run.
type Merged struct {
	Args, Env  []string
	Cwd        string
	StopSignal int
	// Volumes are the image's volumes that no mount of the request covers.
	Volumes []string
}

// sigterm is what stops a container unless somebody says otherwise.
const sigterm = 15

// Merge applies the request on top of the image, as the OCI image-spec and CRI say.
func Merge(image ImageConfig, req Request) (Merged, error) {
	args, err := mergeArgs(image, req)
	if err != nil {
		return Merged{}, err
	}
	m := Merged{
		Args:       args,
		Env:        mergeEnv(named(image.Env), req.Env),
		Cwd:        req.WorkingDir,
		StopSignal: req.StopSignal,
		Volumes:    uncovered(image.Volumes, req.Mounted),
	}
	if m.Cwd == "" {
		m.Cwd = image.WorkingDir
	}
	// A relative directory can only mean the root: there is no other to start from.
	m.Cwd = path.Clean("/" + m.Cwd)
	if m.StopSignal == 0 && image.StopSignal != "" {
		if m.StopSignal, err = ParseSignal(image.StopSignal); err != nil {
			return Merged{}, fmt.Errorf("image config: stop signal: %w", err)
		}
	}
	if m.StopSignal == 0 {
		m.StopSignal = sigterm
	}
	if m.StopSignal < 1 || m.StopSignal > sigRTMax {
		return Merged{}, fmt.Errorf("stop signal %d: %w", m.StopSignal, errdef.ErrInvalid)
	}
	return m, nil
}

// mergeArgs: a command replaces the entrypoint and drops the image's arguments too,
// since those were written for the entrypoint; arguments alone replace only these.
func mergeArgs(image ImageConfig, req Request) ([]string, error) {
	var args []string
	switch {
	case len(req.Command) > 0:
		args = append(slices.Clone(req.Command), req.Args...)
	default:
		// [""] is how image builders spell "reset the entrypoint of my base".
		if len(image.Entrypoint) != 1 || image.Entrypoint[0] != "" {
			args = slices.Clone(image.Entrypoint)
		}
		if len(req.Args) > 0 {
			args = append(args, req.Args...)
		} else {
			args = append(args, image.Cmd...)
		}
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("no command: neither the request nor the image has one: %w", errdef.ErrInvalid)
	}
	return args, nil
}

// named leaves out what is no variable: old builders wrote names without a value
// into images to say that a variable is not set.
func named(env []string) []string {
	var out []string
	for _, kv := range env {
		if strings.Index(kv, "=") > 0 {
			out = append(out, kv)
		}
	}
	return out
}

// mergeEnv keeps the order of first appearance, and the last value of each name.
func mergeEnv(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, list := range lists {
		for _, kv := range list {
			name, _, _ := strings.Cut(kv, "=")
			if i, ok := at[name]; ok {
				out[i] = kv
				continue
			}
			at[name] = len(out)
			out = append(out, kv)
		}
	}
	return out
}

// uncovered returns the volumes, clean and sorted, that are no mount's destination.
func uncovered(volumes, mounted []string) []string {
	taken := map[string]bool{"/": true}
	for _, m := range mounted {
		taken[path.Clean("/"+m)] = true
	}
	var out []string
	for _, v := range volumes {
		if v = path.Clean("/" + v); !taken[v] {
			taken[v] = true
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}
