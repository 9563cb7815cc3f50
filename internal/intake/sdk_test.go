package intake

import (
	"bytes"
	"context"
	"net/http"
	"testing"
	"time"

	format "github.com/cloudevents/sdk-go/binding/format/protobuf/v2"
	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/pipeline"
)

// sdkEvents are events as programs build them with the SDK.
func sdkEvents(t *testing.T) map[string]event.Event {
	t.Helper()
	build := func(contentType string, data any) event.Event {
		e := cloudevents.NewEvent()
		e.SetID("id-1")
		e.SetSource("https://example.com/shop?region=eu#x")
		e.SetType("order.placed")
		e.SetSubject("order/1")
		e.SetTime(time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC))
		e.SetDataSchema("https://example.com/schemas/order")
		e.SetExtension("partitionkey", "p1")
		if err := e.SetData(contentType, data); err != nil {
			t.Fatal(err)
		}
		return e
	}
	bare := cloudevents.NewEvent()
	bare.SetID("id-2")
	bare.SetSource("shop")
	bare.SetType("t")
	bare.SetTime(time.Unix(1, 0).UTC()) // else the client sets one
	return map[string]event.Event{
		"json":     build("application/json", map[string]any{"a": 1, "b": []string{"x"}}),
		"params":   build("application/json; charset=utf-8", map[string]any{"a": 1}),
		"text":     build("text/plain", "grüße, \"quoted\"\n"),
		"bytes":    build("application/octet-stream", []byte{0, 1, 2, 255}),
		"protobuf": build("application/protobuf", []byte{8, 1}),
		"bare":     bare,
	}
}

// TestSDKClient sends with the SDK's own client, in both modes, and wants to find what
// the SDK's own protobuf format makes of the event.
func TestSDKClient(t *testing.T) {
	for name, e := range sdkEvents(t) {
		t.Run(name+"/binary", func(t *testing.T) { sendWithSDK(t, e, binding.WithForceBinary) })
		t.Run(name+"/structured", func(t *testing.T) { sendWithSDK(t, e, binding.WithForceStructured) })
	}
}

type encoding = func(context.Context) context.Context

func sendWithSDK(t *testing.T, e event.Event, as encoding) {
	t.Helper()
	s := mustSite(t, nil)
	client, err := cloudevents.NewClientHTTP(
		cehttp.WithTarget(s.URL+EventsPath), cehttp.WithClient(*s.Client()))
	if err != nil {
		t.Fatal(err)
	}
	result := client.Send(as(t.Context()), e)
	if !cloudevents.IsACK(result) {
		t.Fatalf("not acknowledged: %v", result)
	}
	var status *cehttp.Result
	if !cloudevents.ResultAs(result, &status) || status.StatusCode != http.StatusOK {
		t.Errorf("result %v", result)
	}
	checkSameAsSDK(t, s.recorder, e)
}

func checkSameAsSDK(t *testing.T, r *recorder, events ...event.Event) {
	t.Helper()
	got := r.events(t)
	if len(got) != len(events) {
		t.Fatalf("%d events, want %d", len(got), len(events))
	}
	for i := range events {
		want, err := format.ToProto(&events[i])
		if err != nil {
			t.Fatal(err)
		}
		if len(want.GetBinaryData()) == 0 && want.GetProtoData() == nil {
			want.Data = nil // the SDK makes no difference between no data and empty data
		}
		if !proto.Equal(got[i], want) {
			t.Errorf("event %d:\n got %v\nwant %v", i, got[i], want)
		}
	}
}

func TestSDKBatch(t *testing.T) {
	s := mustSite(t, nil)
	var events []event.Event
	for _, e := range sdkEvents(t) {
		events = append(events, e)
	}
	request, err := cehttp.NewHTTPRequestFromEvents(t.Context(), s.URL+EventsPath, events)
	if err != nil {
		t.Fatal(err)
	}
	response, err := s.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("status %d", response.StatusCode)
	}
	checkSameAsSDK(t, s.recorder, events...)
	if n := s.recorder.count(); n != 1 {
		t.Errorf("the batch came in %d units", n)
	}
}

func TestSDKProtobuf(t *testing.T) {
	for name, e := range sdkEvents(t) {
		s := mustSite(t, nil)
		body, err := format.Protobuf.Marshal(&e)
		if err != nil {
			t.Fatal(err)
		}
		s.do(t, http.MethodPost, EventsPath, bytes.NewReader(body), "Content-Type", "application/cloudevents+protobuf").accepted(t, 1)
		want, err := format.ToProto(&e)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.recorder.only(t); !proto.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

// TestSDKRefused: the SDK's client must not take a refused event for accepted, and shows
// the problem to its caller.
func TestSDKRefused(t *testing.T) {
	s := mustSite(t, nil)
	s.recorder.verdict = func(int) error { return pipeline.ErrOverloaded }
	client, err := cloudevents.NewClientHTTP(cehttp.WithTarget(s.URL+EventsPath), cehttp.WithClient(*s.Client()))
	if err != nil {
		t.Fatal(err)
	}
	result := client.Send(t.Context(), sdkEvents(t)["json"])
	var status *cehttp.Result
	if cloudevents.IsACK(result) || !cloudevents.ResultAs(result, &status) || status.StatusCode != http.StatusTooManyRequests {
		t.Errorf("result %v", result)
	}
}
