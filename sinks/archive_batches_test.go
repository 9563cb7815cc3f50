package sinks

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/waybillhq/waybill/pipeline"
)

// numbers are the batches of a lane in a span.
func (k *archiveKit) numbers(lane int, span ArchiveSpan) (numbers []int64, err error) {
	k.t.Helper()
	for b, failed := range k.reader().Batches(k.t.Context(), lane, span) {
		if failed != nil {
			return numbers, failed
		}
		if b.Lane != lane || len(b.Records) != b.Events || b.Records[0].Offset != b.Offset {
			k.t.Fatalf("%+v", b)
		}
		numbers = append(numbers, b.ID.Number)
	}
	return numbers, nil
}

func TestArchiveBatchesOfASpan(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	const count = 150 // more than are read at once
	offsets := make([]int64, count+2)
	for n := int64(1); n <= count; n++ {
		b := batchOf(n, 1+int(n%3))
		offsets[n+1] = offsets[n] + int64(len(b.Events))
		mustArchive(t, a, 1, b)
	}
	late := batchOf(20, 2) // accepted with 20, archived after all
	late.ID.Number = 1000
	mustArchive(t, a, 1, late)
	at := func(n int64) time.Time { return epoch.Add(time.Duration(n) * time.Second) }
	span := func(from, to int64) (numbers []int64) {
		for n := from; n <= to; n++ {
			numbers = append(numbers, n)
		}
		return numbers
	}
	for _, test := range []struct {
		name string
		span ArchiveSpan
		want []int64
	}{
		{"all", ArchiveSpan{}, append(span(1, count), 1000)},
		{"offsets", ArchiveSpan{From: offsets[7], To: offsets[90]}, span(7, 89)},
		{"since", ArchiveSpan{Since: at(70)}, span(70, count)},
		{"since before all", ArchiveSpan{Since: at(-70)}, append(span(1, count), 1000)},
		{"since after all", ArchiveSpan{Since: at(count + 1)}, nil},
		{"until, late ones too", ArchiveSpan{Since: at(10), Until: at(31), Late: time.Hour}, append(span(10, 30), 1000)},
		{"until, no late ones", ArchiveSpan{Since: at(10), Until: at(31), Late: time.Minute}, span(10, 30)},
		{"offset and time", ArchiveSpan{From: offsets[25], Since: at(10), Until: at(31), Late: time.Minute}, span(25, 30)},
	} {
		got, err := k.numbers(1, test.span)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, %v; want %v", test.name, got, err, test.want)
		}
	}
	if got, err := k.numbers(2, ArchiveSpan{Since: at(1)}); err != nil || len(got) > 0 {
		t.Errorf("an empty lane has %v, %v", got, err)
	}
	for range k.reader().Batches(t.Context(), 1, ArchiveSpan{}) {
		break
	}
	// Old objects are deleted by a lifecycle rule, and one by mistake.
	for n := int64(1); n <= 40; n++ {
		k.remove(a.objects.key(1, offsets[n]))
	}
	if got, err := k.numbers(1, ArchiveSpan{Since: at(35), Until: at(50), Late: time.Minute}); err != nil || !slices.Equal(got, span(41, 49)) {
		t.Errorf("after a deletion of old ones: %v, %v", got, err)
	}
	k.remove(a.objects.key(1, offsets[60]))
	got, err := k.numbers(1, ArchiveSpan{Since: at(55)})
	var gap *ArchiveGapError
	if !errors.As(err, &gap) || gap.From != offsets[60] || gap.To != offsets[61] || !slices.Equal(got, span(55, 59)) {
		t.Fatalf("%v, %v", got, err)
	}
	if got, err := k.numbers(1, ArchiveSpan{From: gap.To, Since: at(55)}); err != nil || !slices.Equal(got, span(61, count)) {
		t.Errorf("behind the gap: %v, %v", got, err)
	}
}

// Whoever names offsets has them all, or is told which are missing: at the beginning and the end too.
func TestArchiveBatchesNameOffsetsThatAreMissing(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	for n := int64(1); n <= 10; n++ {
		mustArchive(t, a, 0, batchOf(n, 2))
	}
	remove := func(from, to int64) {
		for n := from; n <= to; n++ {
			k.remove(a.objects.key(0, 2*(n-1)))
		}
	}
	remove(1, 3)
	remove(9, 10)
	since := epoch.Add(7 * time.Second)
	for _, test := range []struct {
		span     ArchiveSpan
		want     []int64
		from, to int64 // of the gap; 0: there is none
	}{
		{ArchiveSpan{}, []int64{4, 5, 6, 7, 8}, 0, 0},
		{ArchiveSpan{To: 16}, []int64{4, 5, 6, 7, 8}, 0, 0},
		{ArchiveSpan{From: 3}, nil, 3, 6},
		{ArchiveSpan{From: 3, To: 5}, nil, 3, 6},
		{ArchiveSpan{From: 6, To: 20}, []int64{4, 5, 6, 7, 8}, 16, 20},
		{ArchiveSpan{From: 18, To: 20}, nil, 18, 20},
		{ArchiveSpan{To: 20, Since: since}, []int64{7, 8}, 16, 20},
		{ArchiveSpan{To: 20, Since: since, Until: since.Add(time.Second)}, []int64{7}, 0, 0},
		{ArchiveSpan{To: 12, Since: since}, nil, 0, 0},
	} {
		got, err := k.numbers(0, test.span)
		var gap *ArchiveGapError
		if errors.As(err, &gap) != (test.to > 0) || gap != nil && (gap.From != test.from || gap.To != test.to) || gap == nil && err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%+v: %v, %v; want %v and offsets %d to %d missing", test.span, got, err, test.want, test.from, test.to)
		}
	}
	k.plant(a.objects.key(0, 30), (&archiveFrame{
		Offset: 30, Events: 1, Watermark: math.MaxInt64, Previous: archiveTime(since.Add(time.Hour)),
		Entries: []archiveEntry{{ID: batchOf(99, 1).ID, Events: 1}},
	}).append(nil))
	if _, err := k.numbers(0, ArchiveSpan{From: 6, To: 16}); err != nil {
		t.Errorf("a gap that begins where the span ends: %v", err)
	}
	if _, err := k.numbers(0, ArchiveSpan{From: 6, To: 18}); err == nil {
		t.Error("a gap in which the span ends is not named")
	}
	k.remove(a.objects.key(0, 30))
	remove(1, 10)
	var gap *ArchiveGapError
	if got, err := k.numbers(0, ArchiveSpan{From: 4, To: 20}); !errors.As(err, &gap) || gap.From != 4 || gap.To != 20 || len(got) > 0 {
		t.Errorf("of a lane that is empty: %v, %v", got, err)
	}
	// An object that begins where another one is not at its end yet is none of the archive's.
	mustArchive(t, a, 1, batchOf(1, 5))
	f := archiveFrame{Offset: 3, Events: 1, Entries: []archiveEntry{{ID: batchOf(2, 1).ID, Events: 1}}}
	k.plant(a.objects.key(1, 3), f.append(a.encoder.EncodeAll([]byte("{}\n"), nil)))
	_, err := k.numbers(1, ArchiveSpan{})
	wantError(t, err, "offset 5", "cannot be used")
}

func TestArchiveBatchesSayWhatIsLeftOut(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	first := batchOf(1, 4)
	mustArchive(t, a, 0, requeueOf(9, first, 2), first)
	var got []*ArchivedBatch
	for b, err := range k.reader().Batches(t.Context(), 0, ArchiveSpan{}) {
		mustNil(t, err)
		got = append(got, b)
	}
	if len(got) != 2 || got[0].Origin == nil || *got[0].Origin != (pipeline.Origin{Batch: first.ID, Index: 2}) || got[0].Dropped != nil {
		t.Fatalf("%+v", got)
	}
	if !slices.Equal(got[1].Dropped, []int{2}) || got[1].ID != first.ID || !got[1].AcceptedAt.Equal(first.AcceptedAt) {
		t.Errorf("%+v", got[1])
	}
	if _, index := pipeline.SplitPosition(got[1].Records[2].Position); index != 3 {
		t.Errorf("the third event has the index %d", index)
	}
	// A list that is not of its lines.
	f := archiveFrame{Events: 1, Entries: []archiveEntry{{ID: pipeline.BatchID{Number: 5}, Events: 1}}}
	k.plant(a.objects.key(3, 0), f.append(a.encoder.EncodeAll([]byte(`{"id":"x","waybillposition":"4096"}`+"\n"), nil)))
	_, err := k.numbers(3, ArchiveSpan{})
	wantError(t, err, "not of batch 5", "cannot be used")
}

// A replay of some events of a batch keeps their positions, and is as safe against doubles.
func TestArchiveTakesPartsOfBatches(t *testing.T) {
	k := newArchiveKit(t)
	whole, _ := k.archive()
	b := batchOf(1, 5)
	part := []pipeline.Item{{Batch: b, Index: 1}, {Batch: b, Index: 4}}
	_, err := whole.Send(t.Context(), 0, part)
	wantError(t, err, "whole batches")
	partial := func(c *ArchiveConfig) { c.Partial = true }
	a, _ := k.archive(partial)
	send := func(a *Archive, items ...pipeline.Item) {
		t.Helper()
		results, err := a.Send(t.Context(), 0, items)
		mustNil(t, err)
		for i, r := range results {
			if r.Verdict != pipeline.Delivered {
				t.Errorf("item %d: %+v", i, r)
			}
		}
	}
	other := batchOf(2, 3)
	send(a, append(part, pipeline.Item{Batch: other, Index: 0})...)
	again, _ := k.archive(partial) // after a kill
	send(again, append(part, pipeline.Item{Batch: other, Index: 0})...)
	k.wantIDs(0, "1.1", "1.4", "2.0")
	// A requeued event that is not there is taken, one that is there is not.
	send(again, wholeBatches(requeueOf(7, b, 4), requeueOf(8, b, 2), requeueOf(9, other, 2))...)
	k.wantIDs(0, "1.1", "1.4", "2.0", "1.2", "2.2")
	if records := k.records(0); records[1].Position != b.Position(4) || records[2].Position != other.Position(0) {
		t.Errorf("positions %d and %d", records[1].Position, records[2].Position)
	}
	// Of a batch that is there in part the rest cannot join it, and is not said to be there.
	for name, a := range map[string]*Archive{"the writer": again, "another": k.archiveOf(partial)} {
		results, err := a.Send(t.Context(), 0, wholeBatches(b))
		mustNil(t, err)
		for i, r := range results {
			there := i == 1 || i == 2 || i == 4
			if there != (r.Verdict == pipeline.Delivered) || !there && (r.Verdict != pipeline.Refused || r.Code != "HELD_IN_PART" || r.Reason == "") {
				t.Errorf("%s, event %d: %+v", name, i, r)
			}
		}
	}
	k.wantIDs(0, "1.1", "1.4", "2.0", "1.2", "2.2")
	for _, items := range [][]pipeline.Item{
		{{Batch: b, Index: 4}, {Batch: b, Index: 1}},
		{{Batch: b, Index: 1}, {Batch: b, Index: 1}},
		{{Batch: b, Index: 5}},
	} {
		_, err := a.Send(t.Context(), 0, items)
		wantError(t, err, "wrong place")
	}
}

// A record makes the event that was archived, as far as JSON tells, and the same line again.
func TestRecordMakesAnEvent(t *testing.T) {
	attributes := func(pairs ...any) map[string]*pb.CloudEventAttributeValue {
		out := map[string]*pb.CloudEventAttributeValue{"seqnum": ceString("3")}
		for i := 0; i < len(pairs); i += 2 {
			value, ok := pairs[i+1].(*pb.CloudEventAttributeValue)
			if !ok {
				value = ceString(pairs[i+1].(string))
			}
			out[pairs[i].(string)] = value
		}
		return out
	}
	for i, test := range []struct {
		event *pb.CloudEvent
		data  any // of the event that is made
	}{
		{&pb.CloudEvent{Attributes: attributes()}, nil},
		{&pb.CloudEvent{Attributes: attributes(), Data: &pb.CloudEvent_TextData{TextData: "plain \"text\"\n\u00e9"}}, "plain \"text\"\n\u00e9"},
		{&pb.CloudEvent{Attributes: attributes("datacontenttype", "text/plain"), Data: &pb.CloudEvent_TextData{TextData: "x"}}, "x"},
		{&pb.CloudEvent{Attributes: attributes("datacontenttype", "application/json"), Data: &pb.CloudEvent_BinaryData{BinaryData: []byte(`{"n": 9007199254740993, "e":"\u00e9<&>"}`)}}, `{"n": 9007199254740993, "e":"\u00e9<&>"}`},
		{&pb.CloudEvent{Attributes: attributes("datacontenttype", "application/json; charset=utf-8"), Data: &pb.CloudEvent_TextData{TextData: `"s"`}}, `"s"`},
		{&pb.CloudEvent{Attributes: attributes("datacontenttype", "application/json"), Data: &pb.CloudEvent_TextData{TextData: "null"}}, "null"},
		{&pb.CloudEvent{Attributes: attributes("datacontenttype", "application/json"), Data: &pb.CloudEvent_BinaryData{BinaryData: []byte("{")}}, []byte("{")},
		{&pb.CloudEvent{Attributes: attributes("datacontenttype", "application/cloud+json"), Data: &pb.CloudEvent_BinaryData{BinaryData: []byte("{}")}}, []byte("{}")},
		{&pb.CloudEvent{Attributes: attributes("datacontenttype", "application/octet-stream"), Data: &pb.CloudEvent_BinaryData{BinaryData: []byte{0, 255}}}, []byte{0, 255}},
		{&pb.CloudEvent{Attributes: attributes("datacontenttype", "application/protobuf"), Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{Value: []byte{8, 1}}}}, &anypb.Any{Value: []byte{8, 1}}},
		{&pb.CloudEvent{Attributes: attributes("datacontenttype", "application/protobuf"), Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "type.googleapis.com/x.Y", Value: []byte{8, 1}}}}, &anypb.Any{TypeUrl: "type.googleapis.com/x.Y", Value: []byte{8, 1}}},
		{&pb.CloudEvent{Attributes: attributes("datacontenttype", "application/protobuf", "dataschema", "https://schemas/x"), Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "https://types/x.Y", Value: []byte{}}}}, &anypb.Any{TypeUrl: "https://types/x.Y"}},
		{&pb.CloudEvent{Attributes: attributes(
			"flag", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: true}},
			"off", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBoolean{}},
			"count", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: -7}},
			"blob", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: []byte{1, 2}}},
			"link", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "https://x/?a=<b>"}},
			"time", &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(epoch.Add(time.Nanosecond))}},
			"waybillposition", "the producer's", "datatypeurl", "the producer's too",
		)}, nil},
	} {
		test.event.Id, test.event.Source, test.event.Type, test.event.SpecVersion = fmt.Sprint(i), "/s", "t", "1.0"
		var e lineEncoder
		line, err := e.appendLine(nil, mustEncode(test.event), 4097)
		mustNil(t, err)
		made, err := Record{Line: line}.Event()
		mustNil(t, err)
		again, err := e.appendLine(nil, mustEncode(made), 4097)
		mustNil(t, err)
		var was, is map[string]json.RawMessage // attributes that were renamed may stand elsewhere
		mustNil(t, errors.Join(json.Unmarshal(line, &was), json.Unmarshal(again, &is)))
		if !reflect.DeepEqual(was, is) || len(again) != len(line) {
			t.Errorf("%d:\n%s%s", i, line, again)
		}
		if made.Id != test.event.Id || made.Source != "/s" || made.Type != "t" || made.SpecVersion != "1.0" || made.Attributes["seqnum"].GetCeString() != "3" {
			t.Errorf("%d: %v", i, made)
		}
		if made.Attributes["waybillposition"] != nil {
			t.Errorf("%d: the position is an attribute", i)
		}
		same := false
		switch want := test.data.(type) {
		case nil:
			same = made.Data == nil
		case string:
			text, ok := made.Data.(*pb.CloudEvent_TextData)
			same = ok && text.TextData == want
		case []byte:
			data, ok := made.Data.(*pb.CloudEvent_BinaryData)
			same = ok && slices.Equal(data.BinaryData, want)
		case *anypb.Any:
			data, ok := made.Data.(*pb.CloudEvent_ProtoData)
			same = ok && proto.Equal(data.ProtoData, want)
		}
		if !same {
			t.Errorf("%d: data %v, want %v", i, made.Data, test.data)
		}
	}
	for _, line := range []string{"nope", `{"id":1}`, `{"data_base64":"*"}`, `{"n":1.5}`, `{"x":{}}`, `{"data":5}`} {
		if _, err := (Record{Line: []byte(line), Lane: 4, Offset: 7}).Event(); err == nil || !strings.Contains(err.Error(), "lane 4, offset 7") {
			t.Errorf("%s: %v", line, err)
		}
	}
}
