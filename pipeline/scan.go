package pipeline

import (
	"bytes"
	"math"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// maxScannedAttributes is how many attributes an event may have to be kept as it came; events
// with more are decoded. Each is compared with all before it.
const maxScannedAttributes = 32

// Scan reads the encoding of an io.cloudevents.v1.CloudEvent without decoding it, so that an
// event whose encoding every reader understands alike is kept as its producer wrote it.
// The zero value is ready, and may be used for one event after another.
//
// A scan vouches for an encoding or it does not. It never says what is wrong: what it does not
// vouch for is decoded, and NewEvent accepts it or has the error. So it may be stricter than
// NewEvent, as it is where a field is there twice or unknown or a number is longer than it need be,
// and never laxer.
type Scan struct {
	id, source, typ []byte
	names, values   [maxScannedAttributes][]byte // of the attributes; a value is a CloudEventAttributeValue
	attributes      int
	text            []byte // id, source and type, to make one string of
}

// Fields of io.cloudevents.v1.CloudEvent, of the entries of its attributes and of their values, of
// google.protobuf.Any and of google.protobuf.Timestamp.
const (
	idField          = 1
	sourceField      = 2
	specVersionField = 3
	typeField        = 4
	attributesField  = 5
	binaryDataField  = 6
	textDataField    = 7
	protoDataField   = 8

	entryKeyField   = 1
	entryValueField = 2

	ceBooleanField   = 1
	ceIntegerField   = 2
	ceStringField    = 3
	ceBytesField     = 4
	ceURIField       = 5
	ceURIRefField    = 6
	ceTimestampField = 7

	anyTypeURLField = 1
	anyValueField   = 2

	secondsField = 1
	nanosField   = 2
)

// Read reports whether encoded is that of an event that NewEvent accepts, and would encode to
// the same but for the order of its fields. The scan refers to encoded until the next Read or Forget.
func (s *Scan) Read(encoded []byte) bool {
	s.Forget()
	var seen fieldSet
	for len(encoded) > 0 {
		number, value, rest, ok := consumeField(encoded)
		if !ok {
			return false
		}
		encoded = rest
		switch number {
		case idField:
			s.id = value
		case sourceField:
			s.source = value
		case typeField:
			s.typ = value
		case specVersionField:
			if string(value) != "1.0" {
				return false
			}
		case attributesField:
			if !s.readEntry(value) {
				return false
			}
			continue
		case binaryDataField:
			number = protoDataField // all of data is one field, of which the last one counts
		case textDataField:
			if !utf8.Valid(value) {
				return false
			}
			number = protoDataField
		case protoDataField:
			if !isPlainAny(value) {
				return false
			}
		default:
			return false
		}
		if !seen.add(number) {
			return false
		}
	}
	return seen.has(specVersionField) &&
		isPlainName(s.id, MaxIDBytes) && isPlainName(s.source, MaxSourceBytes) && isPlainName(s.typ, MaxTypeBytes) &&
		isPlainURIReference(s.source)
}

// Forget lets go of the encoding that was read. It is for those who keep the scan.
func (s *Scan) Forget() {
	clear(s.names[:s.attributes])
	clear(s.values[:s.attributes])
	s.id, s.source, s.typ, s.attributes = nil, nil, nil, 0
}

// Has reports whether the event has the named attribute.
func (s *Scan) Has(attribute string) bool {
	_, ok := s.value(attribute)
	return ok
}

func (s *Scan) value(attribute string) (value []byte, ok bool) {
	for i := range s.attributes {
		if string(s.names[i]) == attribute {
			return s.values[i], true
		}
	}
	return nil, false
}

// Event returns the event that was read, without its encoding, which is the caller's to set: a
// copy of what was read, to which attributes may have been appended. identifyBy is as of
// Event.IdentifyBy; empty: events are identified by their id. It is false where that takes
// decoding.
func (s *Scan) Event(identifyBy string) (Event, bool) {
	s.text = append(append(append(s.text[:0], s.id...), s.source...), s.typ...)
	text := string(s.text) // one string for the three
	source, typ := len(s.id), len(s.id)+len(s.source)
	e := Event{ID: text[:source], Source: text[source:typ], Type: text[typ:]}
	kind, name := byte(fingerprintOfID), e.ID
	if value, has := s.value(identifyBy); has {
		number, text, _, ok := consumeField(value)
		if !ok || number != ceStringField {
			return Event{}, false
		}
		if len(text) > 0 {
			kind, name = fingerprintOfAttribute, string(text)
		}
	}
	e.Fingerprint = newFingerprint(e.Source, kind, name)
	return e, true
}

// readEntry reads one attribute.
func (s *Scan) readEntry(entry []byte) bool {
	number, name, rest, ok := consumeField(entry)
	if !ok || number != entryKeyField {
		return false
	}
	number, value, rest, ok := consumeField(rest)
	if !ok || number != entryValueField || len(rest) > 0 {
		return false
	}
	if s.attributes == maxScannedAttributes || s.Has(string(name)) || !isPlainAttribute(name, value) {
		return false
	}
	s.names[s.attributes], s.values[s.attributes] = name, value
	s.attributes++
	return true
}

// isPlainAttribute reports whether validateAttribute accepts the attribute and NewEvent leaves
// it as it is.
func isPlainAttribute(name, value []byte) bool {
	if len(name) == 0 {
		return false
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	number, content, rest, ok := consumeAny(value)
	if !ok || len(rest) > 0 {
		return false
	}
	switch number {
	case ceBooleanField:
		ok = content.kind == protowire.VarintType && content.varint <= 1
	case ceIntegerField:
		n := int64(content.varint)
		ok = content.kind == protowire.VarintType && n >= math.MinInt32 && n <= math.MaxInt32
	case ceBytesField:
		ok = content.kind == protowire.BytesType
	case ceStringField, ceURIField, ceURIRefField:
		ok = content.kind == protowire.BytesType && utf8.Valid(content.bytes)
	case ceTimestampField:
		ok = content.kind == protowire.BytesType && isPlainTimestamp(content.bytes)
	default:
		ok = false
	}
	return ok && isPlainKnown(string(name), number, content.bytes)
}

// isPlainKnown applies validateKnown to the attributes that CloudEvents defines.
func isPlainKnown(name string, number protowire.Number, content []byte) bool {
	switch name {
	case "id", "source", "type", "specversion", "data", SeqnumAttribute:
		return false
	case "time":
		if number == ceStringField {
			_, err := time.Parse(time.RFC3339Nano, string(content))
			return err == nil
		}
		return number == ceTimestampField
	case "datacontenttype":
		return number == ceStringField && isMediaType(string(content))
	case "dataschema":
		isText := number == ceStringField || number == ceURIField || number == ceURIRefField
		return isText && len(content) > 0 && isPlainURIReference(content)
	case "subject":
		return number == ceStringField && len(content) > 0
	}
	return true
}

// isPlainName reports whether value can be an id, a source or a type.
func isPlainName(value []byte, limit int) bool {
	return len(value) > 0 && len(value) <= limit && bytes.IndexByte(value, 0) < 0 && utf8.Valid(value)
}

func isPlainURIReference(text []byte) bool {
	for _, c := range text {
		if c >= utf8.RuneSelf || notPlain(rune(c)) {
			return isURIReference(string(text))
		}
	}
	return true
}

// isPlainAny reports whether encoded is a google.protobuf.Any with nothing else in it.
func isPlainAny(encoded []byte) bool {
	var seen fieldSet
	for len(encoded) > 0 {
		number, value, rest, ok := consumeField(encoded)
		isText := number == anyTypeURLField
		if !ok || !isText && number != anyValueField || isText && !utf8.Valid(value) || !seen.add(number) {
			return false
		}
		encoded = rest
	}
	return true
}

// isPlainTimestamp reports whether encoded is a google.protobuf.Timestamp of the years 1 to
// 9999.
func isPlainTimestamp(encoded []byte) bool {
	var at timestamppb.Timestamp
	var seen fieldSet
	for len(encoded) > 0 {
		number, content, rest, ok := consumeAny(encoded)
		if !ok || content.kind != protowire.VarintType || !seen.add(number) {
			return false
		}
		switch number {
		case secondsField:
			at.Seconds = int64(content.varint)
		case nanosField:
			if content.varint > math.MaxInt32 {
				return false
			}
			at.Nanos = int32(content.varint)
		default:
			return false
		}
		encoded = rest
	}
	return at.IsValid()
}

// fieldSet notes which fields of a message were there.
type fieldSet uint16

// add reports whether the field is new.
func (s *fieldSet) add(number protowire.Number) bool {
	if number < 0 || number > 15 || s.has(number) {
		return false
	}
	*s |= 1 << number
	return true
}

func (s *fieldSet) has(number protowire.Number) bool { return *s&(1<<number) != 0 }

// fieldContent is the content of a field: bytes, or varint.
type fieldContent struct {
	kind   protowire.Type
	bytes  []byte
	varint uint64
}

// consumeAny reads a field of one of the two wire types that events are made of. All of its numbers
// must be as short as can be: not every reader takes longer ones. A tag has one byte.
func consumeAny(b []byte) (number protowire.Number, content fieldContent, rest []byte, ok bool) {
	number, kind, n := protowire.ConsumeTag(b)
	if n != 1 {
		return 0, content, nil, false
	}
	b = b[n:]
	shortest := 0
	content.kind = kind
	switch kind {
	case protowire.BytesType:
		content.bytes, n = protowire.ConsumeBytes(b)
		shortest = protowire.SizeBytes(len(content.bytes))
	case protowire.VarintType:
		content.varint, n = protowire.ConsumeVarint(b)
		shortest = protowire.SizeVarint(content.varint)
	default:
		return 0, content, nil, false
	}
	if n != shortest {
		return 0, content, nil, false
	}
	return number, content, b[n:], true
}

// consumeField reads a field that has a length.
func consumeField(b []byte) (number protowire.Number, content, rest []byte, ok bool) {
	number, any, rest, ok := consumeAny(b)
	return number, any.bytes, rest, ok && any.kind == protowire.BytesType
}

// AppendText appends a text attribute to an encoded event that does not have it: a map entry
// may follow all other fields.
func AppendText(encoded []byte, attribute, text string) []byte {
	value, entry := textSizes(attribute, text)
	encoded = protowire.AppendTag(encoded, attributesField, protowire.BytesType)
	encoded = protowire.AppendVarint(encoded, uint64(entry))
	encoded = protowire.AppendTag(encoded, entryKeyField, protowire.BytesType)
	encoded = protowire.AppendString(encoded, attribute)
	encoded = protowire.AppendTag(encoded, entryValueField, protowire.BytesType)
	encoded = protowire.AppendVarint(encoded, uint64(value))
	encoded = protowire.AppendTag(encoded, ceStringField, protowire.BytesType)
	return protowire.AppendString(encoded, text)
}

// TextSize is how many bytes AppendText appends.
func TextSize(attribute, text string) int {
	_, entry := textSizes(attribute, text)
	return 1 + protowire.SizeBytes(entry)
}

// textSizes are the lengths of a text attribute's value and of its entry; the tags of all
// their fields are one byte.
func textSizes(attribute, text string) (value, entry int) {
	value = 1 + protowire.SizeBytes(len(text))
	return value, 1 + protowire.SizeBytes(len(attribute)) + 1 + protowire.SizeBytes(value)
}
