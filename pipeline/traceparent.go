package pipeline

import (
	"encoding/hex"

	"go.opentelemetry.io/otel/trace"
)

// headerTrace is W3C's traceparent: of a message on EVENTS, the span that published it; of an
// event, its starting trace.
const headerTrace = "traceparent"

// Places in a traceparent of version 00: 00-<trace id>-<span id>-<flags>.
const (
	traceIDAt         = 3
	spanIDAt          = traceIDAt + 32 + 1
	flagsAt           = spanIDAt + 16 + 1
	traceparentLength = flagsAt + 2
)

// parseTraceparent reads a traceparent. A later version may go on behind the flags. What is
// malformed is no traceparent.
func parseTraceparent[T string | []byte](text T) (trace.SpanContext, bool) {
	var version, flags [1]byte
	var id trace.TraceID
	var span trace.SpanID
	if len(text) < traceparentLength || text[traceIDAt-1] != '-' || text[spanIDAt-1] != '-' || text[flagsAt-1] != '-' {
		return trace.SpanContext{}, false
	}
	ok := lowerHex(version[:], text[:2]) && lowerHex(id[:], text[traceIDAt:spanIDAt-1]) &&
		lowerHex(span[:], text[spanIDAt:flagsAt-1]) && lowerHex(flags[:], text[flagsAt:traceparentLength])
	longer := len(text) > traceparentLength
	if !ok || version[0] == 0xff || longer && (version[0] == 0 || text[traceparentLength] != '-') {
		return trace.SpanContext{}, false
	}
	parent := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: id, SpanID: span, TraceFlags: trace.TraceFlags(flags[0]) & trace.FlagsSampled, Remote: true,
	})
	if !parent.IsValid() {
		return trace.SpanContext{}, false
	}
	return parent, true
}

// lowerHex decodes text, which has two digits for each byte of dst.
func lowerHex[T string | []byte](dst []byte, text T) bool {
	for i := range dst {
		high, low := digit(text[2*i]), digit(text[2*i+1])
		if high > 15 || low > 15 {
			return false
		}
		dst[i] = high<<4 | low
	}
	return true
}

func digit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// formatTraceparent is the inverse of parseTraceparent.
func formatTraceparent(c trace.SpanContext) string {
	id, span := c.TraceID(), c.SpanID()
	text := append(make([]byte, 0, traceparentLength), "00-"...)
	text = hex.AppendEncode(text, id[:])
	text = hex.AppendEncode(append(text, '-'), span[:])
	return string(hex.AppendEncode(append(text, '-'), []byte{byte(c.TraceFlags())}))
}
