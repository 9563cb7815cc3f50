package intake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/pipeline"
)

func TestStructuredKeepsBytes(t *testing.T) {
	s := mustSite(t, nil)
	s.post(t, `{"specversion":"1.0", "data" : {"b" : 1.50, "a":[ ] , "t":"\u00e9}\""} , "id":"1",
		"source":"/s","type":"t","on":true,"n":-5,"none":null,"time":"2026-01-02T03:04:05.5+01:00"}`,
		"Content-Type", structuredType+"; charset=UTF-8").accepted(t, 1)
	ce := s.recorder.only(t)
	if got, want := string(ce.GetBinaryData()), `{"b" : 1.50, "a":[ ] , "t":"\u00e9}\""}`; got != want {
		t.Errorf("data %s, want %s", got, want)
	}
	a := ce.Attributes
	if !a["on"].GetCeBoolean() || a["n"].GetCeInteger() != -5 || a["none"] != nil {
		t.Errorf("attributes %v", a)
	}
	if a["datacontenttype"].GetCeString() != "application/json" {
		t.Errorf("the implied content type is not said: %v", a)
	}
	if got := a["time"].GetCeTimestamp().AsTime().Format("15:04:05.0"); got != "02:04:05.5" {
		t.Errorf("time %s", got)
	}
}

func TestBinaryHeaders(t *testing.T) {
	s := mustSite(t, nil)
	s.post(t, "raw", "ce-specversion", "1.0", "ce-id", "50% off", "ce-source", "/caf%C3%A9%20x",
		"ce-type", `"quoted \"t\""`, "CE-MyExt", "é", "Content-Type", "text/plain; charset=latin1").accepted(t, 1)
	ce := s.recorder.only(t)
	if ce.Id != "50% off" || ce.Source != "/café x" || ce.Type != `quoted "t"` || ce.Attributes["myext"].GetCeString() != "é" {
		t.Errorf("event %v", ce)
	}
	if string(ce.GetBinaryData()) != "raw" || ce.Attributes["datacontenttype"].GetCeString() != "text/plain; charset=latin1" {
		t.Errorf("data %v", ce)
	}
}

// TestInvalidEvent: whatever is wrong with an event, the problem names the attribute.
func TestInvalidEvent(t *testing.T) {
	const rest = `"specversion":"1.0","source":"/s","type":"t"`
	structured := map[string]string{
		`{` + rest + `}`:                                                  "id",
		`{` + rest + `,"id":""}`:                                          "id",
		`{` + rest + `,"id":7}`:                                           "id",
		`{` + rest + `,"id":null}`:                                        "id",
		`{` + rest + `,"id":"a","id":"b"}`:                                "id",
		`{` + rest + `,"id":"a\u0000"}`:                                   "id",
		`{` + rest + `,"id":"\ud800"}`:                                    "id",
		`{"specversion":"1.0","id":"1","type":"t"}`:                       "source",
		`{"id":"1","source":"/s","type":"t"}`:                             "specversion",
		`{` + rest + `,"id":"1","time":"yesterday"}`:                      "time",
		`{` + rest + `,"id":"1","time":5}`:                                "time",
		`{` + rest + `,"id":"1","dataschema":""}`:                         "dataschema",
		`{` + rest + `,"id":"1","dataschema":":"}`:                        "dataschema",
		`{` + rest + `,"id":"1","subject":""}`:                            "subject",
		`{` + rest + `,"id":"1","x":1.5}`:                                 "x",
		`{` + rest + `,"id":"1","x":2147483648}`:                          "x",
		`{` + rest + `,"id":"1","x":{}}`:                                  "x",
		`{` + rest + `,"id":"1","My-Ext":"v"}`:                            "My-Ext",
		`{` + rest + `,"id":"1","x":"a","x":"b"}`:                         "x",
		`{` + rest + `,"id":"1","data":1,"data":2}`:                       "data",
		`{` + rest + `,"id":"1","data_base64":1}`:                         "data_base64",
		`{` + rest + `,"id":"1","data_base64":"*"}`:                       "data_base64",
		`{` + rest + `,"id":"1","data_base64":[1]}`:                       "data_base64",
		`{` + rest + `,"id":"1","data_base64":"","data":1}`:               "data",
		`{` + rest + `,"id":"1","datacontenttype":"text/plain","data":1}`: "data",
		`{` + rest + `,"id":"1","datacontenttype":"/","data":"x"}`:        "datacontenttype",
		`{"specversion":"0.3","id":"1","source":"/s","type":"t"}`:         "specversion",
		`{"specversion":"1.0","id":"1","source":"http://[","type":"t"}`:   "source",
		`[]`: "event",
		`7`:  "event",
	}
	for body, attribute := range structured {
		s := mustSite(t, nil)
		p := s.post(t, body, "Content-Type", structuredType).problem(t, http.StatusBadRequest, "invalid-event")
		if len(p.Errors) != 1 || p.Errors[0].Attribute != attribute || p.Errors[0].Detail == "" || p.Errors[0].Index != 0 {
			t.Errorf("%s: errors %+v, want attribute %s", body, p.Errors, attribute)
		}
		if s.recorder.count() != 0 {
			t.Errorf("%s: was submitted", body)
		}
		checkReleased(t, s.intake)
	}
}

func TestInvalidHeaders(t *testing.T) {
	valid := []string{"ce-specversion", "1.0", "ce-id", "1", "ce-source", "/s", "ce-type", "t"}
	for attribute, headers := range map[string][]string{
		"id":              append(valid[4:len(valid):len(valid)], "ce-specversion", "1.0"),
		"specversion":     valid[2:],
		"type":            append(valid[:len(valid):len(valid)], "ce-type", "u"),
		"subject":         append(valid[:len(valid):len(valid)], "ce-subject", "%C0%A0"),
		"time":            append(valid[:len(valid):len(valid)], "ce-time", "2026"),
		"datacontenttype": append(valid[:len(valid):len(valid)], "ce-datacontenttype", "text/plain"),
		"my_ext":          append(valid[:len(valid):len(valid)], "ce-my_ext", "v"),
		"attributes":      append(valid[:len(valid):len(valid)], "ce-", "v"),
	} {
		s := mustSite(t, nil)
		p := s.post(t, "x", headers...).problem(t, http.StatusBadRequest, "invalid-event")
		if len(p.Errors) != 1 || p.Errors[0].Attribute != attribute {
			t.Errorf("errors %+v, want %s", p.Errors, attribute)
		}
	}
}

func TestBatchStrict(t *testing.T) {
	s := mustSite(t, nil)
	s.post(t, "["+eventJSON("a")+" , "+eventJSON("b")+"]", "Content-Type", batchType).accepted(t, 2)
	if s.recorder.count() != 1 {
		t.Errorf("%d units, want one", s.recorder.count())
	}
	bad := "[" + eventJSON("a") + `,{"id":"bad"},` + eventJSON("c") + `,5]`
	p := s.post(t, bad, "Content-Type", batchType).problem(t, http.StatusBadRequest, "invalid-event")
	want := []eventError{{Index: 1, ID: "bad", Attribute: "source"}, {Index: 3, Attribute: "event"}}
	for i := range p.Errors {
		p.Errors[i].Detail = ""
	}
	if !reflect.DeepEqual(p.Errors, want) {
		t.Errorf("errors %+v, want %+v", p.Errors, want)
	}
	if s.recorder.count() != 1 {
		t.Error("part of a bad batch was submitted")
	}
	s.post(t, " [ ] ", "Content-Type", batchType).accepted(t, 0)
}

func TestBatchLenient(t *testing.T) {
	s := mustSite(t, func(c *Config) { c.MaxEventBytes = 200 })
	large := `{"specversion":"1.0","id":"large","source":"/s","type":"t","data":"` + strings.Repeat("x", 300) + `"}`
	body := "[" + eventJSON("a") + `,{"id":"bad"},` + large + "," + eventJSON("d") + "]"
	r := s.post(t, body, "Content-Type", batchType, "Prefer", `respond-async, handling="lenient"; x=1`)
	if r.status != http.StatusMultiStatus || r.header.Get("Preference-Applied") != "handling=lenient" {
		t.Fatalf("reply %+v", r)
	}
	var got resultsResponse
	if err := json.Unmarshal([]byte(r.body), &got); err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, result := range got.Results {
		said = append(said, fmt.Sprint(result.Index, result.ID, result.Status, result.Attribute, result.Detail != ""))
	}
	want := []string{"0 a 200  false", "1 bad 400 source true", "2 large 413 data true", "3 d 200  false"}
	for i := range want { // Sprint puts spaces between operands only when neither is a string
		want[i] = strings.ReplaceAll(want[i], " ", "")
		said[i] = strings.ReplaceAll(said[i], " ", "")
	}
	if got.Accepted != 2 || got.Refused != 2 || !reflect.DeepEqual(said, want) {
		t.Errorf("got %d/%d %q, want %q", got.Accepted, got.Refused, said, want)
	}
	if events := s.recorder.events(t); len(events) != 2 || events[0].Id != "a" || events[1].Id != "d" {
		t.Errorf("stored %v", events)
	}
	// All of them bad: still one result per event, and nothing is submitted.
	if r := s.post(t, `[{}]`, "Content-Type", batchType, "Prefer", "handling=lenient"); r.status != http.StatusMultiStatus {
		t.Errorf("all bad: %+v", r)
	}
	if s.recorder.count() != 1 {
		t.Error("a batch without a valid event was submitted")
	}
	// The preference is for batches, and the strict one is the default's name.
	s.post(t, `[{}]`, "Content-Type", batchType, "Prefer", "handling=strict").problem(t, http.StatusBadRequest, "invalid-event")
	s.post(t, `{}`, "Content-Type", structuredType, "Prefer", "handling=lenient").problem(t, http.StatusBadRequest, "invalid-event")
}

func TestTooLarge(t *testing.T) {
	s := mustSite(t, func(c *Config) { c.MaxEventBytes, c.MaxRequestBytes, c.MaxRequestEvents = 200, 1000, 3 })
	large := `{"specversion":"1.0","id":"large","source":"/s","type":"t","data":"` + strings.Repeat("x", 300) + `"}`
	p := s.post(t, large, "Content-Type", structuredType).problem(t, http.StatusRequestEntityTooLarge, "event-too-large")
	if len(p.Errors) != 1 || !strings.Contains(p.Errors[0].Detail, "200") {
		t.Errorf("the limit is not named: %+v", p)
	}
	s.post(t, "["+eventJSON("a")+","+large+"]", "Content-Type", batchType).problem(t, http.StatusRequestEntityTooLarge, "event-too-large")
	p = s.post(t, "[{},"+large+"]", "Content-Type", batchType).problem(t, http.StatusBadRequest, "invalid-event")
	if len(p.Errors) != 2 {
		t.Errorf("errors %+v", p.Errors)
	}
	for _, body := range []string{strings.Repeat(" ", 1001)} {
		p = s.post(t, body, "Content-Type", batchType).problem(t, http.StatusRequestEntityTooLarge, "request-too-large")
		if !strings.Contains(p.Detail, "1000") {
			t.Errorf("the limit is not named: %+v", p)
		}
		chunked := struct{ *strings.Reader }{strings.NewReader(body)}
		s.do(t, http.MethodPost, EventsPath, chunked, "Content-Type", batchType).
			problem(t, http.StatusRequestEntityTooLarge, "request-too-large")
	}
	s.post(t, "[1,2,3,4]", "Content-Type", batchType).problem(t, http.StatusRequestEntityTooLarge, "too-many-events")
	s.post(t, string(protobufBatch(t, nil, nil, nil, nil)), "Content-Type", "application/cloudevents-batch+protobuf").
		problem(t, http.StatusRequestEntityTooLarge, "too-many-events")
	if s.recorder.count() != 0 {
		t.Error("something was submitted")
	}
	checkReleased(t, s.intake)
}

func TestMalformedBody(t *testing.T) {
	s := mustSite(t, nil)
	for body, contentType := range map[string]string{
		"":                        structuredType,
		"{":                       structuredType,
		`{"id":"` + "\xff" + `"}`: structuredType,
		"[{}":                     batchType,
		"{}":                      batchType,
		"[{},]":                   batchType,
		"\x0a\x05x":               "application/cloudevents-batch+protobuf",
		"\xff":                    "application/cloudevents-batch+protobuf",
	} {
		p := s.post(t, body, "Content-Type", contentType).problem(t, http.StatusBadRequest, "malformed-body")
		if !strings.Contains(p.Detail, "the body") {
			t.Errorf("%q: %s", body, p.Detail)
		}
	}
}

func TestNotAnEvent(t *testing.T) {
	s := mustSite(t, nil)
	for _, headers := range [][]string{
		nil,
		{"Content-Type", "application/json"},
		{"Content-Type", "application/cloudevents+avro"},
		{"Content-Type", structuredType + "; charset=latin1"},
	} {
		p := s.post(t, "{}", headers...).problem(t, http.StatusUnsupportedMediaType, "unsupported-media-type")
		if !strings.Contains(p.Detail, structuredType) || !strings.Contains(p.Detail, "ce-") {
			t.Errorf("it is not said what to send: %s", p.Detail)
		}
	}
	r := s.post(t, "{}", "Content-Type", structuredType, "Content-Encoding", "gzip")
	r.problem(t, http.StatusUnsupportedMediaType, "unsupported-content-encoding")
	if r.header.Get("Accept-Encoding") != "identity" {
		t.Errorf("headers %v", r.header)
	}
	r = s.do(t, http.MethodGet, EventsPath, nil)
	r.problem(t, http.StatusMethodNotAllowed, "method-not-allowed")
	if r.header.Get("Allow") != "POST" {
		t.Errorf("headers %v", r.header)
	}
	s.do(t, http.MethodPost, "/v2", nil).problem(t, http.StatusNotFound, "not-found")
}

// TestRefused: each of the engine's errors has its status, its problem type and a time
// after which to retry; its text stays inside.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		err        error
		status     int
		name       string
		retryAfter string
	}{
		{pipeline.ErrOverloaded, http.StatusTooManyRequests, "overloaded", "1"},
		{pipeline.ErrUnavailable, http.StatusServiceUnavailable, "unavailable", "5"},
		{pipeline.ErrOutcomeUnknown, http.StatusServiceUnavailable, "outcome-unknown", "5"},
		{errors.New("new"), http.StatusServiceUnavailable, "outcome-unknown", "5"},
	} {
		s := mustSite(t, nil)
		s.recorder.verdict = func(int) error { return fmt.Errorf("%w: secret", c.err) }
		for _, headers := range [][]string{{"Content-Type", structuredType}, {"Content-Type", batchType, "Prefer", "handling=lenient"}} {
			body := eventJSON("1")
			if headers[1] == batchType {
				body = "[" + body + "]"
			}
			r := s.post(t, body, headers...)
			p := r.problem(t, c.status, c.name)
			if r.header.Get("Retry-After") != c.retryAfter || strings.Contains(r.body, "secret") {
				t.Errorf("reply %+v", r)
			}
			if maybe := strings.Contains(p.Detail, "may be stored"); maybe != (c.name == "outcome-unknown") {
				t.Errorf("%s: %s", c.name, p.Detail)
			}
		}
		checkReleased(t, s.intake)
	}
}

func TestTraceOfRequest(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	own := strings.Replace(eventJSON("own"), "{", `{"traceparent":"mine",`, 1)
	s := mustSite(t, nil)
	s.post(t, "["+eventJSON("a")+","+own+"]", "Content-Type", batchType, "traceparent", parent, "tracestate", "v=1").accepted(t, 2)
	s.post(t, eventJSON("b"), "Content-Type", structuredType, "traceparent", "00-bad").accepted(t, 1)
	events := s.recorder.events(t)
	if a := events[0].Attributes; a["traceparent"].GetCeString() != parent || a["tracestate"].GetCeString() != "v=1" {
		t.Errorf("no trace: %v", a)
	}
	if a := events[1].Attributes; a["traceparent"].GetCeString() != "mine" || a["tracestate"] != nil {
		t.Errorf("the event's own trace was changed: %v", a)
	}
	if a := events[2].Attributes; a["traceparent"] != nil {
		t.Errorf("a malformed trace was taken: %v", a)
	}
}

func TestProtobufBatch(t *testing.T) {
	s := mustSite(t, nil)
	const contentType = "application/cloudevents-batch+protobuf"
	body := protobufBatch(t, validEvent("a"), validEvent("b"))
	s.post(t, string(body), "Content-Type", contentType).accepted(t, 2)
	body = protowire.AppendBytes(protowire.AppendTag(body, 1, protowire.BytesType), []byte{0xff})
	p := s.post(t, string(body), "Content-Type", contentType).problem(t, http.StatusBadRequest, "invalid-event")
	if len(p.Errors) != 1 || p.Errors[0].Index != 2 || p.Errors[0].Attribute != "event" {
		t.Errorf("errors %+v", p.Errors)
	}
}

// TestClientGone: a client that leaves while its event is being committed frees nothing
// before the commit's answer.
func TestClientGone(t *testing.T) {
	s := mustSite(t, nil)
	s.recorder.held = true
	ctx, cancel := context.WithCancel(t.Context())
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+EventsPath, strings.NewReader(eventJSON("1")))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", structuredType)
	done := make(chan error, 1)
	go func() {
		_, err := s.Client().Do(request)
		done <- err
	}()
	s.recorder.waitUnits(t, 1)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("the request ended with %v", err)
	}
	if s.intake.Budget().Used() == 0 {
		t.Error("the budget was released before the commit's answer")
	}
	s.recorder.answer(0, nil)
	checkReleased(t, s.intake)
}

func validEvent(id string) *pb.CloudEvent {
	return &pb.CloudEvent{
		Id: id, Source: "/shop", Type: "order.placed", SpecVersion: "1.0",
		Data: &pb.CloudEvent_BinaryData{BinaryData: []byte("data")},
	}
}

func protobufBatch(t testing.TB, events ...*pb.CloudEvent) []byte {
	t.Helper()
	var body []byte
	for _, ce := range events {
		encoded, err := proto.Marshal(ce)
		if err != nil {
			t.Fatal(err)
		}
		body = protowire.AppendBytes(protowire.AppendTag(body, 1, protowire.BytesType), encoded)
	}
	return body
}
