package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// tailLines is how much of a failed container's log is shown.
const tailLines = 10

// startAll starts the containers in their order; init containers must end well.
func (r *runner) startAll(ctx, helpers context.Context) error {
	for i, c := range r.pod.all() {
		n := &instance{spec: c, init: i < len(r.pod.Spec.InitContainers) && !c.sidecar()}
		start := time.Now()
		if err := r.startOne(ctx, helpers, n); err != nil {
			return err
		}
		if !n.init {
			r.show.step("started", "%s in %s", c.Name, took(start))
			continue
		}
		state, err := r.awaitEnd(ctx, n)
		if err != nil {
			return fmt.Errorf("wait for init container %s: %w", c.Name, err)
		}
		if state.ExitCode != 0 {
			return r.failure("init container", n, state)
		}
		r.show.step("init", "%s is done after %s", c.Name, took(start))
		n.said = true
	}
	return nil
}

func (r *runner) startOne(ctx, helpers context.Context, n *instance) error {
	config := r.pod.containerConfig(n.spec, r.found[n.spec.Image].Id, r.near)
	reply, err := r.runtime.CreateContainer(ctx, &rt.CreateContainerRequest{PodSandboxId: r.sandbox, Config: config, SandboxConfig: r.config})
	if err != nil {
		return fmt.Errorf("create container %s: %w", n.spec.Name, plain(err))
	}
	n.id = reply.ContainerId
	r.instances = append(r.instances, n)
	if _, err := r.runtime.StartContainer(ctx, &rt.StartContainerRequest{ContainerId: n.id}); err != nil {
		return fmt.Errorf("start container %s: %w", n.spec.Name, plain(err))
	}
	log := &follower{file: r.logFile(n), print: func(line string) { r.show.say("[%s] %s", n.spec.Name, line) }}
	r.helpers.Go(func() {
		if err := log.run(helpers); err != nil {
			r.show.step("warning", "container %s: %v", n.spec.Name, err)
		}
	})
	return nil
}

func (r *runner) logFile(n *instance) string {
	return filepath.Join(r.near.logs(), logPath(n.spec.Name))
}

func (r *runner) state(ctx context.Context, n *instance) (*rt.ContainerStatus, error) {
	reply, err := r.runtime.ContainerStatus(ctx, &rt.ContainerStatusRequest{ContainerId: n.id})
	if err != nil {
		return nil, fmt.Errorf("ask for container %s: %w", n.spec.Name, plain(err))
	}
	return reply.Status, nil
}

func (r *runner) awaitEnd(ctx context.Context, n *instance) (state *rt.ContainerStatus, err error) {
	err = r.await(ctx, func() (bool, error) {
		state, err = r.state(ctx, n)
		return err == nil && state.State == rt.ContainerState_CONTAINER_EXITED, err
	})
	return state, err
}

// failure tells all that is known about a container's end.
func (r *runner) failure(kind string, n *instance, state *rt.ContainerStatus) error {
	text := fmt.Sprintf("%s %s ended with code %d", kind, n.spec.Name, state.ExitCode)
	if state.Reason != "" {
		text += " (" + state.Reason + ")"
	}
	if state.Message != "" {
		text += ": " + printable(state.Message)
	}
	if tail := logTail(r.logFile(n), tailLines); len(tail) > 0 {
		text += "; its log ends with\n  " + strings.Join(tail, "\n  ")
	}
	return errors.New(text)
}

// watch stays with the running pod: for a moment, until its containers have ended, or
// until the user has seen enough.
func (r *runner) watch(ctx context.Context) error {
	limit, cancel := ctx, context.CancelFunc(func() {})
	if !r.opts.follow && !r.opts.remove {
		limit, cancel = context.WithTimeout(ctx, r.opts.logsFor)
	}
	defer cancel()
	var failed []error
	err := r.await(limit, func() (bool, error) {
		left := 0
		for _, n := range r.instances {
			if n.said {
				continue
			}
			state, err := r.state(limit, n)
			if err != nil {
				return false, err
			}
			if state.State != rt.ContainerState_CONTAINER_EXITED {
				if !n.spec.sidecar() {
					left++
				}
				continue
			}
			n.said = true
			r.show.step("ended", "%s with code %d", n.spec.Name, state.ExitCode)
			if state.ExitCode != 0 {
				failed = append(failed, r.failure("container", n, state))
			}
		}
		return left == 0, nil
	})
	if limit.Err() != nil {
		err = nil // seen enough
	}
	return errors.Join(append(failed, err)...)
}

// stopAll stops the containers: sidecars after those that they serve, and the last
// started of them first.
func (r *runner) stopAll(ctx context.Context, grace int64) error {
	stop := func(n *instance) error {
		_, err := r.runtime.StopContainer(ctx, &rt.StopContainerRequest{ContainerId: n.id, Timeout: grace})
		if err != nil {
			return fmt.Errorf("stop container %s: %w", n.spec.Name, plain(err))
		}
		return nil
	}
	var group errgroup.Group
	for _, n := range r.instances {
		if !n.spec.sidecar() {
			group.Go(func() error { return stop(n) })
		}
	}
	errs := []error{group.Wait()}
	for _, n := range slices.Backward(r.instances) {
		if n.spec.sidecar() {
			errs = append(errs, stop(n))
		}
	}
	return errors.Join(errs...)
}
