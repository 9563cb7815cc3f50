package sinks

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

func TestArchiveReaderSince(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	var want []string
	for n := range int64(12) {
		b := batchOf(n+1, 1+int(n*5%7))
		mustArchive(t, a, 5, b)
		for i := range b.Events {
			want = append(want, fmt.Sprintf("%d.%d", n+1, i))
		}
	}
	end, err := k.reader().End(t.Context(), 5)
	if err != nil || end != int64(len(want)) {
		t.Errorf("end %d, %v, want %d", end, err, len(want))
	}
	for since := range len(want) + 2 {
		var got []string
		for record, err := range k.reader().Records(t.Context(), 5, int64(since)) {
			mustNil(t, err)
			if record.Lane != 5 || record.Offset != int64(since+len(got)) {
				t.Fatalf("since %d: lane %d, offset %d", since, record.Lane, record.Offset)
			}
			got = append(got, record.ID)
		}
		if !slices.Equal(got, want[min(since, len(want)):]) {
			t.Fatalf("since %d: %q", since, got)
		}
	}
	for record, err := range k.reader().Records(t.Context(), 5, math.MaxInt64) {
		t.Errorf("since the end of time: %+v, %v", record, err)
	}
	count := 0
	for range k.reader().Records(t.Context(), 5, -3) {
		if count++; count == 4 {
			break
		}
	}
	k.remove(a.objects.key(5, 0)) // the oldest object, by a lifecycle rule
	for record, err := range k.reader().Records(t.Context(), 5, 0) {
		if err != nil || record.Offset != 1 {
			t.Errorf("starts at %d, %v, want 1", record.Offset, err)
		}
		break
	}
}

func TestArchiveReaderLanes(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	if lanes, err := k.reader().Lanes(t.Context()); err != nil || len(lanes) > 0 {
		t.Errorf("lanes of nothing: %v, %v", lanes, err)
	}
	if end, err := k.reader().End(t.Context(), 0); err != nil || end != 0 {
		t.Errorf("end of nothing: %d, %v", end, err)
	}
	for n, lane := range []int{115, 2, 14} {
		mustArchive(t, a, lane, batchOf(int64(n+1), 1))
	}
	k.plant("waybill/lane=x/foreign", nil)
	if lanes, err := k.reader().Lanes(t.Context()); err != nil || !slices.Equal(lanes, []int{2, 14, 115}) {
		t.Errorf("lanes %v, %v", lanes, err)
	}
}

func TestArchiveReaderErrors(t *testing.T) {
	_, err := NewArchiveReader(nil, "", "", time.Second)
	wantError(t, err, "bucket is empty")
	_, err = NewArchiveReader(nil, "b", "", 0)
	wantError(t, err, "timeout is 0s")
	_, err = NewArchiveReader(nil, "b", "/x", time.Second)
	wantError(t, err, "Prefix")

	k := newArchiveKit(t)
	a, _ := k.archive()
	object := func(lines string, events int) []byte {
		f := archiveFrame{Events: int64(events), Entries: []archiveEntry{{ID: pipeline.BatchID{Number: 1}, Events: events}}}
		return f.append(a.encoder.EncodeAll([]byte(lines), nil))
	}
	for lane, tc := range []struct {
		body []byte
		want string
	}{
		{object("{}\n{}\n", 3), "has 2 lines and says that it has 3"},
		{append([]byte{1, 2, 3, 4}, object("{}\n", 1)...), "cannot be used"},
		{object("{}\nnope\n", 2), "offset 1: the line is no archived event"},
		{[]byte("text"), "too short"},
	} {
		k.plant(a.objects.key(lane, 0), tc.body)
		var last error
		for _, err := range k.reader().Records(t.Context(), lane, 0) {
			last = err
		}
		wantError(t, last, tc.want)
	}
	client, f := k.client(testS3.Endpoint, 1)
	reader, err := NewArchiveReader(client, k.bucket, "waybill", time.Second)
	mustNil(t, err)
	mustArchive(t, a, 9, batchOf(1, 1))
	for step := range 4 { // preceding, LIST, GET
		n := 0
		f.set(func(*http.Request) fault {
			if n++; n == step+1 {
				return loseBefore
			}
			return pass
		})
		var last error
		for _, err := range reader.Records(t.Context(), 9, 0) {
			last = err
		}
		if (last == nil) != (step == 3) {
			t.Errorf("with request %d lost: %v", step, last)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := reader.Lanes(ctx); err == nil {
		t.Error("lanes were listed without a server")
	}
	if _, err := reader.End(ctx, 9); err == nil {
		t.Error("an end was found without a server")
	}
}
