package sandbox

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestRetryJoinsTheWorkUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights
		runs := 0
		work := func(ctx context.Context, s *stage) (ID, error) {
			runs++
			s.enter("attach network")
			time.Sleep(130 * time.Second)
			return "abc", ctx.Err()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if id, err := f.do(ctx, "pod a", 4*time.Minute, work); id != "abc" || err != nil {
				t.Errorf("first call: got %q, %v, want abc though its deadline has passed", id, err)
			}
		})
		synctest.Wait()
		_, err := f.do(ctx, "pod a", 4*time.Minute, work)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "attach network") {
			t.Errorf("second call: got %v, want its deadline and the stage", err)
		}
		for range 3 {
			wg.Go(func() {
				if id, err := f.do(t.Context(), "pod a", time.Minute, work); id != "abc" || err != nil {
					t.Errorf("retry: got %q, %v, want abc", id, err)
				}
			})
		}
		wg.Wait()
		f.wg.Wait()
		if runs != 1 {
			t.Errorf("the work ran %d times, want once", runs)
		}
	})
}

func TestCutEndsTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights
		f.cut("start a") // nothing under way
		time.AfterFunc(time.Second, func() { f.cut("start a") })
		begun := time.Now()
		_, err := f.do(t.Context(), "start a", time.Minute, func(ctx context.Context, _ *stage) (ID, error) {
			<-ctx.Done()
			return "", ctx.Err()
		})
		if !errors.Is(err, context.Canceled) || time.Since(begun) != time.Second {
			t.Errorf("got %v after %v, want it canceled after a second", err, time.Since(begun))
		}
		f.wg.Wait()
	})
}
