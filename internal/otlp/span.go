package otlp

import (
	"encoding/hex"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// TraceID names a trace; zero names none.
type TraceID [16]byte

// SpanID names a span; zero names none.
type SpanID [8]byte

// A Span is one timed operation, over when it is made.
type Span struct {
	Trace      TraceID
	ID         SpanID
	Parent     SpanID // zero: it has none
	State      string // tracestate of the parent, as it came
	Name       string
	Server     bool // it answers a request of another process
	Begun      time.Time
	Ended      time.Time
	Attributes []Attribute
	Failed     bool
	Message    string // of the failure
}

// An Attribute is a fact about a span or about who made it.
type Attribute struct{ Key, Value string }

// A Parent is the span of another process that a request belongs to.
type Parent struct {
	Trace   TraceID
	ID      SpanID
	Sampled bool
	State   string
}

// ParseParent reads a traceparent and a tracestate header (W3C Trace Context, level 1).
// It is false for none and for one that is not well formed.
func ParseParent(parent, state string) (Parent, bool) {
	// A later version may have more parts, which are for others.
	parts := strings.Split(parent, "-")
	if len(parts) < 4 || len(parts) > 4 && parts[0] == "00" || len(parts[0]) != 2 || parts[0] == "ff" || len(parts[3]) != 2 {
		return Parent{}, false
	}
	p := Parent{State: state}
	var version, flags [1]byte
	if !unhex(version[:], parts[0]) || !unhex(p.Trace[:], parts[1]) || !unhex(p.ID[:], parts[2]) || !unhex(flags[:], parts[3]) {
		return Parent{}, false
	}
	if p.Trace == (TraceID{}) || p.ID == (SpanID{}) {
		return Parent{}, false
	}
	p.Sampled = flags[0]&1 == 1
	return p, true
}

// unhex fills to from lower case digits, exactly.
func unhex(to []byte, digits string) bool {
	if len(digits) != 2*len(to) || strings.ToLower(digits) != digits {
		return false
	}
	_, err := hex.Decode(to, []byte(digits))
	return err == nil
}

// The field numbers of opentelemetry/proto, version 1.
const (
	requestResourceSpans = 1

	resourceSpansResource   = 1
	resourceSpansScopeSpans = 2

	resourceAttributes = 1

	scopeSpansScope = 1
	scopeSpansSpans = 2

	scopeName    = 1
	scopeVersion = 2

	keyValueKey    = 1
	keyValueValue  = 2
	anyValueString = 1

	spanTraceID    = 1
	spanID         = 2
	spanState      = 3
	spanParent     = 4
	spanName       = 5
	spanKind       = 6
	spanBegun      = 7
	spanEnded      = 8
	spanAttributes = 9
	spanStatus     = 15

	statusMessage = 2
	statusCode    = 3

	kindInternal, kindServer = 1, 2
	statusError              = 2

	responsePartial = 1
	partialRejected = 1
	partialMessage  = 2
)

// request encodes an ExportTraceServiceRequest.
func request(service []Attribute, scope, version string, spans []Span) []byte {
	var resource, named, all []byte
	resource = appendAttributes(resource, resourceAttributes, service)
	named = appendText(named, scopeName, scope)
	named = appendText(named, scopeVersion, version)
	all = appendBytes(all, scopeSpansScope, named)
	for i := range spans {
		all = appendBytes(all, scopeSpansSpans, spans[i].encode())
	}
	body := appendBytes(nil, resourceSpansResource, resource)
	body = appendBytes(body, resourceSpansScopeSpans, all)
	return appendBytes(nil, requestResourceSpans, body)
}

func (s *Span) encode() []byte {
	b := appendBytes(nil, spanTraceID, s.Trace[:])
	b = appendBytes(b, spanID, s.ID[:])
	b = appendText(b, spanState, s.State)
	if s.Parent != (SpanID{}) {
		b = appendBytes(b, spanParent, s.Parent[:])
	}
	b = appendText(b, spanName, s.Name)
	kind := uint64(kindInternal)
	if s.Server {
		kind = kindServer
	}
	b = protowire.AppendVarint(protowire.AppendTag(b, spanKind, protowire.VarintType), kind)
	b = appendTime(b, spanBegun, s.Begun)
	b = appendTime(b, spanEnded, s.Ended)
	b = appendAttributes(b, spanAttributes, s.Attributes)
	if !s.Failed {
		return b
	}
	status := appendText(nil, statusMessage, s.Message)
	status = protowire.AppendVarint(protowire.AppendTag(status, statusCode, protowire.VarintType), statusError)
	return appendBytes(b, spanStatus, status)
}

func appendAttributes(b []byte, field protowire.Number, attributes []Attribute) []byte {
	for _, a := range attributes {
		kv := appendText(nil, keyValueKey, a.Key)
		kv = appendBytes(kv, keyValueValue, appendText(nil, anyValueString, a.Value))
		b = appendBytes(b, field, kv)
	}
	return b
}

func appendBytes(b []byte, field protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), value)
}

// appendText leaves out what is empty, and what a decoder would refuse the message for.
func appendText(b []byte, field protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	return appendBytes(b, field, []byte(strings.ToValidUTF8(text, "?")))
}

func appendTime(b []byte, field protowire.Number, t time.Time) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(b, field, protowire.Fixed64Type), uint64(t.UnixNano())) // #nosec G115 -- after 1970
}

// rejected reads how many spans an ExportTraceServiceResponse refuses, and why. What it
// cannot read says nothing.
func rejected(response []byte) (n uint64, why string) {
	partial := field(response, responsePartial, protowire.BytesType)
	for rest := partial; len(rest) > 0; {
		num, typ, size := protowire.ConsumeField(rest)
		_ = typ
		if size < 0 {
			break
		}
		value := rest[protowire.SizeTag(num):size]
		switch num {
		case partialRejected:
			n, _ = protowire.ConsumeVarint(value)
		case partialMessage:
			text, _ := protowire.ConsumeBytes(value)
			why = string(text)
		default:
		}
		rest = rest[size:]
	}
	return n, why
}

// field finds a field of a message.
func field(message []byte, want protowire.Number, typ protowire.Type) []byte {
	for len(message) > 0 {
		num, got, size := protowire.ConsumeField(message)
		if size < 0 {
			return nil
		}
		if num == want && got == typ {
			value, _ := protowire.ConsumeBytes(message[protowire.SizeTag(num):size])
			return value
		}
		message = message[size:]
	}
	return nil
}
