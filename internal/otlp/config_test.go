package otlp

import (
	"strings"
	"testing"
	"time"
)

func TestFromEnvironment(t *testing.T) {
	const endpoint, traces = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	type env map[string]string
	for name, tc := range map[string]struct {
		flag, protocol string
		env            env
		want           string // protocol and endpoint, "" for nothing, or a part of the error
	}{
		"nothing":              {want: ""},
		"flag":                 {flag: "http://c:4318", want: "http/protobuf http://c:4318/v1/traces"},
		"port of gRPC":         {flag: "http://c:4317", want: "grpc http://c:4317"},
		"flags come first":     {flag: "https://c:1", protocol: "grpc", env: env{endpoint: "http://d", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, want: "grpc https://c:1"},
		"base":                 {env: env{endpoint: "http://c:4318/x"}, want: "http/protobuf http://c:4318/x/v1/traces"},
		"of traces":            {env: env{endpoint: "http://d", traces: "http://c/y"}, want: "http/protobuf http://c/y"},
		"whole path in a flag": {flag: "http://c/v1/traces", want: "http/protobuf http://c/v1/traces"},
		"no scheme":            {env: env{endpoint: "c:4317"}, want: "grpc https://c:4317"},
		"no scheme, insecure":  {env: env{endpoint: "c:4317", "OTEL_EXPORTER_OTLP_INSECURE": "true"}, want: "grpc http://c:4317"},
		"disabled":             {env: env{endpoint: "http://c", "OTEL_SDK_DISABLED": "true"}, want: ""},
		"no exporter":          {env: env{endpoint: "http://c", "OTEL_TRACES_EXPORTER": "none"}, want: ""},
		"JSON":                 {env: env{endpoint: "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, want: `"http/json" is none of`},
		"password":             {flag: "http://a:b@c", want: "OTEL_EXPORTER_OTLP_HEADERS"},
		"no URL":               {flag: "unix:///x", want: "is no URL"},
		"timeout":              {flag: "http://c", env: env{"OTEL_EXPORTER_OTLP_TIMEOUT": "1s"}, want: "OTEL_EXPORTER_OTLP_TIMEOUT"},
		"delay":                {flag: "http://c", env: env{"OTEL_BSP_SCHEDULE_DELAY": "0"}, want: "OTEL_BSP_SCHEDULE_DELAY"},
		"compression":          {flag: "http://c", env: env{"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, want: "none of gzip, none"},
		"sampler":              {flag: "http://c", env: env{"OTEL_TRACES_SAMPLER": "often"}, want: `"often" is unknown`},
		"ratio":                {flag: "http://c", env: env{"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"}, want: "from 0 to 1"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := FromEnvironment(Settings{Endpoint: tc.flag, Protocol: tc.protocol}, func(name string) string { return tc.env[name] })
			got := ""
			switch {
			case err != nil:
				got = err.Error()
			case c != nil:
				got = string(c.Protocol) + " " + c.Endpoint
			}
			if err == nil && got != tc.want || err != nil && (tc.want == "" || !strings.Contains(got, tc.want)) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	c, err := FromEnvironment(Settings{Endpoint: "http://c"}, func(name string) string {
		return map[string]string{"OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "250"}[name]
	})
	if err != nil || c.Timeout != 250*time.Millisecond {
		t.Errorf("got %v, %v, want 250ms: what is set for traces comes first", c, err)
	}
}

func TestParseParent(t *testing.T) {
	const id, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for header, want := range map[string]bool{
		"00-" + id + "-" + span + "-01":                      true,
		"00-" + id + "-" + span + "-00":                      true,
		"cc-" + id + "-" + span + "-01-more":                 true,
		"00-" + id + "-" + span + "-01-more":                 false,
		"ff-" + id + "-" + span + "-01":                      false,
		"00-" + strings.Repeat("0", 32) + "-" + span + "-01": false,
		"00-" + id + "-" + strings.Repeat("0", 16) + "-01":   false,
		"00-" + strings.ToUpper(id) + "-" + span + "-01":     false,
		"00-" + id + "-" + span + "-1":                       false,
		"00-" + id[:30] + "-" + span + "-01":                 false,
		"":                                                   false,
	} {
		p, ok := ParseParent(header, "x=y")
		if ok != want {
			t.Errorf("%q: got %v, want %v", header, ok, want)
		}
		if ok && (p.Trace[0] != 0x4b || p.ID[7] != 0xb7 || p.Sampled != strings.Contains(header, "-01") || p.State != "x=y") {
			t.Errorf("%q: got %v", header, p)
		}
	}
}

// A trace is sent by all or by none: the decision follows the parent, else the id.
func TestSampled(t *testing.T) {
	low, high := TraceID{8: 0x10}, TraceID{8: 0xf0}
	yes, no := &Parent{Sampled: true}, &Parent{}
	for _, tc := range []struct {
		sampler string
		id      TraceID
		parent  *Parent
		want    bool
	}{
		{"parentbased_always_on", low, nil, true}, {"parentbased_always_on", low, no, false}, {"parentbased_always_off", low, yes, true},
		{"parentbased_always_off", low, nil, false}, {"always_on", low, no, true}, {"always_off", low, yes, false},
		{"traceidratio", low, no, true}, {"traceidratio", high, yes, false}, {"parentbased_traceidratio", high, yes, true},
	} {
		c := &Config{Sampler: tc.sampler, Ratio: 0.5}
		if got := c.sampled(tc.id, tc.parent); got != tc.want {
			t.Errorf("%s, trace %x, parent %v: got %v, want %v", tc.sampler, tc.id[8], tc.parent, got, tc.want)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte{0x0a, 0x04, 0x08, 0x02, 0x12, 0x00})
	f.Fuzz(func(_ *testing.T, b []byte) { rejected(b) })
}
