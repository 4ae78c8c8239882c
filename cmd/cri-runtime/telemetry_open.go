package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	overGRPC = "grpc"
	overHTTP = "http/protobuf"
	portGRPC = "4317"
	pathHTTP = "v1/traces"
)

// openTelemetry is nil when no endpoint is configured. The SDK reads the variables of the
// OpenTelemetry specification itself; what flags say comes first.
func openTelemetry(ctx context.Context, c config) (*telemetry, error) {
	u, protocol, err := collectorOf(c, os.Getenv)
	if u == nil || err != nil {
		return nil, err
	}
	log := klog.FromContext(ctx)
	otel.SetErrorHandler(&problems{log: log})
	otel.SetLogger(klog.New(settings{log.GetSink()}))
	exporter, err := newExporter(ctx, c, u, protocol)
	if err != nil {
		return nil, fmt.Errorf("open exporter of spans: %w", err)
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(),
		resource.WithAttributes(attribute.String("service.name", "cri-runtime"), attribute.String("service.version", version)), resource.WithFromEnv())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w: %w", err, errdef.ErrInvalid), exporter.Shutdown(ctx))
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(about), sdktrace.WithIDGenerator(ids{}))
	log.Info("Spans are sent", "endpoint", u.String(), "protocol", protocol)
	return &telemetry{provider, provider.Tracer("github.com/cri-runtime/cri-runtime")}, nil
}

// collectorOf is nil when nothing is to be sent. Without a protocol the port of gRPC means
// gRPC: nobody answers HTTP there.
func collectorOf(c config, env func(string) string) (_ *url.URL, protocol string, err error) {
	const all, traces = "OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_TRACES_"
	name, endpoint := "--otlp-endpoint", c.OTLPEndpoint
	if endpoint == "" {
		if env("OTEL_SDK_DISABLED") == "true" || env("OTEL_TRACES_EXPORTER") == "none" {
			return nil, "", nil
		}
		name = "OTEL_EXPORTER_OTLP_ENDPOINT"
		endpoint = cmp.Or(env(traces+"ENDPOINT"), env(all+"ENDPOINT"))
	}
	if endpoint == "" {
		return nil, "", nil
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, "", fmt.Errorf("%s: it is no URL such as http://127.0.0.1:4318: %w", name, errdef.ErrInvalid)
	case u.User != nil:
		return nil, "", fmt.Errorf("%s: it has a password in it; give OTEL_EXPORTER_OTLP_HEADERS: %w", name, errdef.ErrInvalid)
	}
	byPort := overHTTP
	if u.Port() == portGRPC && strings.Trim(u.Path, "/") == "" {
		byPort = overGRPC
	}
	protocol = cmp.Or(c.OTLPProtocol, env(traces+"PROTOCOL"), env(all+"PROTOCOL"), byPort)
	if protocol != overGRPC && protocol != overHTTP {
		return nil, "", fmt.Errorf("OTLP protocol: %q is none of %s, %s: %w", protocol, overGRPC, overHTTP, errdef.ErrInvalid)
	}
	return u, protocol, nil
}

// newExporter connects to nobody yet.
func newExporter(ctx context.Context, c config, u *url.URL, protocol string) (*otlptrace.Exporter, error) {
	if protocol == overGRPC {
		var options []otlptracegrpc.Option
		if c.OTLPEndpoint != "" {
			options = append(options, otlptracegrpc.WithEndpointURL(u.String()))
		}
		return otlptracegrpc.New(ctx, options...)
	}
	options := []otlptracehttp.Option{otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf)}
	if c.OTLPEndpoint != "" {
		if !strings.HasSuffix(u.Path, "/"+pathHTTP) {
			u = u.JoinPath(pathHTTP)
		}
		options = append(options, otlptracehttp.WithEndpointURL(u.String()))
	}
	return otlptracehttp.New(ctx, options...)
}

// problemInterval is the time between two lines about spans that are not sent.
const problemInterval = time.Minute

// problems logs what the SDK cannot do, one line in problemInterval: a collector that is
// away for days fails each batch.
type problems struct {
	log klog.Logger

	mu     sync.Mutex // guards all below
	told   time.Time
	untold int
}

// Handle implements otel.ErrorHandler.
func (p *problems) Handle(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.told) < problemInterval {
		p.untold++
		return
	}
	p.log.Error(nil, "Spans not sent", "err", fmt.Sprintf("%.512s", err.Error()), "failuresSinceLastLine", p.untold)
	p.told, p.untold = time.Now(), 0
}

// settings logs which settings the SDK does not understand, but not their values, which
// may be credentials, and nothing else that it says.
type settings struct{ klog.LogSink }

// Init would change how the sink, which is everybody's, finds the line of its caller.
func (settings) Init(klog.RuntimeInfo) {}

func (settings) Enabled(int) bool { return false }

func (s settings) Error(err error, what string, _ ...any) {
	s.LogSink.Error(err, "Setting of OpenTelemetry not understood", "in", what)
}
