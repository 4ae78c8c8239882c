package load

import (
	"context"
	"errors"
	"time"
)

// warmUp is the number of pods that are not counted.
const warmUp = 2

// Latency starts and removes pods one after the other, after two that warm up.
func (c *Client) Latency(ctx context.Context, pods int) (Latency, error) {
	r := Latency{Steps: Steps{}}
	var cpu time.Duration
	for i := range warmUp + pods {
		used, err := c.cpuOf(func() error {
			p, err := c.Start(ctx, "wait")
			if err != nil {
				return err
			}
			if err := c.Stop(ctx, p, grace); err != nil {
				return err
			}
			if i >= warmUp {
				r.Steps.add(p.Took)
			}
			return nil
		})
		if err != nil {
			return r, err
		}
		if i >= warmUp {
			cpu += used
		}
	}
	r.CPUPerPod = ms(cpu) / float64(pods)
	return r, nil
}

// Throughput starts pods with several workers, then removes them so.
func (c *Client) Throughput(ctx context.Context, pods, workers int) (Throughput, error) {
	r := Throughput{Pods: pods, Workers: workers, Steps: Steps{}}
	all := make([]*Pod, pods)
	begin := time.Now()
	used, err := c.cpuOf(func() error {
		return errors.Join(each(pods, workers, func(i int) (err error) {
			all[i], err = c.Start(ctx, "wait")
			return err
		})...)
	})
	if err != nil {
		return r, errors.Join(err, c.stopAll(ctx, all, workers))
	}
	r.StartsPerSecond, r.CPUPerStart = float64(pods)/time.Since(begin).Seconds(), ms(used)/float64(pods)
	begin = time.Now()
	used, err = c.cpuOf(func() error {
		return errors.Join(each(pods, workers, func(i int) error { return c.Stop(ctx, all[i], grace) })...)
	})
	if err != nil {
		return r, err
	}
	r.StopsPerSecond, r.CPUPerStop = float64(pods)/time.Since(begin).Seconds(), ms(used)/float64(pods)
	for _, p := range all {
		r.Steps.add(p.Took)
	}
	return r, nil
}

// DensityPlan is what Density does. A length of zero leaves that part out.
type DensityPlan struct {
	Pods   int
	Settle time.Duration // before memory is read
	Idle   time.Duration // nobody asks
	Poll   time.Duration // all that a kubelet asks, each second
}

// Density fills the node with pods, one after the other, and removes them at the end.
func (c *Client) Density(ctx context.Context, plan DensityPlan) (r Density, err error) {
	r.Pods = plan.Pods
	if r.Before, err = c.meter.Memory(); err != nil {
		return r, err
	}
	var pods []*Pod
	defer func() {
		if len(pods) > 0 {
			err = errors.Join(err, c.stopAll(ctx, pods, 1))
		}
	}()
	used, err := c.cpuOf(func() error {
		for range plan.Pods {
			p, err := c.Start(ctx, "wait")
			if err != nil {
				return err
			}
			pods = append(pods, p)
			r.Ready = append(r.Ready, ms(p.Took[stepReady]))
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	r.CPUPerPod = ms(used) / float64(plan.Pods)
	if err := c.full(ctx, plan, &r); err != nil {
		return r, err
	}
	for ; len(pods) > 0; pods = pods[1:] {
		if err := c.Stop(ctx, pods[0], 0); err != nil {
			return r, err
		}
		r.Teardown = append(r.Teardown, ms(pods[0].Took[stepTeardown]))
	}
	if err := pause(ctx, plan.Settle); err != nil {
		return r, err
	}
	r.AfterTeardown, err = c.meter.Memory()
	return r, err
}

// full is what is measured of a node that is full.
func (c *Client) full(ctx context.Context, plan DensityPlan, r *Density) (err error) {
	if err := pause(ctx, plan.Settle); err != nil {
		return err
	}
	if r.After, err = c.meter.Memory(); err != nil {
		return err
	}
	percent := func(length time.Duration, f func() error) (float64, error) {
		if length <= 0 {
			return 0, nil
		}
		begin := time.Now()
		used, err := c.cpuOf(f)
		return 100 * float64(used) / float64(time.Since(begin)), err
	}
	if r.IdleCPU, err = percent(plan.Idle, func() error { return pause(ctx, plan.Idle) }); err != nil {
		return err
	}
	r.PollCPU, err = percent(plan.Poll, func() (err error) {
		r.Poll, err = c.poll(ctx, plan.Poll)
		return err
	})
	return err
}

// PSSPerPod is what a pod adds to the memory of the runtime's processes, in KiB.
func (r Density) PSSPerPod() float64 {
	return float64(r.After[Total].PSS-r.Before[Total].PSS) / float64(max(1, r.Pods))
}

// FirstAndLast are the medians of Ready of the first ten and of the last ten pods: is the
// time per pod flat?
func (r Density) FirstAndLast() (first, last float64) {
	n := min(10, len(r.Ready))
	return r.Ready[:n].At(0.5), r.Ready[len(r.Ready)-n:].At(0.5)
}

// pause waits while nothing is asked.
func pause(ctx context.Context, length time.Duration) error {
	if length <= 0 {
		return nil
	}
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cpuOf is what the runtime and the pods use while f runs.
func (c *Client) cpuOf(f func() error) (time.Duration, error) {
	before, err := c.meter.CPU()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := c.meter.CPU()
	return after - before, err
}
