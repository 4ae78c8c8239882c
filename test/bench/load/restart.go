package load

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	restartLimit = 2 * time.Minute
	// tick is how often the workload writes a line, and logLimit how long one may take after a restart.
	tick     = 20 * time.Millisecond
	logLimit = 10 * time.Second
)

// Restart kills the daemon under pods and starts it again.
func (c *Client) Restart(ctx context.Context, d Daemon, pods int) (r Restart, err error) {
	r.Pods = pods
	all := make([]*Pod, pods)
	defer func() { err = errors.Join(err, c.stopAll(ctx, all, 4)) }()
	if err := errors.Join(each(pods, 4, func(i int) (err error) {
		args := []string{"wait"}
		if i == 0 {
			args = []string{"tick", fmt.Sprint(tick.Milliseconds())}
		}
		all[i], err = c.Start(ctx, args...)
		return err
	})...); err != nil {
		return r, err
	}
	before, err := c.identity(ctx, all)
	if err != nil {
		return r, err
	}
	if err := d.Kill(); err != nil {
		return r, fmt.Errorf("kill the daemon: %w", err)
	}
	begin := time.Now()
	if err := d.Start(); err != nil {
		return r, fmt.Errorf("start the daemon: %w", err)
	}
	if err := c.back(ctx, begin, &r); err != nil {
		return r, err
	}
	return r, c.afterRestart(ctx, all, before, &r)
}

// back waits for a complete list.
func (c *Client) back(ctx context.Context, begin time.Time, r *Restart) error {
	running := &rt.ListContainersRequest{Filter: &rt.ContainerFilter{State: &rt.ContainerStateValue{State: rt.ContainerState_CONTAINER_RUNNING}}}
	for time.Since(begin) < restartLimit {
		// A connection of its own each time: no back-off of gRPC's in the figure.
		l, err := connect(c.options.Socket)
		if err != nil {
			return err
		}
		reply, err := l.runtime.ListContainers(ctx, running)
		if err == nil && r.FirstList == 0 {
			r.FirstList = ms(time.Since(begin))
		}
		if r.Containers = len(reply.GetContainers()); err == nil && r.Containers >= r.Pods {
			r.Complete = ms(time.Since(begin))
			old := c.link
			c.link = l
			return old.conn.Close()
		}
		if err := errors.Join(l.conn.Close(), pause(ctx, time.Millisecond)); err != nil {
			return err
		}
	}
	return fmt.Errorf("%d of %d containers are running %v after the restart", r.Containers, r.Pods, restartLimit)
}

// afterRestart sees whether everything works as before.
func (c *Client) afterRestart(ctx context.Context, pods []*Pod, before map[string]string, r *Restart) error {
	reply, err := c.link.runtime.ListPodSandbox(ctx, &rt.ListPodSandboxRequest{
		Filter: &rt.PodSandboxFilter{State: &rt.PodSandboxStateValue{State: rt.PodSandboxState_SANDBOX_READY}},
	})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	r.Sandboxes = len(reply.Items)
	r.ExecWorks = c.ExecTrue(ctx, pods[0]) == nil
	if r.LogGoesOn, err = grows(ctx, pods[0].Log); err != nil {
		return err
	}
	after, err := c.identity(ctx, pods)
	if err != nil {
		return err
	}
	r.SamePIDs = len(after) == len(pods) && maps.Equal(before, after)
	return nil
}

// identity tells one run of each container from another: when it was started and, where the
// pods have cgroups that we know, which processes are in them. What is not running has none.
func (c *Client) identity(ctx context.Context, pods []*Pod) (map[string]string, error) {
	all := map[string]string{}
	for _, p := range pods {
		reply, err := c.link.runtime.ContainerStatus(ctx, &rt.ContainerStatusRequest{ContainerId: p.Container})
		if err != nil {
			return nil, fmt.Errorf("ask for container %s: %w", p.Container, err)
		}
		if reply.Status.State == rt.ContainerState_CONTAINER_RUNNING {
			all[p.Container] = fmt.Sprint(reply.Status.StartedAt, members(p.config.Linux.CgroupParent))
		}
	}
	return all, nil
}

// grows sees whether a log that a container writes all the time gets longer.
func grows(ctx context.Context, log string) (bool, error) {
	size := func() (int64, error) {
		st, err := os.Stat(log)
		if err != nil {
			return 0, fmt.Errorf("look at the log: %w", err)
		}
		return st.Size(), nil
	}
	was, err := size()
	if err != nil {
		return false, err
	}
	for begin := time.Now(); time.Since(begin) < logLimit; {
		if err := pause(ctx, tick); err != nil {
			return false, err
		}
		if now, err := size(); err != nil || now > was {
			return err == nil, err
		}
	}
	return false, nil
}
