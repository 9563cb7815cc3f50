package intake

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// mode is how a request carries its events.
type mode int

const (
	modeNone mode = iota
	modeBinary
	modeStructured
	modeBatch
	modeProtobuf
	modeProtobufBatch
)

// batched reports whether the mode carries a list of events.
func (m mode) batched() bool { return m == modeBatch || m == modeProtobufBatch }

// modeOf tells the mode from the headers; modeNone is what is no CloudEvent.
func modeOf(header http.Header) mode {
	media, params, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err == nil && strings.HasPrefix(media, "application/cloudevents") {
		if charset := params["charset"]; charset != "" && !strings.EqualFold(charset, "utf-8") {
			return modeNone
		}
		switch media {
		case "application/cloudevents+json":
			return modeStructured
		case "application/cloudevents-batch+json":
			return modeBatch
		case "application/cloudevents+protobuf":
			return modeProtobuf
		case "application/cloudevents-batch+protobuf":
			return modeProtobufBatch
		}
		return modeNone
	}
	if isBinary(header) {
		return modeBinary
	}
	return modeNone
}

// errTooManyEvents means that a batch holds more events than a request may.
var errTooManyEvents = errors.New("too many events")

// decode reads the events of a request. The error is errTooManyEvents, or says why the
// body as a whole cannot be read. body must not change as long as the items live.
func (in *Intake) decode(m mode, header http.Header, body []byte, e *encoder) ([]item, error) {
	switch m {
	case modeBinary:
		return []item{e.draft(readBinary(header, body))}, nil
	case modeStructured:
		if err := checkJSON(body); err != nil {
			return nil, err
		}
		return []item{e.draft(readStructured(body))}, nil
	case modeBatch:
		return decodeJSONBatch(body, in.config.MaxRequestEvents, e)
	case modeProtobuf:
		return []item{e.protobuf(body)}, nil
	default:
		return decodeProtobufBatch(body, in.config.MaxRequestEvents, e)
	}
}

func (e *encoder) draft(d *draft) item { return e.item(d.ce, d.fault) }

func decodeJSONBatch(body []byte, limit int, e *encoder) ([]item, error) {
	if err := checkJSON(body); err != nil {
		return nil, err
	}
	array := body[skipSpace(body, 0):]
	if array[0] != '[' {
		return nil, errors.New("the body is not a JSON array of events")
	}
	count := 0
	eachElement(array, func([]byte) bool {
		count++
		return count <= limit
	})
	if count > limit {
		return nil, errTooManyEvents
	}
	items := make([]item, 0, count)
	eachElement(array, func(value []byte) bool {
		items = append(items, e.draft(readStructured(value)))
		return true
	})
	return items, nil
}

// decodeProtobufBatch reads an io.cloudevents.v1.CloudEventBatch event by event, so that
// one that cannot be read has its own fault.
func decodeProtobufBatch(body []byte, limit int, e *encoder) ([]item, error) {
	encoded, err := splitProtobufBatch(body, limit)
	if err != nil {
		return nil, err
	}
	items := make([]item, 0, len(encoded))
	e.arena.expected = len(body)
	for _, event := range encoded {
		items = append(items, e.protobuf(event))
	}
	return items, nil
}

func splitProtobufBatch(body []byte, limit int) ([][]byte, error) {
	const eventsField = 1
	var encoded [][]byte
	for len(body) > 0 {
		number, kind, n := protowire.ConsumeTag(body)
		if n < 0 {
			return nil, badBatch(protowire.ParseError(n))
		}
		body = body[n:]
		if number != eventsField || kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, body); n < 0 {
				return nil, badBatch(protowire.ParseError(n))
			}
			body = body[n:]
			continue
		}
		event, n := protowire.ConsumeBytes(body)
		if n < 0 {
			return nil, badBatch(protowire.ParseError(n))
		}
		if len(encoded) == limit {
			return nil, errTooManyEvents
		}
		encoded = append(encoded, event)
		body = body[n:]
	}
	return encoded, nil
}

func badBatch(err error) error {
	return fmt.Errorf("the body is not a valid encoding of io.cloudevents.v1.CloudEventBatch: %w", err)
}
