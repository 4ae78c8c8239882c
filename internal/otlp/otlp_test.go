package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// receiver is OpenTelemetry's own service, which keeps what it gets.
type receiver struct {
	collector.UnimplementedTraceServiceServer

	mu      sync.Mutex
	got     []*trace.ResourceSpans
	headers metadata.MD
	calls   int
	fail    error
	refuse  int64
	arrived chan struct{} // one for each request
}

func (r *receiver) Export(ctx context.Context, in *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	defer func() {
		select {
		case r.arrived <- struct{}{}:
		default:
		}
	}()
	r.headers, _ = metadata.FromIncomingContext(ctx)
	if r.fail != nil {
		return nil, r.fail
	}
	r.got = append(r.got, in.ResourceSpans...)
	out := &collector.ExportTraceServiceResponse{}
	if r.refuse > 0 {
		out.PartialSuccess = &collector.ExportTracePartialSuccess{RejectedSpans: r.refuse, ErrorMessage: "too old"}
	}
	return out, nil
}

func (r *receiver) setFailure(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

func (r *receiver) spans() []*trace.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*trace.Span
	for _, rs := range r.got {
		for _, ss := range rs.ScopeSpans {
			out = append(out, ss.Spans...)
		}
	}
	return out
}

func serveGRPC(t *testing.T) (*receiver, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{arrived: make(chan struct{}, 64)}
	srv := grpc.NewServer()
	collector.RegisterTraceServiceServer(srv, r)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	return r, "http://" + l.Addr().String()
}

// serveHTTP is the same service behind OTLP/HTTP.
func serveHTTP(t *testing.T) (*receiver, string) {
	t.Helper()
	r := &receiver{arrived: make(chan struct{}, 64)}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if q.Header.Get("Content-Encoding") == "gzip" {
			z, zerr := gzip.NewReader(bytes.NewReader(body))
			if zerr != nil {
				http.Error(w, zerr.Error(), http.StatusBadRequest)
				return
			}
			body, err = io.ReadAll(z)
		}
		var in collector.ExportTraceServiceRequest
		if err = errors.Join(err, proto.Unmarshal(body, &in)); err != nil || q.URL.Path != "/v1/traces" || q.Header.Get("Content-Type") != "application/x-protobuf" {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		md := metadata.MD{}
		for name, values := range q.Header {
			md.Set(name, values...)
		}
		out, err := r.Export(metadata.NewIncomingContext(q.Context(), md), &in)
		if err != nil {
			code := http.StatusBadRequest
			if status.Code(err) == codes.Unavailable {
				code = http.StatusServiceUnavailable
			}
			http.Error(w, err.Error(), code)
			return
		}
		reply, _ := proto.Marshal(out)
		_, _ = w.Write(reply)
	}))
	t.Cleanup(srv.Close)
	return r, srv.URL
}

func start(t *testing.T, env map[string]string) *Exporter {
	t.Helper()
	c, err := FromEnvironment(Settings{Service: "cri-runtime", Version: "v1"}, func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	c.Delay = 10 * time.Millisecond
	e, err := Start(t.Context(), *c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

var begun = time.Unix(1700000000, 123456789)

func example(n byte) Span {
	return Span{
		Trace: TraceID{1, n}, ID: SpanID{2, n}, Parent: SpanID{3, n}, State: "a=b", Name: "attach network", Server: true,
		Begun: begun, Ended: begun.Add(5 * time.Millisecond), Attributes: []Attribute{{"k8s.pod.name", "web"}}, Failed: true, Message: "no address \xff left",
	}
}

// What is encoded here by hand is what OpenTelemetry's own decoder reads, by both protocols.
func TestCollectorGetsSpans(t *testing.T) {
	for name, serve := range map[string]func(*testing.T) (*receiver, string){"grpc": serveGRPC, "http/protobuf": serveHTTP} {
		for _, compression := range []string{"none", "gzip"} {
			t.Run(name+" "+compression, func(t *testing.T) {
				r, url := serve(t)
				e := start(t, map[string]string{
					"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": name, "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
					"OTEL_EXPORTER_OTLP_HEADERS": "Api-Key=a%20b,x=y", "OTEL_RESOURCE_ATTRIBUTES": "k8s.node.name=n1",
				})
				e.Add(example(7), Span{Trace: TraceID{9}, ID: SpanID{9}, Name: "root", Begun: begun, Ended: begun})
				if err := e.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				got := r.spans()
				if len(got) != 2 {
					t.Fatalf("got %d spans, want 2", len(got))
				}
				s := got[0]
				if hex.EncodeToString(s.TraceId) != "01070000000000000000000000000000" || hex.EncodeToString(s.SpanId) != "0207000000000000" ||
					hex.EncodeToString(s.ParentSpanId) != "0307000000000000" || s.TraceState != "a=b" || s.Name != "attach network" || s.Kind != trace.Span_SPAN_KIND_SERVER {
					t.Errorf("got %v", s)
				}
				if s.StartTimeUnixNano != 1700000000123456789 || s.EndTimeUnixNano-s.StartTimeUnixNano != 5e6 {
					t.Errorf("times: got %d to %d", s.StartTimeUnixNano, s.EndTimeUnixNano)
				}
				if s.Status.GetCode() != trace.Status_STATUS_CODE_ERROR || s.Status.GetMessage() != "no address ? left" {
					t.Errorf("status: got %v", s.Status)
				}
				if len(s.Attributes) != 1 || s.Attributes[0].Key != "k8s.pod.name" || s.Attributes[0].Value.GetStringValue() != "web" {
					t.Errorf("attributes: got %v", s.Attributes)
				}
				if root := got[1]; len(root.ParentSpanId) != 0 || root.Status != nil || root.Kind != trace.Span_SPAN_KIND_INTERNAL {
					t.Errorf("second span: got %v", root)
				}
				facts := map[string]string{}
				for _, a := range r.got[0].Resource.Attributes {
					facts[a.Key] = a.Value.GetStringValue()
				}
				if facts["service.name"] != "cri-runtime" || facts["service.version"] != "v1" || facts["k8s.node.name"] != "n1" {
					t.Errorf("resource: got %v", facts)
				}
				if key := r.headers.Get("api-key"); len(key) != 1 || key[0] != "a b" {
					t.Errorf("header: got %q", key)
				}
			})
		}
	}
}

// A collector that is away loses nothing that fits, and gets it when it is back.
func TestCollectorComesBack(t *testing.T) {
	for name, serve := range map[string]func(*testing.T) (*receiver, string){"grpc": serveGRPC, "http/protobuf": serveHTTP} {
		t.Run(name, func(t *testing.T) {
			r, url := serve(t)
			r.setFailure(status.Error(codes.Unavailable, "away"))
			e := start(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": name})
			e.Add(example(1))
			<-r.arrived
			<-r.arrived // tried again by itself
			r.setFailure(nil)
			e.Add(example(2))
			for len(r.spans()) < 2 {
				<-r.arrived
			}
			if err := e.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := r.spans(); len(got) != 2 || got[0].TraceId[1] != 1 || got[1].TraceId[1] != 2 {
				t.Errorf("got %v", got)
			}
		})
	}
}

// What the collector does not want is dropped, not sent for ever.
func TestRefusedIsDropped(t *testing.T) {
	r, url := serveGRPC(t)
	r.setFailure(status.Error(codes.InvalidArgument, "no"))
	e := start(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
	e.Add(example(1))
	<-r.arrived
	r.setFailure(nil)
	r.mu.Lock()
	r.refuse = 1
	r.mu.Unlock()
	e.Add(example(2))
	<-r.arrived
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.spans(); len(got) != 1 || got[0].TraceId[1] != 2 {
		t.Errorf("got %v, want the second one once", got)
	}
}

// Nobody answers: the queue is bounded, Add does not wait, and Close keeps its limit.
func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	_ = l.Close()
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		e := start(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
		for range queueLimit + 10 {
			e.Add(example(1))
		}
		if got := e.queued(); got > queueLimit {
			t.Errorf("%s: %d spans are queued, more than %d", protocol, got, queueLimit)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := e.Close(ctx); err == nil || !strings.Contains(err.Error(), "spans") {
			t.Errorf("%s: Close: got %v, want how many spans are lost", protocol, err)
		}
		cancel()
	}
}

// More than a request takes goes in several, all of it, in its order.
func TestBatches(t *testing.T) {
	r, url := serveHTTP(t)
	e := start(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url})
	many := make([]Span, batchLimit+batchLimit/2)
	for i := range many {
		many[i] = example(byte(i))
	}
	e.Add(many...)
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := r.spans()
	if len(got) != len(many) || r.calls < 2 {
		t.Fatalf("got %d spans in %d requests, want %d", len(got), r.calls, len(many))
	}
	for i, s := range got {
		if s.TraceId[1] != byte(i) {
			t.Fatalf("span %d is %x", i, s.TraceId)
		}
	}
}
