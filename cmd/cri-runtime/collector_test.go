package main

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

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// spanCollector is OpenTelemetry's own service, which keeps what it gets.
type spanCollector struct {
	collector.UnimplementedTraceServiceServer

	refuse string // why, if it does

	mu      sync.Mutex // guards all below
	got     []*tracev1.ResourceSpans
	headers metadata.MD
	calls   int
}

func (c *spanCollector) Export(ctx context.Context, in *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	c.headers, _ = metadata.FromIncomingContext(ctx)
	c.got = append(c.got, in.ResourceSpans...)
	out := &collector.ExportTraceServiceResponse{}
	if c.refuse != "" {
		out.PartialSuccess = &collector.ExportTracePartialSuccess{RejectedSpans: 1, ErrorMessage: c.refuse}
	}
	return out, nil
}

func (c *spanCollector) spans() []*tracev1.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*tracev1.Span
	for _, rs := range c.got {
		for _, ss := range rs.ScopeSpans {
			out = append(out, ss.Spans...)
		}
	}
	return out
}

// find gives the spans of a trace by their names; the id is in hexadecimal digits.
func (c *spanCollector) find(t *testing.T, trace string, names ...string) []*tracev1.Span {
	t.Helper()
	var all, out []*tracev1.Span
	for _, s := range c.spans() {
		if hex.EncodeToString(s.TraceId) == trace {
			all = append(all, s)
		}
	}
	for _, name := range names {
		for _, s := range all {
			if s.Name == name {
				out = append(out, s)
			}
		}
	}
	if len(out) != len(names) || len(all) != len(names) {
		t.Fatalf("trace %s: got %v, want %v", trace, all, names)
	}
	return out
}

func serveGRPC(t *testing.T) (*spanCollector, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, srv := &spanCollector{}, grpc.NewServer()
	collector.RegisterTraceServiceServer(srv, c)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	return c, "http://" + l.Addr().String()
}

// serveHTTP is the same service behind OTLP/HTTP.
func serveHTTP(t *testing.T) (*spanCollector, string) {
	t.Helper()
	c := &spanCollector{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, zerr := gzip.NewReader(bytes.NewReader(body))
			if zerr != nil {
				http.Error(w, zerr.Error(), http.StatusBadRequest)
				return
			}
			body, err = io.ReadAll(z)
		}
		var in collector.ExportTraceServiceRequest
		if err = errors.Join(err, proto.Unmarshal(body, &in)); err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		md := metadata.MD{}
		for name, values := range r.Header {
			md.Set(strings.ToLower(name), values...)
		}
		out, _ := c.Export(metadata.NewIncomingContext(r.Context(), md), &in)
		reply, _ := proto.Marshal(out)
		w.Header().Set("Content-Type", "application/x-protobuf")
		_, _ = w.Write(reply)
	}))
	t.Cleanup(srv.Close)
	return c, srv.URL
}
