package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stepRound is all that is asked in one second.
const stepRound = "round"

// PollOrder is that of the steps of a round of polling.
var PollOrder = []string{
	"ListPodSandbox", "ListContainers", "PodSandboxStatus", "ContainerStatus", "ListContainerStats", "ListPodSandboxStats", stepRound,
}

// poll asks once a second all that a kubelet asks when every pod has just changed: both
// lists, each status, all statistics. Most seconds of a kubelet are cheaper.
func (c *Client) poll(ctx context.Context, length time.Duration) (Steps, error) {
	steps := Steps{}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range int(length / time.Second) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return steps, ctx.Err()
		}
		if err := c.Round(ctx, steps); err != nil {
			return steps, err
		}
	}
	return steps, nil
}

func (s Steps) timed(step string, f func() error) error {
	begin := time.Now()
	err := f()
	s[step] = append(s[step], ms(time.Since(begin)))
	return err
}

// Round asks all that a kubelet asks in one second, and adds how long each call took.
func (c *Client) Round(ctx context.Context, steps Steps) error {
	return steps.timed(stepRound, func() error { return c.round(ctx, steps) })
}

func (c *Client) round(ctx context.Context, steps Steps) error {
	var pods *rt.ListPodSandboxResponse
	var containers *rt.ListContainersResponse
	errs := []error{
		steps.timed("ListPodSandbox", func() (err error) {
			pods, err = c.link.runtime.ListPodSandbox(ctx, &rt.ListPodSandboxRequest{})
			return err
		}),
		steps.timed("ListContainers", func() (err error) {
			containers, err = c.link.runtime.ListContainers(ctx, &rt.ListContainersRequest{})
			return err
		}),
	}
	for _, p := range pods.GetItems() {
		errs = append(errs, steps.timed("PodSandboxStatus", func() error {
			_, err := c.link.runtime.PodSandboxStatus(ctx, &rt.PodSandboxStatusRequest{PodSandboxId: p.Id})
			return err
		}))
	}
	for _, k := range containers.GetContainers() {
		errs = append(errs, steps.timed("ContainerStatus", func() error {
			reply, err := c.link.runtime.ContainerStatus(ctx, &rt.ContainerStatusRequest{ContainerId: k.Id})
			if err == nil && (reply.Status.ImageRef == "" || reply.Status.CreatedAt == 0) { // a kubelet takes no such answer
				err = fmt.Errorf("container %s: no image or no time in its status", k.Id)
			}
			return err
		}))
	}
	errs = append(errs, steps.timed("ListContainerStats", func() error {
		_, err := c.link.runtime.ListContainerStats(ctx, &rt.ListContainerStatsRequest{})
		return err
	}), steps.timed("ListPodSandboxStats", func() error {
		_, err := c.link.runtime.ListPodSandboxStats(ctx, &rt.ListPodSandboxStatsRequest{})
		return err
	}))
	return errors.Join(errs...)
}
