package intake

import (
	"bytes"
	"encoding/json"
	"net/http"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/pipeline"
)

// FuzzDecode feeds bodies in every mode. Nothing may panic, every event has a fault or an
// encoding that reads back as itself, and the parts of JSON are those encoding/json finds.
func FuzzDecode(f *testing.F) {
	for _, body := range []string{
		eventJSON("1"), "[" + eventJSON("1") + "]", "", " ", "{", "[", `{"a`, `{"id":"\ud800"}`, `{"data_base64":1}`, `{"":{}}`,
		`{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"text/plain","data":"\u00e9\\\""}`,
		`{"specversion":"1.0","id":"1","source":"/s","type":"t","x":-1,"y":true,"z":null,"data_base64":"AA=="}`,
		`[ { "a" : [ 1 , "]" ] } , 2 ]`, string(protobufBatch(f, validEvent("a"), validEvent("b"))),
	} {
		for m := modeBinary; m <= modeProtobufBatch; m++ {
			f.Add(int(m), "v", []byte(body))
		}
	}
	in := mustIntake(f, newRecorder(), func(c *Config) { c.MaxRequestEvents = 100 })
	f.Fuzz(func(t *testing.T, m int, value string, body []byte) {
		header := http.Header{"Ce-Id": {value}, "Ce-Source": {"/s"}, "Ce-Type": {"t"}, "Ce-Specversion": {"1.0"}, "Ce-" + value: {value}, "Content-Type": {value}}
		e := &encoder{maxEventBytes: pipeline.DefaultMaxEventBytes}
		items, err := in.decode(mode(m), header, bytes.Clone(body), e)
		if err == nil {
			checkItems(t, items)
		}
		checkScan(t, body)
	})
}

func checkItems(t *testing.T, items []item) {
	t.Helper()
	for _, it := range items {
		if it.fault != nil {
			if it.fault.Attribute == "" || it.fault.Reason == "" {
				t.Errorf("fault %+v names nothing", it.fault)
			}
			continue
		}
		ce := new(pb.CloudEvent)
		if err := proto.Unmarshal(it.event.Encoded, ce); err != nil {
			t.Errorf("encoded event cannot be read: %v", err)
		}
		if ce.Id != it.event.ID || ce.Source != it.event.Source || ce.Type != it.event.Type || !utf8.ValidString(it.id) {
			t.Errorf("event %v, item %+v", ce, it)
		}
	}
}

// checkScan holds the scanner against encoding/json.
func checkScan(t *testing.T, body []byte) {
	t.Helper()
	if checkJSON(body) != nil {
		return
	}
	body = body[skipSpace(body, 0):]
	switch body[0] {
	case '[':
		var want []json.RawMessage
		if err := json.Unmarshal(body, &want); err != nil {
			return
		}
		n := 0
		eachElement(body, func(value []byte) bool {
			if n >= len(want) || !bytes.Equal(value, want[n]) {
				t.Errorf("element %d of %q is %q", n, body, value)
			}
			n++
			return true
		})
		if n != len(want) {
			t.Errorf("%d elements of %q, want %d", n, body, len(want))
		}
	case '{':
		var want map[string]json.RawMessage
		if err := json.Unmarshal(body, &want); err != nil {
			return
		}
		got := make(map[string]json.RawMessage)
		eachMember(body, func(name string, value []byte) { got[name] = value })
		if len(got) != len(want) {
			t.Errorf("%d members of %q, want %d", len(got), body, len(want))
		}
		for name := range want {
			if !bytes.Equal(got[name], want[name]) {
				t.Errorf("member %q of %q is %q", name, body, got[name])
			}
		}
	}
}
