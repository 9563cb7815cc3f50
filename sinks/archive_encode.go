package sinks

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// ArchivePositionAttribute is the extension in which a line carries the position of
	// its event, as a decimal string.
	ArchivePositionAttribute = "waybillposition"
	// ArchiveTypeURLAttribute is the extension in which a line carries the type URL of
	// protobuf data, where the event's dataschema says something else.
	ArchiveTypeURLAttribute = "datatypeurl"

	contentTypeAttribute = "datacontenttype"
	dataSchemaAttribute  = "dataschema"
	// producerPrefix is put before an attribute of the event that has one of our names.
	producerPrefix = "producer"
)

// Fields of io.cloudevents.v1.CloudEvent, of its map entries and values, of Any and of
// Timestamp.
const (
	ceID, ceSource, ceSpecVersion, ceType = 1, 2, 3, 4
	ceAttributes                          = 5
	ceBinaryData, ceTextData, ceProtoData = 6, 7, 8

	valueBoolean, valueInteger, valueString, valueBytes = 1, 2, 3, 4
	valueURI, valueURIRef, valueTimestamp               = 5, 6, 7
)

// dataKind is which member of the data oneof an event has.
type dataKind int

const (
	noData dataKind = iota
	binaryData
	textData
	protoData
)

// contentKind is how readers of structured CloudEvents take the member data.
type contentKind int

const (
	jsonContent     contentKind = iota // as a JSON value
	otherContent                       // as a string
	disputedContent                    // as one or the other
)

// lineEncoder turns the protobuf encoding of a CloudEvent into a line of structured JSON,
// without an intermediate message: at 10,000 events an object that is most of the sink's
// work. Not for use by several goroutines at once.
type lineEncoder struct {
	id, source, specVersion, typ []byte
	attributes                   []eventAttribute
	kind                         dataKind
	data                         []byte
	typeURL                      []byte
	compact                      bytes.Buffer
}

// eventAttribute is one entry of the attribute map. Exactly one of the values counts.
type eventAttribute struct {
	name  []byte
	field protowire.Number // of the value
	text  []byte           // string, bytes, URI and URI reference
	num   uint64           // boolean and integer
	time  time.Time
}

// appendLine appends the event as one line, newline included. The error says what is
// malformed; dst is then returned as it was.
func (e *lineEncoder) appendLine(dst, encoded []byte, position int64) ([]byte, error) {
	if err := e.parse(encoded); err != nil {
		return dst, err
	}
	e.rename()
	dst = append(dst, `{"specversion":`...)
	dst = appendJSONString(dst, e.specVersion)
	dst = append(dst, `,"id":`...)
	dst = appendJSONString(dst, e.id)
	dst = append(dst, `,"source":`...)
	dst = appendJSONString(dst, e.source)
	dst = append(dst, `,"type":`...)
	dst = appendJSONString(dst, e.typ)
	for i := range e.attributes {
		dst = e.attributes[i].append(dst)
	}
	dst = e.appendTypeURL(dst)
	dst = append(dst, `,"`+ArchivePositionAttribute+`":"`...)
	dst = strconv.AppendInt(dst, position, 10)
	dst = append(dst, '"')
	dst = e.appendData(dst)
	return append(dst, "}\n"...), nil
}

// parse takes the encoding apart. The slices point into it.
func (e *lineEncoder) parse(encoded []byte) error {
	e.id, e.source, e.specVersion, e.typ = nil, nil, nil, nil
	e.attributes, e.kind, e.data, e.typeURL = e.attributes[:0], noData, nil, nil
	err := eachField(encoded, func(field protowire.Number, content []byte, _ uint64) error {
		switch field {
		case ceID:
			e.id = content
		case ceSource:
			e.source = content
		case ceSpecVersion:
			e.specVersion = content
		case ceType:
			e.typ = content
		case ceAttributes:
			return e.parseAttribute(content)
		case ceBinaryData:
			e.kind, e.data = binaryData, content
		case ceTextData:
			e.kind, e.data = textData, content
		case ceProtoData:
			return e.parseAny(content)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, text := range [][]byte{e.id, e.source, e.specVersion, e.typ, e.typeURL} {
		if !utf8.Valid(text) {
			return errors.New("the event has text that is not valid UTF-8")
		}
	}
	return e.sortAttributes()
}

// sortAttributes gives a line one form, whatever order the map was encoded in. Of
// attributes with the same name the last counts, as in protobuf.
func (e *lineEncoder) sortAttributes() error {
	slices.SortStableFunc(e.attributes, func(a, b eventAttribute) int { return bytes.Compare(a.name, b.name) })
	kept := e.attributes[:0]
	for i, attribute := range e.attributes {
		if i+1 < len(e.attributes) && bytes.Equal(e.attributes[i+1].name, attribute.name) {
			continue
		}
		if err := attribute.check(); err != nil {
			return err
		}
		kept = append(kept, attribute)
	}
	e.attributes = kept
	return nil
}

func (e *lineEncoder) parseAttribute(entry []byte) error {
	var a eventAttribute
	err := eachField(entry, func(field protowire.Number, content []byte, _ uint64) error {
		switch field {
		case 1:
			a.name = content
		case 2:
			return eachField(content, a.setValue)
		}
		return nil
	})
	e.attributes = append(e.attributes, a)
	return err
}

func (a *eventAttribute) setValue(field protowire.Number, content []byte, number uint64) error {
	switch field {
	case valueBoolean, valueInteger:
		a.num = number
	case valueString, valueBytes, valueURI, valueURIRef:
		a.text = content
	case valueTimestamp:
		var seconds, nanos int64
		if err := eachField(content, func(field protowire.Number, _ []byte, number uint64) error {
			switch field {
			case 1:
				seconds = int64(number)
			case 2:
				nanos = int64(int32(number))
			}
			return nil
		}); err != nil {
			return err
		}
		a.time = time.Unix(seconds, nanos).UTC()
	default:
		return nil // a later version's; check finds that there is no value
	}
	a.field = field
	return nil
}

// check refuses what has no form in JSON. No ingest lets such an event in.
func (a *eventAttribute) check() error {
	switch {
	case len(a.name) == 0 || len(bytes.Trim(a.name, "abcdefghijklmnopqrstuvwxyz0123456789")) > 0:
		return fmt.Errorf("the event has an attribute with the name %.40q", a.name)
	case a.field == 0:
		return fmt.Errorf("the event's attribute %s has no value", a.name)
	case a.field == valueTimestamp && (a.time.Year() < 1 || a.time.Year() > 9999):
		return fmt.Errorf("the event's attribute %s is not in the years 1 to 9999", a.name)
	case a.field != valueBytes && !utf8.Valid(a.text):
		return fmt.Errorf("the event's attribute %s is not valid UTF-8", a.name)
	}
	return nil
}

func (a *eventAttribute) append(dst []byte) []byte {
	dst = append(dst, ',', '"')
	dst = append(dst, a.name...)
	dst = append(dst, '"', ':')
	switch a.field {
	case valueBoolean:
		return strconv.AppendBool(dst, a.num != 0)
	case valueInteger:
		return strconv.AppendInt(dst, int64(int32(a.num)), 10)
	case valueBytes:
		return appendBase64(dst, a.text)
	case valueTimestamp:
		dst = append(dst, '"')
		dst = a.time.AppendFormat(dst, time.RFC3339Nano)
		return append(dst, '"')
	default:
		return appendJSONString(dst, a.text)
	}
}

func (e *lineEncoder) parseAny(content []byte) error {
	e.kind, e.data, e.typeURL = protoData, nil, nil
	return eachField(content, func(field protowire.Number, content []byte, _ uint64) error {
		switch field {
		case 1:
			e.typeURL = content
		case 2:
			e.data = content
		}
		return nil
	})
}

// rename moves attributes of the event's own that have one of our names out of the way.
func (e *lineEncoder) rename() {
	for i := range e.attributes {
		switch name := string(e.attributes[i].name); name {
		case ArchivePositionAttribute, ArchiveTypeURLAttribute:
			for e.attribute(name) != nil {
				name = producerPrefix + name
			}
			e.attributes[i].name = []byte(name)
		}
	}
}

func (e *lineEncoder) attribute(name string) *eventAttribute {
	for i := range e.attributes {
		if string(e.attributes[i].name) == name {
			return &e.attributes[i]
		}
	}
	return nil
}

// appendTypeURL keeps the type of protobuf data: as the dataschema if the event has none,
// as an extension if it has another or the type is no absolute URI.
func (e *lineEncoder) appendTypeURL(dst []byte) []byte {
	if e.kind != protoData || len(e.typeURL) == 0 {
		return dst
	}
	name := ArchiveTypeURLAttribute
	if schema := e.attribute(dataSchemaAttribute); schema != nil {
		if bytes.Equal(schema.text, e.typeURL) {
			return dst
		}
	} else if u, err := url.Parse(string(e.typeURL)); err == nil && u.IsAbs() {
		name = dataSchemaAttribute
	}
	dst = append(dst, ',', '"')
	dst = append(dst, name...)
	dst = append(dst, '"', ':')
	return appendJSONString(dst, e.typeURL)
}

// appendData appends JSON as it is, if it is JSON, other text as a string, and all else
// in base64, so that data reads as what it was.
func (e *lineEncoder) appendData(dst []byte) []byte {
	if e.kind == noData {
		return dst
	}
	switch e.contentType() {
	case jsonContent:
		if value, ok := e.jsonData(); ok && e.kind != protoData {
			return append(append(dst, `,"data":`...), value...)
		}
	case otherContent:
		if e.kind == textData && utf8.Valid(e.data) {
			return appendJSONString(append(dst, `,"data":`...), e.data)
		}
	}
	return appendBase64(append(dst, `,"data_base64":`...), e.data)
}

// jsonData returns the data without line breaks, if it is JSON.
func (e *lineEncoder) jsonData() ([]byte, bool) {
	if !utf8.Valid(e.data) || !json.Valid(e.data) {
		return nil, false
	}
	if bytes.IndexByte(e.data, '\n') < 0 && bytes.IndexByte(e.data, '\r') < 0 {
		return e.data, true
	}
	e.compact.Reset()
	err := json.Compact(&e.compact, e.data)
	return e.compact.Bytes(), err == nil
}

// contentType says how a reader takes the member data. The specification has more types
// that are read as JSON values than the SDKs know, those that end with +json and those
// in capitals: base64 is understood by all.
func (e *lineEncoder) contentType() contentKind {
	attribute := e.attribute(contentTypeAttribute)
	if attribute == nil {
		return otherContent
	}
	media, _, _ := bytes.Cut(attribute.text, []byte{';'})
	if string(media) == "application/json" || string(media) == "text/json" {
		return jsonContent
	}
	media = bytes.ToLower(bytes.TrimSpace(media))
	if bytes.HasSuffix(media, []byte("json")) {
		return disputedContent
	}
	return otherContent
}

func appendBase64(dst, data []byte) []byte {
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, data)
	return append(dst, '"')
}

const hexDigits = "0123456789abcdef"

// appendJSONString appends valid UTF-8 as a JSON string.
func appendJSONString(dst, s []byte) []byte {
	dst = append(dst, '"')
	from := 0
	for i, c := range s {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

// eachField calls visit with every field of a protobuf message that is length-delimited
// (content) or a varint (number); there are no others in a CloudEvent.
func eachField(message []byte, visit func(field protowire.Number, content []byte, number uint64) error) error {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return malformed(n)
		}
		message = message[n:]
		var content []byte
		var number uint64
		switch kind {
		case protowire.BytesType:
			content, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(message)
		default:
			if n = protowire.ConsumeFieldValue(field, kind, message); n >= 0 {
				message = message[n:]
				continue
			}
		}
		if n < 0 {
			return malformed(n)
		}
		message = message[n:]
		if err := visit(field, content, number); err != nil {
			return err
		}
	}
	return nil
}

func malformed(n int) error {
	return fmt.Errorf("the event's protobuf encoding is malformed: %w", protowire.ParseError(n))
}
