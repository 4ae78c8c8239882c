package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	// progressBytes make a connection worth having had: fewer do not count, or a host
	// that sends a byte for each connection would keep a pull going for ever.
	progressBytes = 64 << 10
	// maxRetryAfter bounds the wait that a registry may ask for. One that asks for more
	// fails the attempt; the kubelet comes back.
	maxRetryAfter = 2 * time.Minute
	// giveUp bounds the attempts and the waits between them while nothing comes.
	giveUp = 10 * time.Minute
)

var (
	errStalled = errors.New("connection stands still")
	errCrawls  = errors.New("connection is too slow")
)

// pace tells a slow connection. Only the time spent waiting for bytes counts: a slow disk
// on our side is not the network's fault.
type pace struct {
	bytes  int64
	waited time.Duration
}

// slow adds up what came, and judges at the end of each window.
func (p *pace) slow(n int64, waited time.Duration, cfg Config) bool {
	p.bytes += n
	if p.waited += waited; p.waited < cfg.Stall {
		return false
	}
	slow := float64(p.bytes) < float64(cfg.MinRate)*p.waited.Seconds()
	*p = pace{}
	return slow
}

// attempts decides on one more.
type attempts struct {
	fails int
	got   int64 // since the last failure
	since time.Time
}

func (a *attempts) progress(n int64) {
	if a.got += n; a.got >= progressBytes {
		a.fails = 0
	}
}

// again waits before the next attempt, or gives the error to end with: attempts or time
// are used up, or the cause will not go away.
func (a *attempts) again(ctx context.Context, s *Session, o Observer, cause error) error {
	now := time.Now()
	if a.fails == 0 {
		a.since = now
	}
	a.fails++
	a.got = 0
	if !s.passing(cause) {
		return cause
	}
	// Jitter, so that nodes that lost a registry together do not come back together.
	wait := s.cfg.Backoff << (a.fails - 1)
	wait = wait/2 + rand.N(wait) // #nosec G404 -- no secret
	if all, ok := errors.AsType[*allFailed](cause); ok {
		if all.retryAfter > maxRetryAfter {
			return fmt.Errorf("%w (to be tried again in %v)", cause, all.retryAfter.Round(time.Second))
		}
		wait = max(wait, all.retryAfter)
	}
	tired := a.fails >= s.cfg.Attempts || now.Add(wait).Sub(a.since) > giveUp
	if tired && a.fails == 1 {
		return cause
	} else if tired {
		return &tiredError{a.fails, now.Sub(a.since), cause}
	}
	o.Waiting(reason(cause), now.Add(wait))
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the next attempt: %w", context.Cause(ctx))
	}
}

// tiredError adds how often it was tried.
type tiredError struct {
	fails int
	took  time.Duration
	err   error
}

func (e *tiredError) Error() string {
	return fmt.Sprintf("%v (%d attempts in %v)", e.err, e.fails, e.took.Round(100*time.Millisecond))
}

func (e *tiredError) Unwrap() error { return e.err }

// reason is the short form for people who watch.
func reason(err error) string {
	if all, ok := errors.AsType[*allFailed](err); ok {
		return strings.Join(all.texts, "; ")
	}
	return err.Error()
}

// passing tells a failure that may go away by itself. That nobody answers may only do so
// in a session that reached somebody before; else the kubelet learns it at once.
func (s *Session) passing(err error) bool {
	all, ok := errors.AsType[*allFailed](err)
	if ok && all.lasting {
		return false
	}
	if ok && all.silent && !s.hasSpoken() {
		return false
	}
	_, unavailable := errors.AsType[*errdef.Prefixed](err)
	return unavailable || errors.Is(err, errdef.ErrRetry)
}

func (s *Session) hasSpoken() bool {
	for _, h := range s.hosts {
		if h.hasSpoken() {
			return true
		}
	}
	return false
}

// persist asks the hosts for a document until one answers or it makes no sense any more.
func (s *Session) persist(ctx context.Context, q ask, try func(*host) error) error {
	var a attempts
	for {
		err := s.each(ctx, q, func(h *host) error {
			err := try(h)
			if err == nil {
				s.observer.Host(h.URL.Host)
			}
			return err
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err := a.again(ctx, s, s.observer, err); err != nil {
			return err
		}
	}
}

// retryAfter reads the header of that name: seconds or a date.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	v := strings.TrimSpace(resp.Header.Get("Retry-After"))
	if n, err := strconv.ParseInt(v, 10, 32); err == nil {
		return max(0, time.Duration(n)*time.Second)
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
