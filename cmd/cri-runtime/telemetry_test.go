package main

import (
	"context"
	"encoding/hex"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

const podID = "0102030405060708090a0b0c0d0e0f10a1a2a3a4a5a6a7a8ffffffffffffffff"

func traceOf(op, failure string) *sandbox.Trace {
	begun := time.Unix(1700000000, 123456789)
	o := sandbox.TraceOp{Container: "web", Attempt: 2, Op: sandbox.Op{Name: op, Begun: begun, Error: failure, Steps: []sandbox.Step{
		{Name: "make cgroup", Took: time.Millisecond}, {Name: "launch", Took: 2 * time.Millisecond},
	}}}
	return &sandbox.Trace{Pod: podID, Namespace: "ns", Name: "web", UID: "u", Ops: []sandbox.TraceOp{o}}
}

func open(ctx context.Context, t *testing.T, url string) *telemetry {
	t.Helper()
	c := defaults()
	c.OTLPEndpoint = url
	tel, err := openTelemetry(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	return tel
}

// logged is a context whose log is kept.
func logged(t *testing.T) (context.Context, func() []string) {
	t.Helper()
	var mu sync.Mutex
	var lines []string
	log := funcr.New(func(_, line string) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, line)
	}, funcr.Options{})
	return klog.NewContext(t.Context(), log), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(lines)
	}
}

// from is what a request's headers say.
func from(traceparent string) func(string) []string {
	return func(name string) []string {
		return map[string][]string{"traceparent": {traceparent}, "tracestate": {"a=b", "c=d"}}[name]
	}
}

// A start is one trace that can be found by the pod's id, and a part of the caller's
// trace where there is one.
func TestSpansOfAStart(t *testing.T) {
	c, url := serveHTTP(t)
	tel := open(t.Context(), t, url)
	kubelet, kubeletSpan := strings.Repeat("ab", 16), strings.Repeat("cd", 8)
	tell := tel.receiver()
	tell(t.Context(), traceOf("RunPodSandbox", ""))
	tell(tel.parents()(t.Context(), from("nonsense")), traceOf("StartContainer", "launch: no \xff file"))
	tell(tel.parents()(t.Context(), from("00-"+kubelet+"-"+kubeletSpan+"-01")), traceOf("RunPodSandbox", ""))
	tell(tel.parents()(t.Context(), from("00-"+kubelet+"-"+kubeletSpan+"-00")), traceOf("RunPodSandbox", "")) // not sampled
	tel.close(t.Context())

	kubelets := c.find(t, kubelet, "RunPodSandbox", "make cgroup", "launch")
	if run := kubelets[0]; hex.EncodeToString(run.ParentSpanId) != kubeletSpan || run.TraceState != "a=b,c=d" {
		t.Errorf("below the kubelet's: got %v", run)
	}
	if n := len(c.spans()); n != 9 {
		t.Errorf("got %d spans, want 3 of 3 operations", n)
	}
	own := c.spans()
	own = slices.DeleteFunc(own, func(s *tracev1.Span) bool { return hex.EncodeToString(s.TraceId) != podID[:32] })
	if len(own) != 6 {
		t.Fatalf("got %v, want the parts and then the whole, twice", own)
	}
	run, start := own[2], own[5]
	if run.Name != "RunPodSandbox" || hex.EncodeToString(run.SpanId) != podID[32:48] || len(run.ParentSpanId) != 0 || run.Kind != tracev1.Span_SPAN_KIND_SERVER {
		t.Errorf("root: got %v", run)
	}
	if start.Name != "StartContainer" || string(start.ParentSpanId) != string(run.SpanId) {
		t.Errorf("start: got %v", start)
	}
	for i, whole := range map[int]*tracev1.Span{0: run, 1: run, 3: start, 4: start} {
		if string(own[i].ParentSpanId) != string(whole.SpanId) || own[i].Kind != tracev1.Span_SPAN_KIND_INTERNAL {
			t.Errorf("part: got %v below %v", own[i], whole)
		}
	}
	if run.StartTimeUnixNano != 1700000000123456789 || own[1].StartTimeUnixNano-run.StartTimeUnixNano != 1e6 || own[1].EndTimeUnixNano-run.StartTimeUnixNano != 3e6 ||
		run.EndTimeUnixNano != own[1].EndTimeUnixNano {
		t.Errorf("times: got %v, %v", run, own[1])
	}
	for i, want := range []string{"", "", "", "", "launch: no ? file", "launch: no ? file"} {
		if failed := own[i].Status.GetCode() == tracev1.Status_STATUS_CODE_ERROR; failed != (want != "") || own[i].Status.GetMessage() != want {
			t.Errorf("span %d: status %v, want %q", i, own[i].Status, want)
		}
	}
	facts := map[string]string{}
	for _, a := range run.Attributes {
		facts[a.Key] = a.Value.String()
	}
	if facts["k8s.pod.name"] != `string_value:"web"` || facts["cri.pod_sandbox.id"] != `string_value:"`+podID+`"` || facts["k8s.container.restart_count"] != "int_value:2" || facts["container.id"] != "" {
		t.Errorf("attributes: got %v", facts)
	}
}

// By both protocols; what is sent and how follows the variables of the specification.
func TestCollectorGetsSpans(t *testing.T) {
	for name, serve := range map[string]func(*testing.T) (*spanCollector, string){overGRPC: serveGRPC, overHTTP: serveHTTP} {
		for _, compression := range []string{"none", "gzip"} {
			t.Run(name+" "+compression, func(t *testing.T) {
				c, url := serve(t)
				for key, value := range map[string]string{
					"EXPORTER_OTLP_ENDPOINT": url, "EXPORTER_OTLP_PROTOCOL": name, "EXPORTER_OTLP_COMPRESSION": compression,
					"EXPORTER_OTLP_HEADERS": "Api-Key=a%20b,x=y", "RESOURCE_ATTRIBUTES": "k8s.node.name=n1",
				} {
					t.Setenv("OTEL_"+key, value)
				}
				ctx, lines := logged(t)
				tel := open(ctx, t, "")
				tel.traced(t.Context(), traceOf("RunPodSandbox", ""))
				tel.close(ctx)
				c.find(t, podID[:32], "RunPodSandbox", "make cgroup", "launch")
				facts := map[string]string{}
				for _, a := range c.got[0].Resource.Attributes {
					facts[a.Key] = a.Value.GetStringValue()
				}
				if facts["service.name"] != "cri-runtime" || facts["service.version"] != version || facts["k8s.node.name"] != "n1" {
					t.Errorf("resource: got %v", facts)
				}
				if key := c.headers.Get("api-key"); len(key) != 1 || key[0] != "a b" {
					t.Errorf("header: got %q", key)
				}
				if got := lines(); len(got) != 1 {
					t.Errorf("log: got %q, want where spans go", got)
				}
			})
		}
	}
}

// Without an endpoint there is nothing: no goroutine, no allocation, nobody who is told.
func TestNoTelemetry(t *testing.T) {
	before, c := runtime.NumGoroutine(), defaults()
	allocations := testing.AllocsPerRun(10, func() {
		if tel, err := openTelemetry(t.Context(), c); tel != nil || err != nil || tel.receiver() != nil || tel.parents() != nil {
			t.Errorf("got %v, %v", tel, err)
		}
	})
	if got := runtime.NumGoroutine(); got > before || allocations > 0 {
		t.Errorf("got %d goroutines more, %v allocations", got-before, allocations)
	}
	c.OTLPEndpoint = "nonsense://"
	if _, err := openTelemetry(t.Context(), c); err == nil {
		t.Error("got no error")
	}
}

// A pull whose pod is not known has a trace of its own; a stop is no part of a start.
func TestTracesOfTheirOwn(t *testing.T) {
	c, url := serveHTTP(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
	tel := open(t.Context(), t, "")
	pull := traceOf("PullImage", "")
	pull.Pod = ""
	tel.traced(t.Context(), pull)
	tel.traced(t.Context(), traceOf("StopPodSandbox", ""))
	tel.close(t.Context())
	got := c.spans()
	if len(got) != 6 || hex.EncodeToString(got[2].TraceId) == podID[:32] || hex.EncodeToString(got[5].TraceId) == podID[:32] || len(got[5].ParentSpanId) != 0 {
		t.Errorf("got %v", got)
	}
}

// A start is sent by all of its spans or by none.
func TestSamplersDecideOncePerStart(t *testing.T) {
	const low = "ffffffffffffffff0000000000000001" + "a1a2a3a4a5a6a7a8"
	const high = "0000000000000001fffffffffffffff1" + "a1a2a3a4a5a6a7a8"
	for _, tc := range []struct {
		sampler string
		pod     sandbox.ID
		want    int
	}{
		{"parentbased_traceidratio", low, 6}, {"parentbased_traceidratio", high, 0},
		{"traceidratio", low, 6}, {"traceidratio", high, 0}, {"always_off", low, 0}, {"parentbased_always_off", low, 0}, {"", high, 6},
	} {
		c, url := serveGRPC(t)
		t.Setenv("OTEL_TRACES_SAMPLER", tc.sampler)
		t.Setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
		t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", overGRPC)
		tel := open(t.Context(), t, url)
		for _, op := range []string{"RunPodSandbox", "CreateContainer"} {
			tr := traceOf(op, "")
			tr.Pod = tc.pod
			tel.traced(t.Context(), tr)
		}
		tel.close(t.Context())
		if got := len(c.spans()); got != tc.want {
			t.Errorf("%s, pod %s: got %d spans, want %d", tc.sampler, tc.pod, got, tc.want)
		}
	}
}

// Nobody answers: who tells of a pod does not wait, one line says so, and the end keeps its limit.
func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // it accepts nothing, and answers nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, protocol := range []string{overGRPC, overHTTP} {
		t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
		t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
		t.Setenv("OTEL_BSP_EXPORT_TIMEOUT", "200")
		ctx, lines := logged(t)
		tel := open(ctx, t, "http://"+l.Addr().String())
		for range 4000 { // more than the queue holds
			tel.traced(t.Context(), traceOf("RunPodSandbox", ""))
		}
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		tel.close(short)
		cancel()
		// What is left of it would disturb other tests.
		stacks := make([]byte, 1<<20)
		for range 10_000 {
			if !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "batchSpanProcessor") {
				break
			}
			time.Sleep(time.Millisecond)
		}
		var about int
		for _, line := range lines() {
			if strings.Contains(line, "Spans not sent") {
				about++
			}
		}
		if about != 1 || !strings.Contains(strings.Join(lines(), "\n"), "Spans lost") {
			t.Errorf("%s: log: got %q", protocol, lines())
		}
	}
}

// What a collector refuses is told of once in a while.
func TestRefusalIsLoggedOnce(t *testing.T) {
	c, url := serveGRPC(t)
	c.refuse = "too old"
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", overGRPC)
	t.Setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
	ctx, lines := logged(t)
	tel := open(ctx, t, url)
	tel.traced(t.Context(), traceOf("RunPodSandbox", ""))
	tel.close(ctx)
	got := lines()
	if len(c.spans()) != 3 || len(got) != 2 || !strings.Contains(got[1], "Spans not sent") || !strings.Contains(got[1], "too old") {
		t.Errorf("got %d spans, log %q", len(c.spans()), got)
	}
}

// A header that is not well formed is a credential all the same.
func TestCredentialsAreNotLogged(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "Bearer-s3cret")
	t.Setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere")
	ctx, lines := logged(t)
	tel := open(ctx, t, "http://127.0.0.1:9")
	tel.close(ctx)
	all := strings.Join(lines(), "\n")
	if strings.Contains(all, "s3cret") || !strings.Contains(all, `"parse headers"`) || !strings.Contains(all, "open /nowhere") {
		t.Errorf("got %s", all)
	}
}

func TestCollectorOf(t *testing.T) {
	const endpoint, traces, protocol = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"
	type env map[string]string
	for name, tc := range map[string]struct {
		flag, protocol string
		env            env
		want           string // protocol and endpoint, "" for nothing, or a part of the error
	}{
		"nothing":          {want: ""},
		"flag":             {flag: "http://c:4318", want: "http/protobuf http://c:4318"},
		"port of gRPC":     {flag: "http://c:4317", want: "grpc http://c:4317"},
		"path":             {flag: "http://c:4317/v1/traces", want: "http/protobuf http://c:4317/v1/traces"},
		"flags come first": {flag: "https://c:1", protocol: "grpc", env: env{endpoint: "http://d", protocol: "http/protobuf"}, want: "grpc https://c:1"},
		"flag, disabled":   {flag: "http://c", env: env{"OTEL_SDK_DISABLED": "true"}, want: "http/protobuf http://c"},
		"environment":      {env: env{endpoint: "http://c:4318/x"}, want: "http/protobuf http://c:4318/x"},
		"of traces":        {env: env{endpoint: "http://d", traces: "http://c/y"}, want: "http/protobuf http://c/y"},
		"disabled":         {env: env{endpoint: "http://c", "OTEL_SDK_DISABLED": "true"}, want: ""},
		"no exporter":      {env: env{endpoint: "http://c", "OTEL_TRACES_EXPORTER": "none"}, want: ""},
		"JSON":             {env: env{endpoint: "http://c", protocol: "http/json"}, want: `"http/json" is none of`},
		"password":         {flag: "http://a:b@c", want: "OTEL_EXPORTER_OTLP_HEADERS"},
		"no scheme":        {env: env{endpoint: "c:4317"}, want: "OTEL_EXPORTER_OTLP_ENDPOINT: it is no URL"},
		"no URL":           {flag: "unix:///x", want: "--otlp-endpoint: it is no URL"},
	} {
		t.Run(name, func(t *testing.T) {
			c := defaults()
			c.OTLPEndpoint, c.OTLPProtocol = tc.flag, tc.protocol
			u, protocol, err := collectorOf(c, func(name string) string { return tc.env[name] })
			got := ""
			switch {
			case err != nil:
				got = err.Error()
			case u != nil:
				got = protocol + " " + u.String()
			}
			if err == nil && got != tc.want || err != nil && (tc.want == "" || !strings.Contains(got, tc.want)) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
