package load

import (
	"context"
	"errors"
	"os"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The steps of a pod's life that are no CRI calls.
const (
	stepFirstLog = "FirstLog"
	stepReady    = "Ready"
	stepTeardown = "Teardown"
)

// grace is what a pod has to end when it is asked to, in seconds.
const grace = 10

// Order is that of the steps of a pod's life.
var Order = []string{
	"RunPodSandbox", "CreateContainer", "StartContainer", stepFirstLog, stepReady,
	"StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox", stepTeardown,
}

// Start runs a pod with one container up to its first log line. On failure it removes
// what was made.
func (c *Client) Start(ctx context.Context, args ...string) (*Pod, error) {
	p, err := c.newPod()
	if err != nil {
		return nil, err
	}
	if err := c.start(ctx, p, args); err != nil {
		return nil, errors.Join(err, c.Stop(context.WithoutCancel(ctx), p, 0))
	}
	return p, nil
}

func (c *Client) start(ctx context.Context, p *Pod, args []string) error {
	first, err := watch(p.Log)
	if err != nil {
		return err
	}
	defer first.close()
	container := c.containerConfig(p, args)
	begin := time.Now()
	err = p.time("RunPodSandbox", func() error {
		r, err := c.link.runtime.RunPodSandbox(ctx, &rt.RunPodSandboxRequest{Config: p.config, RuntimeHandler: c.options.Handler})
		p.ID = r.GetPodSandboxId()
		return err
	})
	if err != nil {
		return err
	}
	err = p.time("CreateContainer", func() error {
		r, err := c.link.runtime.CreateContainer(ctx, &rt.CreateContainerRequest{PodSandboxId: p.ID, Config: container, SandboxConfig: p.config})
		p.Container = r.GetContainerId()
		return err
	})
	if err != nil {
		return err
	}
	err = p.time("StartContainer", func() error {
		_, err := c.link.runtime.StartContainer(ctx, &rt.StartContainerRequest{ContainerId: p.Container})
		return err
	})
	if err != nil {
		return err
	}
	if err := p.time(stepFirstLog, func() error { return first.wait(ctx) }); err != nil {
		return err
	}
	p.Took[stepReady] = time.Since(begin)
	return nil
}

// Stop makes the calls of a pod's end in the kubelet's order, and removes what the kubelet
// made for it. It goes on after a failed call; of a pod that is not there it does nothing.
func (c *Client) Stop(ctx context.Context, p *Pod, graceSeconds int64) error {
	defer os.RemoveAll(p.config.LogDirectory)
	defer removeCgroup(p.config.Linux.CgroupParent)
	if p.ID == "" {
		return nil
	}
	begin := time.Now()
	var errs []error
	if p.Container != "" {
		errs = append(errs, p.time("StopContainer", func() error {
			_, err := c.link.runtime.StopContainer(ctx, &rt.StopContainerRequest{ContainerId: p.Container, Timeout: graceSeconds})
			return err
		}), p.time("RemoveContainer", func() error {
			_, err := c.link.runtime.RemoveContainer(ctx, &rt.RemoveContainerRequest{ContainerId: p.Container})
			return err
		}))
	}
	errs = append(errs, p.time("StopPodSandbox", func() error {
		_, err := c.link.runtime.StopPodSandbox(ctx, &rt.StopPodSandboxRequest{PodSandboxId: p.ID})
		return err
	}), p.time("RemovePodSandbox", func() error {
		_, err := c.link.runtime.RemovePodSandbox(ctx, &rt.RemovePodSandboxRequest{PodSandboxId: p.ID})
		return err
	}))
	p.Took[stepTeardown] = time.Since(begin)
	return errors.Join(errs...)
}

// stopAll ends pods, also when the measurement's context is done.
func (c *Client) stopAll(ctx context.Context, pods []*Pod, workers int) error {
	ctx = context.WithoutCancel(ctx)
	return errors.Join(each(len(pods), workers, func(i int) error {
		if pods[i] == nil {
			return nil
		}
		return c.Stop(ctx, pods[i], 0)
	})...)
}
