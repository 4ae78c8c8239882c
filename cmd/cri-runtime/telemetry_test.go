package main

import (
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// collect gives what was sent to it.
func collect(t *testing.T) (url string, spans func() []*tracev1.Span) {
	t.Helper()
	var mu sync.Mutex
	var got []*tracev1.Span
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var in collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &in); err != nil {
			t.Errorf("request: %v", err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rs := range in.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				got = append(got, ss.Spans...)
			}
		}
		w.WriteHeader(http.StatusOK)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, func() []*tracev1.Span {
		mu.Lock()
		defer mu.Unlock()
		return got
	}
}

const podID = "0102030405060708090a0b0c0d0e0f10a1a2a3a4a5a6a7a8ffffffffffffffff"

func traceOf(op, failure string) *sandbox.Trace {
	begun := time.Unix(1700000000, 0)
	o := sandbox.TraceOp{Container: "web", Op: sandbox.Op{Name: op, Begun: begun, Error: failure, Steps: []sandbox.Step{
		{Name: "make cgroup", Took: time.Millisecond}, {Name: "launch", Took: 2 * time.Millisecond},
	}}}
	return &sandbox.Trace{Pod: podID, Namespace: "ns", Name: "web", UID: "u", Ops: []sandbox.TraceOp{o}}
}

// A start is one trace that can be found by the pod's id, and a part of the caller's
// trace where there is one.
func TestSpansOfAStart(t *testing.T) {
	url, spans := collect(t)
	c := defaults()
	c.OTLPEndpoint = url
	tel, err := openTelemetry(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	header := func(flags string) func(string) []string {
		return func(name string) []string {
			if name == "traceparent" {
				return []string{"00-" + strings.Repeat("ab", 16) + "-" + strings.Repeat("cd", 8) + "-" + flags}
			}
			return nil
		}
	}
	tell := tel.receiver()
	tell(t.Context(), traceOf("RunPodSandbox", ""))
	tell(t.Context(), traceOf("StartContainer", "launch: no such file"))
	tell(tel.parents()(t.Context(), header("01")), traceOf("RunPodSandbox", ""))
	tell(tel.parents()(t.Context(), header("00")), traceOf("RunPodSandbox", "")) // not sampled
	tel.close(t.Context())
	got := spans()
	if len(got) != 9 {
		t.Fatalf("got %d spans, want 3 of 3 operations", len(got))
	}
	run, trace := "a1a2a3a4a5a6a7a8", podID[:32]
	for i, want := range []struct{ name, trace, id, parent string }{
		{"RunPodSandbox", trace, run, ""},
		{"make cgroup", trace, "", run},
		{"launch", trace, "", run},
		{"StartContainer", trace, "", run},
		{"make cgroup", trace, "", "its own"},
		{"launch", trace, "", "its own"},
		{"RunPodSandbox", strings.Repeat("ab", 16), "", strings.Repeat("cd", 8)},
	} {
		s := got[i]
		parent := hex.EncodeToString(s.ParentSpanId)
		if want.parent == "its own" {
			want.parent = hex.EncodeToString(got[3].SpanId)
		}
		if s.Name != want.name || hex.EncodeToString(s.TraceId) != want.trace || parent != want.parent || want.id != "" && hex.EncodeToString(s.SpanId) != want.id {
			t.Errorf("span %d: got %s %x %x below %s, want %v", i, s.Name, s.TraceId, s.SpanId, parent, want)
		}
	}
	if got[2].StartTimeUnixNano-got[0].StartTimeUnixNano != 1e6 || got[2].EndTimeUnixNano != got[0].EndTimeUnixNano {
		t.Errorf("times: got %v, %v", got[0], got[2])
	}
	for i, failed := range []bool{false, false, false, true, false, true} {
		if got[i].Status.GetCode() == tracev1.Status_STATUS_CODE_ERROR != failed {
			t.Errorf("span %d: status %v", i, got[i].Status)
		}
	}
}

// Without an endpoint there is nothing: no goroutine, nobody who is told.
func TestNoTelemetry(t *testing.T) {
	before := runtime.NumGoroutine()
	tel, err := openTelemetry(t.Context(), defaults())
	if tel != nil || err != nil || tel.receiver() != nil || tel.parents() != nil || runtime.NumGoroutine() > before {
		t.Errorf("got %v, %v", tel, err)
	}
	c := defaults()
	c.OTLPEndpoint = "nonsense://"
	if _, err := openTelemetry(t.Context(), c); err == nil {
		t.Error("got no error")
	}
}

// A pull whose pod is not known has a trace of its own; a stop is no part of a start.
func TestTracesOfTheirOwn(t *testing.T) {
	url, spans := collect(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
	tel, err := openTelemetry(t.Context(), defaults())
	if err != nil {
		t.Fatal(err)
	}
	pull := traceOf("PullImage", "")
	pull.Pod = ""
	tel.traced(t.Context(), pull)
	tel.traced(t.Context(), traceOf("StopPodSandbox", ""))
	tel.close(t.Context())
	got := spans()
	if len(got) != 6 || hex.EncodeToString(got[0].TraceId) == podID[:32] || hex.EncodeToString(got[3].TraceId) == podID[:32] || len(got[3].ParentSpanId) != 0 {
		t.Errorf("got %v", got)
	}
}
