package pipeline

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Limits of the attributes that Postgres indexes or that travel in every error. A
// B-tree entry of (source, type) must fit a third of a page.
const (
	MaxSourceBytes = 1024
	MaxTypeBytes   = 512
	MaxIDBytes     = 1024
	// DefaultMaxEventBytes is the default limit of an event's encoding.
	DefaultMaxEventBytes = 1 << 20
)

const (
	// SeqnumAttribute carries the event's number within its key, as a decimal string.
	SeqnumAttribute = "seqnum"
	// ProducerSeqnumAttribute keeps a seqnum that the event came in with: it is the
	// producer's own count, which restarts with the producer.
	ProducerSeqnumAttribute = "producerseqnum"
)

// Event is one accepted CloudEvent, identified by (Source, ID); (Source, Type) is its
// key, the unit of order.
type Event struct {
	Source string
	Type   string
	ID     string
	// Encoded is the protobuf encoding of io.cloudevents.v1.CloudEvent, without
	// seqnum, which is known at commit only.
	Encoded []byte
	// Fingerprint is of (Source, ID) unless IdentifyBy made it another: events with the same
	// one are one event.
	Fingerprint Fingerprint

	traced *tracedEvent // nil: not sampled, or not traced at all
}

// NewEvent checks ce and encodes it. maxBytes bounds the encoding. The error is an
// *InvalidEventError that names the attribute. ce is changed: a seqnum of the
// producer's own moves to producerseqnum.
func NewEvent(ce *pb.CloudEvent, maxBytes int) (Event, error) {
	if err := validate(ce); err != nil {
		return Event{}, err
	}
	if own, ok := ce.Attributes[SeqnumAttribute]; ok {
		delete(ce.Attributes, SeqnumAttribute)
		if _, taken := ce.Attributes[ProducerSeqnumAttribute]; !taken {
			ce.Attributes[ProducerSeqnumAttribute] = own
		}
	}
	encoded, err := proto.Marshal(ce)
	if err != nil {
		return Event{}, invalid("data", "cannot be encoded: %v", err)
	}
	if len(encoded) > maxBytes {
		return Event{}, &InvalidEventError{
			Attribute: "data", TooLarge: true,
			Reason: fmt.Sprintf("the event is %d bytes encoded; the limit is %d", len(encoded), maxBytes),
		}
	}
	return Event{
		Source: ce.Source, Type: ce.Type, ID: ce.Id, Encoded: encoded,
		Fingerprint: newFingerprint(ce.Source, fingerprintOfID, ce.Id),
	}, nil
}

// validate applies CloudEvents 1.0 and what Postgres text can hold.
func validate(ce *pb.CloudEvent) error {
	if ce == nil {
		return invalid("event", "is missing")
	}
	for _, f := range []struct {
		name, value string
		max         int
	}{
		{"id", ce.Id, MaxIDBytes},
		{"source", ce.Source, MaxSourceBytes},
		{"type", ce.Type, MaxTypeBytes},
	} {
		switch {
		case f.value == "":
			return invalid(f.name, "is required and must not be empty")
		case len(f.value) > f.max:
			return invalid(f.name, "is %d bytes; the limit is %d", len(f.value), f.max)
		case strings.IndexByte(f.value, 0) >= 0:
			return invalid(f.name, "contains a NUL character; remove it")
		case !utf8.ValidString(f.value):
			return invalid(f.name, "is not valid UTF-8")
		}
	}
	if !isURIReference(ce.Source) {
		return invalid("source", "is not a URI reference as of RFC 3986")
	}
	if ce.SpecVersion != "1.0" {
		return invalid("specversion", "is %q; only \"1.0\" is supported", ce.SpecVersion)
	}
	for name, value := range ce.Attributes {
		if err := validateAttribute(name, value); err != nil {
			return err
		}
	}
	return validateEncoding(ce)
}

func validateAttribute(name string, value *pb.CloudEventAttributeValue) error {
	if name == "" {
		return invalid("attributes", "an attribute has an empty name")
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return invalid(name, "attribute names consist of lower-case letters a-z and digits only")
		}
	}
	switch name {
	case "id", "source", "type", "specversion", "data":
		return invalid(name, "must be a field of the event, not an extension attribute")
	}
	if value == nil || value.Attr == nil {
		return invalid(name, "has no value; give it one or leave the attribute out")
	}
	return validateKnown(name, value)
}

// batchEventsField is CloudEventBatch.events: a message body is the encoding of
// one chipingress.pb.CloudEventBatch, so a sink may concatenate bodies as they are.
const batchEventsField = 1

// appendEvent appends one element of a message body: encoded with its seqnum attribute,
// as an element of CloudEventBatch.events. Nothing is decoded.
func appendEvent(dst, encoded []byte, seqnum int64) []byte {
	var digits [20]byte
	number := strconv.AppendInt(digits[:0], seqnum, 10)
	dst = protowire.AppendTag(dst, batchEventsField, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(len(encoded)+TextSize(SeqnumAttribute, string(number))))
	dst = append(dst, encoded...)
	return AppendText(dst, SeqnumAttribute, string(number))
}

// maxEventOverhead is what appendEvent adds to an encoding at most: two tags and
// lengths of at most five bytes, the entry and a number of 19 digits.
const maxEventOverhead = 1 + 5 + 2 + 2 + len(SeqnumAttribute) + 2 + 2 + 19

// splitBody returns the events of a message body, each the encoding of one CloudEvent.
// The slices point into body.
func splitBody(body []byte, want int) ([][]byte, error) {
	events := make([][]byte, 0, want)
	for len(body) > 0 {
		number, kind, n := protowire.ConsumeTag(body)
		if n < 0 {
			return nil, fmt.Errorf("event %d: %w", len(events), protowire.ParseError(n))
		}
		if number != batchEventsField || kind != protowire.BytesType {
			return nil, fmt.Errorf("event %d: unexpected field %d", len(events), number)
		}
		event, m := protowire.ConsumeBytes(body[n:])
		if m < 0 {
			return nil, fmt.Errorf("event %d: %w", len(events), protowire.ParseError(m))
		}
		events = append(events, event)
		body = body[n+m:]
	}
	return events, nil
}
