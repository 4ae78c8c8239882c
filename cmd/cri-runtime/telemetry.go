package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// flushLimit is how long the end of the daemon waits for a collector.
const flushLimit = 3 * time.Second

// telemetry makes spans of operations that are over, and gives them to the OpenTelemetry
// SDK. It is nil when no endpoint is configured: then nothing of the SDK is made or called.
type telemetry struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

// close sends what is left. Spans that are lost are no reason to end with an error.
func (t *telemetry) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushLimit)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
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

// parent notes the trace that a request belongs to. The context of the work that outlives
// the request has it, too.
func parent(ctx context.Context, header func(string) []string) context.Context {
	const name, state = "traceparent", "tracestate"
	given := header(name)
	if len(given) == 0 {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{name: given[0], state: strings.Join(header(state), ",")})
}

// traced sends the operations of a trace, each a span with one for each part below it.
// The SDK's queue takes them or drops them, and never waits.
func (t *telemetry) traced(ctx context.Context, tr *sandbox.Trace) {
	for i := range tr.Ops {
		op := &tr.Ops[i]
		below, whole := t.tracer.Start(t.place(ctx, op.Name, tr.Pod), op.Name,
			trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(op.Begun), trace.WithAttributes(attributes(tr, op)...))
		if !whole.IsRecording() {
			continue
		}
		at := op.Begun
		for n, step := range op.Steps {
			_, part := t.tracer.Start(below, step.Name, trace.WithTimestamp(at))
			at = at.Add(step.Took)
			if n == len(op.Steps)-1 {
				fail(part, op.Error)
			}
			part.End(trace.WithTimestamp(at))
		}
		fail(whole, op.Error)
		whole.End(trace.WithTimestamp(at))
	}
}

func fail(s trace.Span, why string) {
	if why != "" {
		// What is no UTF-8 would make protobuf refuse the whole batch.
		s.SetStatus(codes.Error, strings.ToValidUTF8(why, "?"))
	}
}

// place says where a span belongs. Without a parent of the caller, a start is one trace
// that can be found by the pod's id: its first 32 digits name the trace, and the next 16
// the span of RunPodSandbox, under which all others are.
func (t *telemetry) place(ctx context.Context, op string, pod sandbox.ID) context.Context {
	if trace.SpanContextFromContext(ctx).IsValid() || op == "StopPodSandbox" { // no part of a start
		return ctx
	}
	var root rootIDs
	want := hex.EncodedLen(len(root.trace) + len(root.span))
	if len(pod) < want {
		return ctx
	}
	id, err := hex.DecodeString(string(pod)[:want])
	if err != nil {
		return ctx
	}
	copy(root.span[:], id[copy(root.trace[:], id):])
	ctx = context.WithValue(ctx, rootKey{}, root)
	if op != "RunPodSandbox" {
		// Never ended, so never sent: it has the ids of the one that is, and the sampler's decision about it.
		ctx, _ = t.tracer.Start(ctx, "RunPodSandbox")
	}
	return ctx
}

type rootKey struct{}

type rootIDs struct {
	trace trace.TraceID
	span  trace.SpanID
}

// ids gives root spans the ids that their context names.
type ids struct{}

func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	root, ok := ctx.Value(rootKey{}).(rootIDs)
	if !ok {
		rand.Read(root.trace[:]) // never fails: crypto/rand aborts the program instead
		rand.Read(root.span[:])
	}
	return root.trace, root.span
}

func (ids) NewSpanID(context.Context, trace.TraceID) (id trace.SpanID) {
	rand.Read(id[:])
	return id
}

// attributes have the names of OpenTelemetry's semantic conventions where those have one.
func attributes(tr *sandbox.Trace, op *sandbox.TraceOp) []attribute.KeyValue {
	out := []attribute.KeyValue{
		attribute.String("k8s.namespace.name", tr.Namespace), attribute.String("k8s.pod.name", tr.Name), attribute.String("k8s.pod.uid", tr.UID),
	}
	for _, a := range []attribute.KeyValue{
		attribute.String("cri.pod_sandbox.id", string(tr.Pod)), attribute.String("k8s.container.name", op.Container),
		attribute.String("container.id", string(op.ContainerID)), attribute.String("container.image.name", op.Image),
	} {
		if a.Value.AsString() != "" {
			out = append(out, a)
		}
	}
	if op.Container != "" {
		out = append(out, attribute.Int64("k8s.container.restart_count", int64(op.Attempt)))
	}
	if op.Joined > 0 {
		out = append(out, attribute.Int("cri.joined_calls", op.Joined))
	}
	return out
}
