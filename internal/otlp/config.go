package otlp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Protocol is how a collector is spoken to.
type Protocol string

// The protocols of OTLP that are spoken here.
const (
	ProtocolGRPC Protocol = "grpc"
	ProtocolHTTP Protocol = "http/protobuf"
)

const (
	portGRPC       = "4317"
	pathHTTP       = "/v1/traces"
	defaultTimeout = 10 * time.Second
)

// Config is where spans go and which.
type Config struct {
	Endpoint                  string // URL; its scheme is http or https, with gRPC too
	Protocol                  Protocol
	Headers                   map[string]string // credentials: never shown
	Timeout                   time.Duration     // of a request
	Delay                     time.Duration     // from the first span of a batch to its request
	Gzip                      bool
	CAFile, CertFile, KeyFile string
	Sampler                   string  // as OTEL_TRACES_SAMPLER names them
	Ratio                     float64 // of the traces, for samplers that want one
	Resource                  []Attribute
	Version                   string // of the program
}

// Settings are what flags say. They come before the environment.
type Settings struct {
	Endpoint string
	Protocol string
	Service  string // the program's name, where the environment gives no other
	Version  string
}

// FromEnvironment reads the variables of the OpenTelemetry specification; env is
// os.Getenv. Without an endpoint it is nil: nothing is sent.
func FromEnvironment(s Settings, env func(string) string) (*Config, error) {
	// What is set for traces alone comes first.
	get := func(name string) string {
		if v := env("OTEL_EXPORTER_OTLP_TRACES_" + name); v != "" {
			return v
		}
		return env("OTEL_EXPORTER_OTLP_" + name)
	}
	c := &Config{
		Timeout: defaultTimeout, Delay: batchDelay, Version: s.Version, Headers: map[string]string{},
		CAFile: get("CERTIFICATE"), CertFile: get("CLIENT_CERTIFICATE"), KeyFile: get("CLIENT_KEY"),
	}
	endpoint, whole := s.Endpoint, false
	if endpoint == "" {
		if env("OTEL_SDK_DISABLED") == "true" || env("OTEL_TRACES_EXPORTER") == "none" {
			return nil, nil
		}
		whole = env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
		endpoint = get("ENDPOINT")
	}
	if endpoint == "" {
		return nil, nil
	}
	protocol := s.Protocol
	if protocol == "" {
		protocol = get("PROTOCOL")
	}
	errs := []error{c.endpoint(endpoint, protocol, endpointForm{whole: whole, insecure: get("INSECURE") == "true"})}
	errs = append(errs, c.request(get), c.delay(env("OTEL_BSP_SCHEDULE_DELAY")), c.sampler(env("OTEL_TRACES_SAMPLER"), env("OTEL_TRACES_SAMPLER_ARG")))
	c.resource(s.Service, env)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

type endpointForm struct {
	whole    bool // it has its path
	insecure bool // without a scheme: no TLS
}

// endpoint sets endpoint and protocol. Without a protocol the port of gRPC means gRPC:
// nobody answers HTTP there.
func (c *Config) endpoint(text, protocol string, form endpointForm) error {
	if !strings.Contains(text, "://") {
		scheme := "https://"
		if form.insecure {
			scheme = "http://"
		}
		text = scheme + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("OTLP endpoint: %q is no URL such as http://127.0.0.1:4318: %w", text, errdef.ErrInvalid)
	}
	if u.User != nil {
		return fmt.Errorf("OTLP endpoint: it has a password in it; give OTEL_EXPORTER_OTLP_HEADERS: %w", errdef.ErrInvalid)
	}
	c.Protocol = Protocol(protocol)
	if protocol == "" {
		c.Protocol = ProtocolHTTP
		if u.Port() == portGRPC && strings.Trim(u.Path, "/") == "" {
			c.Protocol = ProtocolGRPC
		}
	}
	switch c.Protocol {
	case ProtocolGRPC:
	case ProtocolHTTP:
		if !whole(form, u) {
			u = u.JoinPath(pathHTTP)
		}
	default:
		return fmt.Errorf("OTLP protocol: %q is none of %s, %s: %w", protocol, ProtocolGRPC, ProtocolHTTP, errdef.ErrInvalid)
	}
	c.Endpoint = u.String()
	return nil
}

func whole(form endpointForm, u *url.URL) bool {
	return form.whole || strings.HasSuffix(u.Path, pathHTTP)
}

// request sets what concerns requests.
func (c *Config) request(get func(string) string) error {
	var errs []error
	for name, value := range pairs(get("HEADERS")) {
		c.Headers[strings.ToLower(name)] = value
	}
	if ms := get("TIMEOUT"); ms != "" {
		var err error
		if c.Timeout, err = milliseconds(ms); err != nil {
			errs = append(errs, fmt.Errorf("OTEL_EXPORTER_OTLP_TIMEOUT: %w", err))
		}
	}
	switch z := get("COMPRESSION"); z {
	case "gzip":
		c.Gzip = true
	case "", "none":
	default:
		errs = append(errs, fmt.Errorf("OTEL_EXPORTER_OTLP_COMPRESSION: %q is none of gzip, none: %w", z, errdef.ErrInvalid))
	}
	return errors.Join(errs...)
}

// delay sets how long a batch may grow.
func (c *Config) delay(ms string) error {
	if ms == "" {
		return nil
	}
	var err error
	if c.Delay, err = milliseconds(ms); err != nil {
		return fmt.Errorf("OTEL_BSP_SCHEDULE_DELAY: %w", err)
	}
	return nil
}

func milliseconds(text string) (time.Duration, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no number of milliseconds: %w", text, errdef.ErrInvalid)
	}
	return time.Duration(n) * time.Millisecond, nil // #nosec G115 -- 31 bits
}

// pairs reads "a=1,b=2", URL-encoded.
func pairs(list string) map[string]string {
	out := map[string]string{}
	for part := range strings.SplitSeq(list, ",") {
		name, value, ok := strings.Cut(part, "=")
		if !ok || strings.TrimSpace(name) == "" {
			continue
		}
		if v, err := url.PathUnescape(strings.TrimSpace(value)); err == nil {
			value = v
		}
		out[strings.TrimSpace(name)] = value
	}
	return out
}

// resource sets what is said about the program.
func (c *Config) resource(service string, env func(string) string) {
	given := pairs(env("OTEL_RESOURCE_ATTRIBUTES"))
	if name := env("OTEL_SERVICE_NAME"); name != "" {
		given["service.name"] = name
	}
	for key, value := range map[string]string{"service.name": service, "service.version": c.Version} {
		if given[key] == "" {
			given[key] = value
		}
	}
	for key, value := range given {
		c.Resource = append(c.Resource, Attribute{key, value})
	}
	slices.SortFunc(c.Resource, func(a, b Attribute) int { return strings.Compare(a.Key, b.Key) })
}

const (
	alwaysOn    = "always_on"
	alwaysOff   = "always_off"
	byRatio     = "traceidratio"
	parentBased = "parentbased_"
)

func (c *Config) sampler(name, arg string) error {
	if name == "" {
		name = parentBased + alwaysOn
	}
	c.Sampler, c.Ratio = name, 1
	if !slices.Contains([]string{alwaysOn, alwaysOff, byRatio}, strings.TrimPrefix(name, parentBased)) {
		return fmt.Errorf("OTEL_TRACES_SAMPLER: %q is unknown: %w", name, errdef.ErrInvalid)
	}
	if arg == "" || !strings.HasSuffix(name, byRatio) {
		return nil
	}
	ratio, err := strconv.ParseFloat(arg, 64)
	if err != nil || ratio < 0 || ratio > 1 || math.IsNaN(ratio) {
		return fmt.Errorf("OTEL_TRACES_SAMPLER_ARG: %q is no number from 0 to 1: %w", arg, errdef.ErrInvalid)
	}
	c.Ratio = ratio
	return nil
}

// sampled decides by the parent where the sampler wants that, and else by the trace's
// id, as others do, so that a trace is sent by all or by none.
func (c *Config) sampled(trace TraceID, parent *Parent) bool {
	name, followsParent := strings.CutPrefix(c.Sampler, parentBased)
	if followsParent && parent != nil {
		return parent.Sampled
	}
	switch name {
	case alwaysOff:
		return false
	case byRatio:
		return float64(binary.BigEndian.Uint64(trace[8:])>>1) < c.Ratio*(1<<63)
	}
	return true
}
