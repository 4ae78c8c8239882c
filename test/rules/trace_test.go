package rules

import (
	"context"
	"encoding/json"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// spanCollector is OpenTelemetry's service; it keeps "NAME parent SPAN" of each span, by trace.
type spanCollector struct {
	collector.UnimplementedTraceServiceServer
	mu  sync.Mutex
	got map[string][]string
}

func (c *spanCollector) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				c.got[string(s.TraceId)] = append(c.got[string(s.TraceId)], s.Name+" parent "+string(s.ParentSpanId))
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func (c *spanCollector) has(trace, span string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.got[trace], span)
}

func startCollector(t *testing.T) (*spanCollector, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &spanCollector{got: map[string][]string{}}
	srv := grpc.NewServer()
	collector.RegisterTraceServiceServer(srv, c)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	return c, "http://" + l.Addr().String()
}

// trace is what the command prints of a pod.
func (n *node) trace(t *testing.T, name string) sandbox.Trace {
	t.Helper()
	var tr sandbox.Trace
	if err := json.Unmarshal([]byte(n.must(t, "trace", "-o", "json", "--admin", n.adminSocket(), name)), &tr); err != nil {
		t.Fatal(err)
	}
	return tr
}

func operations(tr sandbox.Trace) []string {
	var names []string
	for _, op := range tr.Ops {
		names = append(names, op.Name)
	}
	return names
}

// TestTrace: a start can be looked at afterwards, by the next daemon too, and goes to a
// collector as part of the kubelet's trace.
func TestTrace(t *testing.T) {
	spans, url := startCollector(t)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
	n := newNode(t, "--otlp-endpoint", url, "--otlp-protocol", "grpc")
	config := podConfig(n, "traced")
	traceID, parent := strings.Repeat("\xab", 16), strings.Repeat("\xcd", 8)
	ctx := metadata.AppendToOutgoingContext(n.ctx(), "traceparent", "00-"+strings.Repeat("ab", 16)+"-"+strings.Repeat("cd", 8)+"-01")
	reply, err := n.Runtime.RunPodSandbox(ctx, &rt.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	p := n.pod(t, config) // joins it, and removes it at the end
	if _, err := n.Images.PullImage(ctx, &rt.PullImageRequest{Image: &rt.ImageSpec{Image: image}, SandboxConfig: config}); err != nil {
		t.Fatal(err)
	}
	id := p.start(t, containerConfig(n, "c", "sh", "-c", "echo up; exec sleep 1000"))
	eventually(t, "a line of the log", func() bool { return logText(t, n.status(t, id).LogPath) != "" })

	want := []string{"RunPodSandbox", "PullImage", "CreateContainer", "StartContainer"}
	check := func() {
		t.Helper()
		for _, name := range []string{"ns/traced", p.id, p.id[:8]} {
			tr := n.trace(t, name)
			if got := operations(tr); !slices.Equal(got, want) {
				t.Fatalf("%s: got %v, want %v", name, got, want)
			}
			for i, op := range tr.Ops {
				if op.Took() <= 0 || op.Error != "" || op.Running || i > 0 && op.Begun.Before(tr.Ops[i-1].Begun.Add(tr.Ops[i-1].Took())) {
					t.Errorf("got %+v", op)
				}
			}
			if last := tr.Ops[3]; last.FirstLog == nil || last.Steps[len(last.Steps)-1].Name != "launch" {
				t.Errorf("start: got %+v", last)
			}
		}
	}
	check()
	status, err := n.Runtime.PodSandboxStatus(n.ctx(), &rt.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	var info struct{ Trace sandbox.Trace }
	if err != nil || json.Unmarshal([]byte(status.Info["info"]), &info) != nil || !slices.Equal(operations(info.Trace), want) {
		t.Errorf("verbose status: got %v, %v", info, err)
	}
	if out := n.must(t, "trace", "--admin", n.adminSocket(), "ns/traced"); !strings.Contains(out, "  attach network") {
		t.Errorf("text: got %s", out)
	}
	eventually(t, "the kubelet's trace has the pod and the pull", func() bool {
		return spans.has(traceID, "RunPodSandbox parent "+parent) && spans.has(traceID, "PullImage parent "+parent)
	})
	if reply.PodSandboxId != p.id {
		t.Errorf("got another pod")
	}
	n.Kill()
	n.Start(t)
	check()
}

// TestTraceSaysWhyAPodIsStuck: nobody has the id of a pod that hangs in its start.
func TestTraceSaysWhyAPodIsStuck(t *testing.T) {
	n, mode, calls := broken(t)
	mode("hang")
	var wg sync.WaitGroup
	wg.Go(func() { n.pod(t, podConfig(n, "stuck")) })
	defer wg.Wait()
	defer mode("ok")
	eventually(t, "the plugin hangs", func() bool { return calls("ADD") == 1 })
	eventually(t, "the trace names the stage and the plugin", func() bool {
		out, _, err := n.command(t, "trace", "--admin", n.adminSocket(), "ns/stuck")
		return err == nil && strings.Contains(out, "so far; plugin faulty (process ")
	})
	mode("fail")
	// Another pod, that is taken back.
	if _, err := n.Runtime.RunPodSandbox(n.ctx(), &rt.RunPodSandboxRequest{Config: podConfig(n, "failed")}); err == nil {
		t.Fatal("got no error")
	}
	tr := n.trace(t, "ns/failed")
	if len(tr.Ops) != 1 || tr.State != "failed" || !strings.Contains(tr.Ops[0].Error, "no address left") || tr.Ops[0].Steps[len(tr.Ops[0].Steps)-1].Name != "attach network" {
		t.Errorf("got %+v", tr)
	}
}
