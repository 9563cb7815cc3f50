package sinks

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

func TestArchiveObjects(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	for n := range int64(5) {
		mustArchive(t, a, 3, batchOf(n+1, 2))
	}
	k.plant("waybill/lane=03/foreign", []byte("x"))
	reader := k.reader()
	reader.objects.page = 2
	var offsets []int64
	strange := 0
	for object, err := range reader.Objects(t.Context(), 3, 2) {
		if err != nil {
			strange++
			if object.Key != "waybill/lane=03/foreign" {
				t.Errorf("%+v: %v", object, err)
			}
			continue
		}
		offsets = append(offsets, object.Offset)
		contents, err := reader.Read(t.Context(), object)
		mustNil(t, err)
		if object.Bytes < 1 || object.Modified.IsZero() || len(contents.Records) != 2 || contents.Records[0].Offset != object.Offset ||
			len(contents.Batches) != 1 || contents.Batches[0].ID.Number != object.Offset/2+1 || contents.Batches[0].Events != 2 || contents.Batches[0].Accepted.IsZero() {
			t.Errorf("%+v: %+v", object, contents)
		}
	}
	if !slices.Equal(offsets, []int64{2, 4, 6, 8}) || strange != 1 {
		t.Errorf("%v, %d strange", offsets, strange)
	}
}

func TestArchiveReadFindsDamage(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	mustArchive(t, a, 0, batchOf(1, 3))
	key := a.objects.key(0, 0)
	sound, _, err := a.objects.get(t.Context(), key, "")
	mustNil(t, err)
	line := `{"specversion":"1.0","id":"1","source":"/s","type":"t"}` + "\n"
	withoutSeqnum := (&archiveFrame{Events: 1, Entries: []archiveEntry{{ID: pipeline.BatchID{Number: 1}, Events: 1}}}).append(a.encoder.EncodeAll([]byte(line), nil))
	flipped := slices.Clone(sound)
	flipped[len(flipped)/4] ^= 1
	list := slices.Clone(sound)
	list[len(list)-frameTrailerSize-2] ^= 1
	for name, body := range map[string][]byte{
		"a flipped bit": flipped, "a flipped bit in the list": list, "cut off": sound[:len(sound)-1], "empty": {}, "no seqnum": withoutSeqnum,
	} {
		k.plant(key, body)
		if _, err := k.reader().Read(t.Context(), ArchiveObject{Key: key}); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := k.reader().Read(t.Context(), ArchiveObject{Key: key + "x"}); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("an object that is not there: %v", err)
	}
}

// Whatever is asked for, all that was accepted since then is at or behind the offset, and the object
// before holds nothing as new.
func TestArchiveOffsetSince(t *testing.T) {
	k := newArchiveKit(t)
	a, _ := k.archive()
	start := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	if offset, err := k.reader().OffsetSince(t.Context(), 1, start); err != nil || offset != 0 {
		t.Errorf("an empty lane: %d, %v", offset, err)
	}
	const objects = 9
	for n := range int64(objects) {
		b := batchOf(n+1, 1+int(n)%3)
		b.AcceptedAt = start.Add(time.Duration(n) * time.Hour)
		if n == 4 { // an old one that came late raises no watermark
			b.AcceptedAt = start
		}
		mustArchive(t, a, 1, b)
	}
	offsets := k.keys(1)
	end, err := k.reader().End(t.Context(), 1)
	mustNil(t, err)
	for hour, want := range map[int]int64{
		-1: 0, 0: 0, 1: offsets[1], 3: offsets[3], 4: offsets[5], 5: offsets[5], objects - 1: offsets[objects-1], objects: end,
	} {
		got, err := k.reader().OffsetSince(t.Context(), 1, start.Add(time.Duration(hour)*time.Hour))
		if err != nil || got != want {
			t.Errorf("since hour %d: %d, %v; want %d", hour, got, err, want)
		}
	}
}
