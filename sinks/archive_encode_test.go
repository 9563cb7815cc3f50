package sinks

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/cloudevents/sdk-go/v2/event"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// lineOf encodes an event and reads the line back with the CloudEvents SDK and as plain
// JSON. Both must take it.
func lineOf(t testing.TB, ce *pb.CloudEvent) (sdk event.Event, members map[string]json.RawMessage) {
	t.Helper()
	var e lineEncoder
	line, err := e.appendLine([]byte("before\n"), mustEncode(ce), 4097)
	mustNil(t, err)
	line, found := bytes.CutPrefix(line, []byte("before\n"))
	if !found || bytes.Count(line, []byte{'\n'}) != 1 || line[len(line)-1] != '\n' {
		t.Fatalf("not one line: %q", line)
	}
	if err := json.Unmarshal(line, &sdk); err != nil {
		t.Fatalf("the SDK does not read %s: %v", line, err)
	}
	if err := sdk.Validate(); err != nil {
		t.Fatalf("the SDK says that %s is not valid: %v", line, err)
	}
	mustNil(t, json.Unmarshal(line, &members))
	if string(members["waybillposition"]) != `"4097"` || sdk.ID() != ce.Id || sdk.Source() != ce.Source || sdk.Type() != ce.Type {
		t.Fatalf("wrong position, id, source or type: %s", line)
	}
	return sdk, members
}

func newLineEvent(attributes map[string]*pb.CloudEventAttributeValue) *pb.CloudEvent {
	if attributes == nil {
		attributes = map[string]*pb.CloudEventAttributeValue{}
	}
	attributes["seqnum"] = ceString("12345678901")
	return &pb.CloudEvent{Id: "id-1", Source: "/a/b?c=d", SpecVersion: "1.0", Type: "t", Attributes: attributes}
}

func TestArchiveLineAttributes(t *testing.T) {
	at := time.Date(2026, 2, 3, 4, 5, 6, 123456789, time.UTC)
	ce := newLineEvent(map[string]*pb.CloudEventAttributeValue{
		"text":            ceString("quote \" backslash \\ newline \n tab \t bell \a del \x7f umlaut ü line \u2028 emoji 😀 <&>"),
		"empty":           ceString(""),
		"yes":             {Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: true}},
		"no":              {Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: false}},
		"least":           {Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: -2147483648}},
		"zero":            {Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: 0}},
		"most":            {Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: 2147483647}},
		"raw":             {Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: []byte{0, 1, 254, 255}}},
		"uri":             {Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "https://example.com/x?y#z"}},
		"uriref":          {Attr: &pb.CloudEventAttributeValue_CeUriRef{CeUriRef: "../x"}},
		"recordedtime":    {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(at)}},
		"time":            {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(at.Truncate(time.Second))}},
		"subject":         ceString("the subject"),
		"datacontenttype": ceString("text/plain"),
		"dataschema":      {Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "https://example.com/schema"}},
	})
	sdk, members := lineOf(t, ce)
	for name, want := range map[string]any{
		"seqnum": "12345678901", "text": ce.Attributes["text"].GetCeString(), "empty": "", "yes": true, "no": false,
		"least": int32(-2147483648), "zero": int32(0), "most": int32(2147483647),
		"raw": "AAH+/w==", "uri": "https://example.com/x?y#z", "uriref": "../x", "recordedtime": "2026-02-03T04:05:06.123456789Z",
	} {
		if got := sdk.Extensions()[name]; got != want {
			t.Errorf("%s is %v (%T), want %v (%T)", name, got, got, want, want)
		}
	}
	if sdk.Subject() != "the subject" || sdk.DataContentType() != "text/plain" ||
		sdk.DataSchema() != "https://example.com/schema" || !sdk.Time().Equal(at.Truncate(time.Second)) {
		t.Errorf("context %v", sdk.Context)
	}
	if want := len(ce.Attributes) + 5; len(members) != want {
		t.Errorf("%d members, want %d", len(members), want)
	}
}

func TestArchiveLineData(t *testing.T) {
	jsonType, textType := ceString("application/json; charset=utf-8"), ceString("text/plain")
	invalidUTF8 := "\"\xff\""
	for name, tc := range map[string]struct {
		contentType *pb.CloudEventAttributeValue
		data        any // []byte: binary_data, string: text_data, *anypb.Any: proto_data
		member      string
		raw         string // of the member, if not empty
		want        string // what the SDK reads
	}{
		"none":                {contentType: jsonType},
		"json":                {jsonType, []byte(`{"a": 1.0e2, "b":[true,null]}`), "data", `{"a": 1.0e2, "b":[true,null]}`, `{"a": 1.0e2, "b":[true,null]}`},
		"json text":           {ceString("text/json"), `"x"`, "data", `"x"`, `"x"`},
		"json in capitals":    {ceString("Text/JSON"), `"x"`, "data_base64", ``, `"x"`},
		"json scalar":         {jsonType, []byte(`12345678901234567890.123456789`), "data", ``, `12345678901234567890.123456789`},
		"json over lines":     {jsonType, []byte("{\n  \"a\": \"b\\n\",\r\n  \"c\": 1\n}"), "data", `{"a":"b\n","c":1}`, `{"a":"b\n","c":1}`},
		"json spaces":         {jsonType, []byte(" {} \t"), "data", `{}`, `{}`},
		"json that is none":   {jsonType, []byte(`{"a":`), "data_base64", ``, `{"a":`},
		"two jsons":           {jsonType, []byte(`{}{}`), "data_base64", ``, `{}{}`},
		"json text, invalid":  {jsonType, `nope`, "data_base64", ``, `nope`},
		"json, invalid UTF-8": {jsonType, []byte(invalidUTF8), "data_base64", ``, invalidUTF8},
		"json empty":          {jsonType, []byte{}, "data_base64", `""`, ``},
		"json suffix":         {ceString("application/x+json"), []byte(`{}`), "data_base64", ``, `{}`},
		"text":                {textType, "line 1\nline \"2\" \x01 ü", "data", `"line 1\nline \"2\" \u0001 ü"`, "line 1\nline \"2\" \x01 ü"},
		"text empty":          {textType, "", "data", `""`, ""},
		"text without a type": {nil, "hello", "data", `"hello"`, `"hello"`}, // JSON is implied
		"binary text":         {textType, []byte("hello"), "data_base64", `"aGVsbG8="`, "hello"},
		"binary":              {nil, []byte{0, 255, '\n'}, "data_base64", ``, "\x00\xff\n"},
		"binary empty":        {nil, []byte{}, "data_base64", `""`, ""},
		"proto":               {ceString("application/protobuf"), &anypb.Any{Value: []byte{8, 1}}, "data_base64", `"CAE="`, "\x08\x01"},
		"proto as json":       {jsonType, &anypb.Any{Value: []byte(`{}`)}, "data_base64", ``, `{}`},
		"proto empty":         {ceString("application/protobuf"), &anypb.Any{}, "data_base64", `""`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ce := newLineEvent(nil)
			if tc.contentType != nil {
				ce.Attributes["datacontenttype"] = tc.contentType
			}
			switch data := tc.data.(type) {
			case []byte:
				ce.Data = &pb.CloudEvent_BinaryData{BinaryData: data}
			case string:
				ce.Data = &pb.CloudEvent_TextData{TextData: data}
			case *anypb.Any:
				ce.Data = &pb.CloudEvent_ProtoData{ProtoData: data}
			}
			sdk, members := lineOf(t, ce)
			if string(bytes.TrimSpace(sdk.Data())) != strings.TrimSpace(tc.want) {
				t.Errorf("the SDK reads %q, want %q", sdk.Data(), tc.want)
			}
			for _, member := range []string{"data", "data_base64"} {
				if got, ok := members[member]; ok != (member == tc.member) || (ok && tc.raw != "" && string(got) != tc.raw) {
					t.Errorf("%s is %s", member, got)
				}
			}
		})
	}
}

func TestArchiveLineTypeURL(t *testing.T) {
	for name, tc := range map[string]struct {
		schema, typeURL, wantSchema string
		wantExtension               any
	}{
		"no schema":      {"", "https://e.com/a.B", "https://e.com/a.B", nil},
		"not absolute":   {"", "type.example.com/a.B", "", "type.example.com/a.B"},
		"same":           {"https://e.com/s", "https://e.com/s", "https://e.com/s", nil},
		"other":          {"https://e.com/s", "type.example.com/a.B", "https://e.com/s", "type.example.com/a.B"},
		"no URI":         {"", "http://a b\x7f", "", "http://a b\x7f"},
		"none of either": {"", "", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			ce := newLineEvent(map[string]*pb.CloudEventAttributeValue{"datacontenttype": ceString("application/protobuf")})
			if tc.schema != "" {
				ce.Attributes["dataschema"] = &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: tc.schema}}
			}
			ce.Data = &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: tc.typeURL, Value: []byte{1}}}
			sdk, _ := lineOf(t, ce)
			if sdk.DataSchema() != tc.wantSchema || sdk.Extensions()["datatypeurl"] != tc.wantExtension {
				t.Errorf("schema %q, extension %v", sdk.DataSchema(), sdk.Extensions()["datatypeurl"])
			}
		})
	}
}

// TestArchiveLineOwnNames has an event with attributes that the line needs itself.
func TestArchiveLineOwnNames(t *testing.T) {
	ce := newLineEvent(map[string]*pb.CloudEventAttributeValue{
		"waybillposition":         ceString("theirs"),
		"producerwaybillposition": ceString("theirs too"),
		"datatypeurl":             ceString("their type"),
		"dataschema":              {Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "https://e.com/s"}},
	})
	ce.Data = &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "e.com/a.B"}}
	sdk, _ := lineOf(t, ce)
	for name, want := range map[string]string{
		"producerproducerwaybillposition": "theirs", "producerwaybillposition": "theirs too",
		"producerdatatypeurl": "their type", "datatypeurl": "e.com/a.B",
	} {
		if got := sdk.Extensions()[name]; got != want {
			t.Errorf("%s is %v, want %s", name, got, want)
		}
	}
}

// TestArchiveLineLastCounts repeats fields, as protobuf allows; seqnum may be added to a
// map that has one.
func TestArchiveLineLastCounts(t *testing.T) {
	first, second := newLineEvent(nil), newLineEvent(nil)
	first.Id, first.Attributes["seqnum"] = "old", ceString("7")
	first.Data = &pb.CloudEvent_TextData{TextData: "old"}
	second.Data = &pb.CloudEvent_BinaryData{BinaryData: []byte("new")}
	var e lineEncoder
	line, err := e.appendLine(nil, append(mustEncode(first), mustEncode(second)...), 1)
	mustNil(t, err)
	want := `{"specversion":"1.0","id":"id-1","source":"/a/b?c=d","type":"t","seqnum":"12345678901",` +
		`"waybillposition":"1","data_base64":"bmV3"}` + "\n"
	if string(line) != want {
		t.Errorf("got  %s\nwant %s", line, want)
	}
}

func TestArchiveLineMalformed(t *testing.T) {
	field := func(number protowire.Number, content string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), content)
	}
	attribute := func(name, value string) []byte {
		return field(ceAttributes, string(field(1, name))+string(field(2, value)))
	}
	stamp := func(seconds int64) string {
		return string(field(valueTimestamp, string(protowire.AppendVarint([]byte{8}, uint64(seconds)))))
	}
	good := mustEncode(newLineEvent(nil))
	for name, tc := range map[string]struct {
		tail []byte
		want string
	}{
		"bad tag":            {[]byte{0xff}, "malformed"},
		"cut off":            {good[:len(good)-1], "malformed"},
		"bad varint":         {[]byte{9 << 3, 0xff}, "malformed"},
		"bad fixed":          {[]byte{9<<3 | 1, 1}, "malformed"},
		"bad any":            {field(ceProtoData, "\xff"), "malformed"},
		"bad attribute":      {field(ceAttributes, "\xff"), "malformed"},
		"bad value":          {attribute("a", "\xff"), "malformed"},
		"bad timestamp":      {attribute("a", string(field(valueTimestamp, "\xff"))), "malformed"},
		"id not UTF-8":       {field(ceID, "\xff"), "UTF-8"},
		"type URL not UTF-8": {field(ceProtoData, string(field(1, "\xff"))), "UTF-8"},
		"text not UTF-8":     {attribute("a", string(field(valueString, "\xff"))), "attribute a is not valid UTF-8"},
		"no value":           {attribute("a", ""), "attribute a has no value"},
		"unknown value":      {attribute("a", string(field(20, "x"))), "attribute a has no value"},
		"no name":            {attribute("", string(field(valueString, "x"))), "with the name"},
		"bad name":           {attribute("a-b", string(field(valueString, "x"))), `with the name "a-b"`},
		"year 0":             {attribute("a", stamp(-62135596801)), "years 1 to 9999"},
		"year 10000":         {attribute("a", stamp(253402300800)), "years 1 to 9999"},
		"end of time":        {attribute("a", stamp(-1<<63)), "years 1 to 9999"},
	} {
		var e lineEncoder
		line, err := e.appendLine([]byte("kept"), append(bytes.Clone(good), tc.tail...), 1)
		if err == nil || !strings.Contains(err.Error(), tc.want) || string(line) != "kept" {
			t.Errorf("%s: %v, %q", name, err, line)
		}
	}
	var e lineEncoder // what a later version adds is passed over
	later := append(bytes.Clone(good), 15<<3|1, 1, 2, 3, 4, 5, 6, 7, 8)
	if _, err := e.appendLine(nil, later, 1); err != nil {
		t.Errorf("an unknown field: %v", err)
	}
}

// FuzzArchiveLine: whatever is accepted is one line that JSON readers take.
func FuzzArchiveLine(f *testing.F) {
	f.Add(mustEncode(newLineEvent(nil)))
	f.Add(encodedEvent("1", 1))
	f.Fuzz(func(t *testing.T, encoded []byte) {
		var e lineEncoder
		line, err := e.appendLine(nil, encoded, 1)
		if err != nil {
			return
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(line, &members); err != nil || bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("%q: %v", line, err)
		}
	})
}

func benchmarkEvent(size int, asJSON bool) []byte {
	ce := newLineEvent(map[string]*pb.CloudEventAttributeValue{
		"emitter": ceString("bench"), "recordedtime": {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(epoch)}},
		"idempotencykey": ceString(strings.Repeat("0123456789abcdef", 4)),
	})
	if asJSON {
		ce.Attributes["datacontenttype"] = ceString("application/json")
		ce.Data = &pb.CloudEvent_BinaryData{BinaryData: fmt.Appendf(nil, `{"order":{"id":123456,"lines":[1,2,3.5]},"text":"%s"}`, strings.Repeat("lorem ipsum ", size/12-5))}
	} else {
		ce.Attributes["datacontenttype"] = ceString("application/protobuf")
		ce.Data = &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "e.com/a.B", Value: []byte(strings.Repeat("lorem ipsum ", size/12))}}
	}
	return mustEncode(ce)
}

func BenchmarkArchiveLine(b *testing.B) {
	for name, encoded := range map[string][]byte{
		"json 1 KB": benchmarkEvent(1024, true), "protobuf 1 KB": benchmarkEvent(1024, false), "protobuf 256 B": benchmarkEvent(256, false),
	} {
		b.Run(name, func(b *testing.B) {
			var e lineEncoder
			var line []byte
			b.SetBytes(int64(len(encoded)))
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if line, err = e.appendLine(line[:0], encoded, 1<<40); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestArchiveLineBase64 has every byte value.
func TestArchiveLineBase64(t *testing.T) {
	data := make([]byte, 256)
	for i := range data {
		data[i] = byte(i)
	}
	ce := newLineEvent(nil)
	ce.Data = &pb.CloudEvent_BinaryData{BinaryData: data}
	_, members := lineOf(t, ce)
	var text string
	mustNil(t, json.Unmarshal(members["data_base64"], &text))
	if decoded, err := base64.StdEncoding.DecodeString(text); err != nil || !bytes.Equal(decoded, data) {
		t.Errorf("decoded %x, %v", decoded, err)
	}
}
