package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"strconv"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/otlp"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// flushLimit is how long the end of the daemon waits for a collector.
const flushLimit = 3 * time.Second

// telemetry sends what is known of a start to a collector, when it is over.
type telemetry struct{ exporter *otlp.Exporter }

// openTelemetry is nil when no endpoint is configured: then nothing of it is called.
func openTelemetry(ctx context.Context, c config) (*telemetry, error) {
	conf, err := otlp.FromEnvironment(otlp.Settings{
		Endpoint: c.OTLPEndpoint, Protocol: c.OTLPProtocol, Service: "cri-runtime", Version: version,
	}, os.Getenv)
	if conf == nil || err != nil {
		return nil, err
	}
	e, err := otlp.Start(ctx, *conf)
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Spans are sent", "endpoint", conf.Endpoint, "protocol", conf.Protocol, "sampler", conf.Sampler)
	return &telemetry{e}, nil
}

// close sends what is left. Spans that are lost are no reason to end with an error.
func (t *telemetry) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushLimit)
	defer cancel()
	if err := t.exporter.Close(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Spans lost")
	}
}

// receiver is who is told of operations that are over: nobody without a collector.
func (t *telemetry) receiver() func(context.Context, *sandbox.Trace) {
	if t == nil {
		return nil
	}
	return t.traced
}

// parents is who looks for the trace that a request belongs to: nobody without a collector.
func (t *telemetry) parents() func(context.Context, func(string) []string) context.Context {
	if t == nil {
		return nil
	}
	return parent
}

type parentKey struct{}

// parent notes the trace that a request belongs to. The context of the work that outlives
// the request has it, too.
func parent(ctx context.Context, header func(string) []string) context.Context {
	first := func(name string) string {
		if v := header(name); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	if p, ok := otlp.ParseParent(first("traceparent"), first("tracestate")); ok {
		return context.WithValue(ctx, parentKey{}, p)
	}
	return ctx
}

// traced sends the operations of a trace, each a span with one for each part below it.
func (t *telemetry) traced(ctx context.Context, tr *sandbox.Trace) {
	for i := range tr.Ops {
		op := &tr.Ops[i]
		whole := otlp.Span{Name: op.Name, Server: true, Begun: op.Begun, Ended: op.Begun.Add(op.Took()), Attributes: attributes(tr, op)}
		whole.Failed, whole.Message = op.Error != "", op.Error
		if !t.place(ctx, &whole, tr.Pod) {
			continue
		}
		spans := append(make([]otlp.Span, 0, 1+len(op.Steps)), whole)
		at := op.Begun
		for n, step := range op.Steps {
			s := otlp.Span{Trace: whole.Trace, ID: newSpanID(), Parent: whole.ID, State: whole.State, Name: step.Name, Begun: at, Ended: at.Add(step.Took)}
			if n == len(op.Steps)-1 {
				s.Failed, s.Message = whole.Failed, whole.Message
			}
			spans, at = append(spans, s), s.Ended
		}
		t.exporter.Add(spans...)
	}
}

// place finds the trace and the parent of a span; it is false when that trace is not
// sent. Without a parent of the caller, a start is one trace that can be found by the
// pod's id: its first 32 digits name the trace, and the next 16 the span of
// RunPodSandbox, under which all others are.
func (t *telemetry) place(ctx context.Context, s *otlp.Span, pod sandbox.ID) bool {
	s.ID = newSpanID()
	if p, ok := ctx.Value(parentKey{}).(otlp.Parent); ok {
		s.Trace, s.Parent, s.State = p.Trace, p.ID, p.State
		return t.exporter.Sampled(p.Trace, &p)
	}
	var id [len(s.Trace) + len(s.ID)]byte
	switch n, err := hex.Decode(id[:], []byte(pod)[:min(len(pod), 2*len(id))]); {
	case err != nil || n < len(id) || s.Name == "StopPodSandbox": // no part of a start
		rand.Read(s.Trace[:]) // never fails: crypto/rand aborts the program instead
	case s.Name == "RunPodSandbox":
		copy(s.Trace[:], id[:])
		copy(s.ID[:], id[len(s.Trace):])
	default:
		copy(s.Trace[:], id[:])
		copy(s.Parent[:], id[len(s.Trace):])
	}
	return t.exporter.Sampled(s.Trace, nil)
}

func newSpanID() (id otlp.SpanID) {
	rand.Read(id[:]) // never fails: crypto/rand aborts the program instead
	return id
}

// attributes have the names of OpenTelemetry's semantic conventions where those have one.
func attributes(tr *sandbox.Trace, op *sandbox.TraceOp) []otlp.Attribute {
	out := []otlp.Attribute{
		{Key: "k8s.namespace.name", Value: tr.Namespace}, {Key: "k8s.pod.name", Value: tr.Name}, {Key: "k8s.pod.uid", Value: tr.UID},
	}
	for _, a := range []otlp.Attribute{
		{Key: "cri.pod_sandbox.id", Value: string(tr.Pod)}, {Key: "k8s.container.name", Value: op.Container},
		{Key: "container.id", Value: string(op.ContainerID)}, {Key: "container.image.name", Value: op.Image},
	} {
		if a.Value != "" {
			out = append(out, a)
		}
	}
	if op.Container != "" {
		out = append(out, otlp.Attribute{Key: "k8s.container.restart_count", Value: strconv.FormatUint(uint64(op.Attempt), 10)})
	}
	if op.Joined > 0 {
		out = append(out, otlp.Attribute{Key: "cri.joined_calls", Value: strconv.Itoa(op.Joined)})
	}
	return out
}
