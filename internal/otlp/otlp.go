// Package otlp sends finished spans to an OpenTelemetry collector, over gRPC or HTTP, in
// the protobuf form of OTLP 1. It is what remains of an SDK when spans are over before
// they are known: a bounded queue, one goroutine, one request at a time.
//
// Nothing here waits for the collector. Spans are sent in batches a few seconds after
// the first; while the collector does not answer they wait in the queue, whose oldest
// ones are dropped when it is full, and a line a minute says so. An Exporter owns its
// goroutine, which sleeps while there is nothing to send; Close sends what is left. It
// leaves nothing on disk, and credentials of its configuration go nowhere but into requests.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	queueLimit  = 2048 // spans
	batchLimit  = 512
	dropLimit   = queueLimit / 8
	batchDelay  = 5 * time.Second
	retryLimit  = time.Minute // between two attempts while the collector does not answer
	logInterval = time.Minute
	scopeOf     = "github.com/cri-runtime/cri-runtime"
)

// errRetry is about a request that may succeed later.
var errRetry = errors.New("it is tried again")

// A sender sends a request and returns the answer's message. An error that is errRetry
// may pass.
type sender interface {
	send(ctx context.Context, body []byte) ([]byte, error)
	close() error
}

// Exporter sends spans.
type Exporter struct {
	config Config
	to     sender
	log    klog.Logger
	wake   chan struct{}      // holds one
	stop   context.CancelFunc // ends waiting
	abort  context.CancelFunc // and requests
	worker sync.WaitGroup

	mu      sync.Mutex // guards all below
	queue   []Span     // oldest first
	dropped uint64
	told    time.Time // of the last line about a failure
}

// Start opens nothing yet but starts the exporter's goroutine.
func Start(ctx context.Context, c Config) (*Exporter, error) {
	to, err := c.sender()
	if err != nil {
		return nil, err
	}
	e := &Exporter{config: c, to: to, log: klog.FromContext(ctx), wake: make(chan struct{}, 1)}
	ctx, e.abort = context.WithCancel(context.WithoutCancel(ctx))
	waiting, stop := context.WithCancel(ctx)
	e.stop = stop
	e.worker.Go(func() { e.run(ctx, waiting) })
	return e, nil
}

// Sampled says whether a trace is sent, as the configured sampler wants it.
func (e *Exporter) Sampled(trace TraceID, parent *Parent) bool {
	return e.config.sampled(trace, parent)
}

// Add queues spans. It never waits.
func (e *Exporter) Add(spans ...Span) {
	e.mu.Lock()
	e.queue = append(e.queue, spans...)
	if over := len(e.queue) - queueLimit; over > 0 {
		over = min(over+dropLimit, len(e.queue)) // many at once: the rest is moved each time
		e.queue = slices.Delete(e.queue, 0, over)
		e.dropped += uint64(over) // #nosec G115 -- positive
	}
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Close sends what is queued, if the collector takes it before ctx ends, and ends the
// exporter. A request under way is not cut off before.
func (e *Exporter) Close(ctx context.Context) error {
	defer e.abort()
	defer context.AfterFunc(ctx, e.abort)()
	e.stop()
	e.worker.Wait()
	for e.queued() > 0 {
		if err := e.flush(ctx); errors.Is(err, errRetry) {
			return errors.Join(fmt.Errorf("send the last %d spans: %w", e.queued(), err), e.to.close())
		}
	}
	return e.to.close()
}

func (e *Exporter) queued() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.queue)
}

// run sends batches until waiting ends.
func (e *Exporter) run(ctx, waiting context.Context) {
	for {
		select {
		case <-waiting.Done():
			return
		case <-e.wake:
		}
		delay := e.config.Delay
		for e.queued() > 0 {
			if !pause(waiting, delay) {
				return
			}
			switch err := e.flush(ctx); {
			case errors.Is(err, errRetry):
				delay = min(2*max(delay, e.config.Delay), max(retryLimit, e.config.Delay))
			case e.queued() >= batchLimit:
				delay = 0 // more has come than one request takes
			default:
				delay = e.config.Delay
			}
		}
	}
}

// pause waits; it is false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// flush sends one batch. Spans that may be sent later stay in the queue; those that the
// collector does not want are dropped.
func (e *Exporter) flush(ctx context.Context) error {
	e.mu.Lock()
	batch := slices.Clone(e.queue[:min(len(e.queue), batchLimit)])
	before := e.dropped
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, e.config.Timeout)
	defer cancel()
	reply, err := e.to.send(ctx, request(e.config.Resource, scopeOf, e.config.Version, batch))
	if err == nil {
		if n, why := rejected(reply); n > 0 || why != "" {
			err = fmt.Errorf("collector refuses %d spans: %.200q", n, why)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !errors.Is(err, errRetry) {
		// What was dropped meanwhile was the oldest, of this batch.
		gone := len(batch) - int(min(e.dropped-before, uint64(len(batch)))) // #nosec G115 -- at most batchLimit
		e.queue = slices.Delete(e.queue, 0, min(gone, len(e.queue)))
	}
	e.tell(ctx, err)
	return err
}

// tell logs failures, one a minute; the lock is held.
func (e *Exporter) tell(ctx context.Context, err error) {
	switch {
	case err == nil:
		if !e.told.IsZero() {
			e.log.Info("Spans are sent again", "endpoint", e.config.Endpoint, "dropped", e.dropped)
		}
		e.told = time.Time{}
	case errors.Is(ctx.Err(), context.Canceled): // the exporter ends
	case time.Since(e.told) >= logInterval:
		e.told = time.Now()
		e.log.Error(err, "Spans not sent", "endpoint", e.config.Endpoint, "queued", len(e.queue), "dropped", e.dropped)
	}
}
