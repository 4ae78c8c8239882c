package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// execLimit is the timeout that the requests carry, in seconds.
const execLimit = 10

// Exec calls ExecSync of /bin/true in one container, calls times one after the other and
// calls times with workers in parallel.
func (c *Client) Exec(ctx context.Context, calls, workers int) (r Exec, err error) {
	r.Workers = workers
	p, err := c.Start(ctx, "wait")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.stopAll(ctx, []*Pod{p}, 1)) }()
	if _, err := c.execs(ctx, p, 3, 1); err != nil { // to warm up
		return r, err
	}
	used, err := c.cpuOf(func() (err error) {
		r.Serial, err = c.execs(ctx, p, calls, 1)
		return err
	})
	if err != nil {
		return r, err
	}
	r.CPUPerExec = ms(used) / float64(calls)
	begin := time.Now()
	if r.Parallel, err = c.execs(ctx, p, calls, workers); err != nil {
		return r, err
	}
	r.PerSecond = float64(calls) / time.Since(begin).Seconds()
	return r, nil
}

func (c *Client) execs(ctx context.Context, p *Pod, calls, workers int) (Samples, error) {
	s := make(Samples, calls)
	return s, errors.Join(each(calls, workers, func(i int) error {
		begin := time.Now()
		err := c.ExecTrue(ctx, p)
		s[i] = ms(time.Since(begin))
		return err
	})...)
}

// ExecTrue is one ExecSync of a program that does nothing.
func (c *Client) ExecTrue(ctx context.Context, p *Pod) error {
	reply, err := c.link.runtime.ExecSync(ctx, &rt.ExecSyncRequest{ContainerId: p.Container, Cmd: []string{"/bin/true"}, Timeout: execLimit})
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	if reply.ExitCode != 0 {
		return fmt.Errorf("exec: exit code %d: %s", reply.ExitCode, reply.Stderr)
	}
	return nil
}
