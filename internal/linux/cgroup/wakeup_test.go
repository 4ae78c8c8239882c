package cgroup_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// Two wait for a group to be empty, as a stop and the end of an exec do, and the faster
// one removes it: the kernel then drops the notification that the other one waits for.
func TestKillOfWhatAnotherRemoves(t *testing.T) {
	each(t, func(t *testing.T, h *cgroup.Host) {
		parent := create(t, h, testkit.CgroupParent(t).Join("wakeup"), cgroup.Resources{})
		for i := range 40 {
			path := parent.Path().Join(fmt.Sprint("g", i))
			g := create(t, h, path, cgroup.Resources{})
			start(t, g, "sleep 100 & exec sleep 100")
			until(t, "two processes", func() bool { return len(pids(t, g)) == 2 })
			var others [3]*cgroup.Group
			for k := range others {
				var err error
				if others[k], err = h.Open(path); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			var wg sync.WaitGroup
			for k, other := range others {
				wg.Go(func() {
					defer other.Close()
					if err := other.Kill(ctx); err != nil {
						t.Errorf("round %d: kill: %v", i, err)
					}
					if k > 0 {
						return
					}
					if err := other.Remove(ctx); err != nil {
						t.Errorf("round %d: remove: %v", i, err)
					}
				})
			}
			wg.Wait()
			if ctx.Err() != nil {
				t.Errorf("round %d took until its limit", i)
			}
			cancel()
			if t.Failed() {
				return
			}
		}
	})
}
