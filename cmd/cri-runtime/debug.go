package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/oci/runtime"
)

func debugCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "debug", Short: "Look inside the runtime"}
	state := defaults().State
	plan := &cobra.Command{
		Use:   "plan ID",
		Short: "Print the system calls that start a container",
		Long:  "Print the system calls that start a container, one a line, as the built-in runtime compiles them from its runtime-spec.\nID is a container's id or a unique beginning of it.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := planText(cmd, state, args[0])
			if err != nil {
				return fmt.Errorf("plan of %s: %w", args[0], err)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	plan.Flags().StringVar(&state, "state", state, "the daemon's state directory")
	cmd.AddCommand(plan)
	return cmd
}

func planText(cmd *cobra.Command, state, id string) (string, error) {
	spec, err := bundleSpec(filepath.Join(state, "sandbox", "bundle"), id)
	if err != nil {
		return "", err
	}
	host, err := cgroup.Open(cmd.Context())
	if err != nil {
		return "", err
	}
	var group *cgroup.Group
	if spec.Linux != nil {
		group, err = host.Open(cgroup.Path(spec.Linux.CgroupsPath))
		if err != nil && !errors.Is(err, errdef.ErrNotFound) { // one that does not run has none
			return "", err
		}
	}
	l, err := runtime.NewBuiltin(nil, host, runtime.Features{}).Plan(spec, group)
	if err != nil {
		return "", err
	}
	return l.String(), nil
}

// bundleSpec reads the runtime-spec of the container whose id begins with id.
func bundleSpec(bundles, id string) (*specs.Spec, error) {
	if id == "" || filepath.Base(id) != id {
		return nil, fmt.Errorf("id %q: %w", id, errdef.ErrInvalid)
	}
	found, err := filepath.Glob(filepath.Join(bundles, id+"*", "config.json"))
	if err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d containers in %s have an id that begins so: %w", len(found), bundles, errdef.ErrNotFound)
	}
	body, err := os.ReadFile(found[0])
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	return &spec, json.Unmarshal(body, &spec)
}
