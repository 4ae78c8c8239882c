package monitor

import (
	"context"
	"os"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/linux/pidfd"
)

// reapChildren watches the monitors that were started since the last call: whoever
// lets its child die must reap it.
func (c *Client) reapChildren(ctx context.Context) {
	for _, p := range c.children {
		c.wg.Go(func() { c.reap(ctx, p) })
	}
	c.children = nil
}

// reap waits for a monitor that this process started, until the client closes: a
// monitor survives its daemon and is then reaped by pid 1.
func (c *Client) reap(ctx context.Context, p *os.Process) {
	f, err := pidfd.Open(p.Pid)
	if err != nil {
		klog.FromContext(ctx).Error(err, "monitor cannot be watched", "pid", p.Pid)
		return
	}
	defer func() { _ = f.Close() }()
	if err := f.Wait(ctx); err != nil {
		_ = p.Release()
		return
	}
	state, err := p.Wait()
	klog.FromContext(ctx).V(2).Info("monitor ended", "pid", p.Pid, "state", state, "err", err)
}
