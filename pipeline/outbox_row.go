package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"
)

// outboxRow is a row of waybill.outbox that was read.
type outboxRow struct {
	key outboxKey
	age time.Duration // since it was emitted, when it was read

	source, typ, id string
	event           []byte // encoded; nil: the event is made of what follows
	data            []byte // nil: none
	isText          *bool
	attributes      []byte // JSON
}

// outboxReader makes events of rows. It is of one goroutine.
type outboxReader struct {
	cfg  OutboxConfig
	scan Scan
}

// event makes the event of a row, or says why none can be made.
func (o *outboxReader) event(r *outboxRow) (Event, error) {
	if r.event == nil {
		return o.fromColumns(r)
	}
	e, err := o.fromEncoding(r.event)
	if err != nil {
		return Event{}, err
	}
	if e.Source != r.source || e.Type != r.typ || e.ID != r.id {
		return Event{}, fmt.Errorf("the encoded event is (%q, %q, %q), and the row says (%q, %q, %q)", e.Source, e.Type, e.ID, r.source, r.typ, r.id)
	}
	return e, nil
}

// fromEncoding keeps an encoding as it is where the scan vouches for it, as an ingest does.
func (o *outboxReader) fromEncoding(encoded []byte) (Event, error) {
	defer o.scan.Forget()
	if o.scan.Read(encoded) && len(encoded) <= o.cfg.MaxEventBytes && !o.scan.Has(SeqnumAttribute) {
		if e, ok := o.scan.Event(o.cfg.IdentifyBy); ok {
			e.Encoded = encoded
			return e, nil
		}
	}
	ce := new(pb.CloudEvent)
	if err := proto.Unmarshal(encoded, ce); err != nil {
		return Event{}, invalid("event", "is not a valid encoding of io.cloudevents.v1.CloudEvent")
	}
	e, err := NewEvent(ce, o.cfg.MaxEventBytes)
	if err == nil && o.cfg.IdentifyBy != "" {
		e.IdentifyBy(ce, o.cfg.IdentifyBy)
	}
	return e, err
}

// fromColumns makes an event of what waybill.emit has stored.
func (o *outboxReader) fromColumns(r *outboxRow) (Event, error) {
	if r.id == "" {
		return Event{}, invalid("id", "is required and must not be empty")
	}
	ce := CloudEvent{Source: r.source, Type: r.typ, ID: r.id, Extensions: map[string]AttributeValue{}}
	if r.data != nil {
		ce.Data = BinaryData(r.data)
		if r.isText != nil && *r.isText {
			ce.Data = TextData(string(r.data))
		}
	}
	if err := r.addAttributes(&ce); err != nil {
		return Event{}, err
	}
	return encodeEmitted(context.Background(), &ce, o.cfg.MaxEventBytes, o.cfg.IdentifyBy)
}

func (r *outboxRow) addAttributes(ce *CloudEvent) error {
	if r.attributes == nil {
		return nil
	}
	var all map[string]any
	decoder := json.NewDecoder(bytes.NewReader(r.attributes))
	decoder.UseNumber()
	if err := decoder.Decode(&all); err != nil {
		return invalid("attributes", "are not a JSON object")
	}
	for name, value := range all {
		text, isText := value.(string)
		switch name {
		case "subject":
			ce.Subject = text
		case "datacontenttype":
			ce.DataContentType = text
		case "dataschema":
			ce.DataSchema = text
		case "time":
			at, err := time.Parse(time.RFC3339Nano, text)
			if err != nil {
				return invalid("time", "is not a timestamp as of RFC 3339")
			}
			ce.Time = at
		default:
			v, err := extensionOf(name, value)
			if err != nil {
				return err
			}
			ce.Extensions[name] = v
			continue
		}
		if !isText || text == "" {
			return invalid(name, "must be a string that is not empty, or left out")
		}
	}
	return nil
}

// extensionOf is a value of JSON as an attribute.
func extensionOf(name string, value any) (AttributeValue, error) {
	switch v := value.(type) {
	case string:
		return StringValue(v), nil
	case bool:
		return BooleanValue(v), nil
	case json.Number:
		if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil && n >= math.MinInt32 && n <= math.MaxInt32 {
			return IntegerValue(int32(n)), nil
		}
	}
	return AttributeValue{}, invalid(name, "must be a string, a boolean or an integer of 32 bits")
}

// sortOutbox sorts rows by their keys. One that was found twice is left out: it is of a transaction in progress and beyond
// what was read too, which takes rows of another cluster with the number of one that is under way here.
func sortOutbox(rows []outboxRow) []outboxRow {
	slices.SortFunc(rows, func(a, b outboxRow) int { return a.key.compare(b.key) })
	return slices.CompactFunc(rows, func(a, b outboxRow) bool { return a.key == b.key })
}
