package sinks

import (
	"bytes"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/waybillhq/waybill/pipeline"
)

func randomFrame(random *rand.Rand, entries int) *archiveFrame {
	f := &archiveFrame{Offset: random.Int64N(1 << 50), Previous: noWatermark, Watermark: noWatermark}
	if entries%2 == 0 {
		f.Previous = random.Int64N(1 << 51)
	}
	f.Watermark = f.Previous
	f.Entries = make([]archiveEntry, entries)
	for i := range f.Entries {
		e := archiveEntry{
			ID:     pipeline.BatchID{Number: 1 + random.Int64N(1<<51), Token: random.Uint64()},
			Events: 1 + random.IntN(4095), Accepted: random.Int64N(1<<60) - 1<<59,
		}
		switch random.IntN(4) {
		case 0:
			e.Events = 1
			e.Origin = &pipeline.Origin{Batch: pipeline.BatchID{Number: 1 + random.Int64N(1<<51), Token: random.Uint64()}, Index: random.IntN(4096)}
		case 1:
			e.Dropped = []int{random.IntN(9), 10 + random.IntN(4000), 4095}
		}
		f.Entries[i] = e
		f.Events += int64(e.Events)
		f.Watermark = max(f.Watermark, e.Accepted)
	}
	return f
}

func TestArchiveFrameRoundTrip(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	encoder, err := zstd.NewWriter(nil)
	mustNil(t, err)
	for entries := 1; entries < 3000; entries = entries*3 + 1 {
		want := randomFrame(random, entries)
		text := strings.Repeat("an event\n", entries)
		object := want.append(encoder.EncodeAll([]byte(text), nil))
		size, err := frameSize(object)
		mustNil(t, err)
		got, err := parseFrame(object[len(object)-size:])
		mustNil(t, err)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, want %+v", got, want)
		}
		decoder, err := zstd.NewReader(bytes.NewReader(object)) // as any reader of the archive does
		mustNil(t, err)
		decoded, err := io.ReadAll(decoder)
		decoder.Close()
		if err != nil || string(decoded) != text {
			t.Fatalf("a decoder does not pass over the list of batches: %d bytes, %v", len(decoded), err)
		}
	}
}

// TestArchiveFrameDamage flips every bit and cuts at every byte.
func TestArchiveFrameDamage(t *testing.T) {
	whole := randomFrame(rand.New(rand.NewPCG(3, 4)), 7).append(nil)
	parse := func(data []byte) error {
		size, err := frameSize(data)
		if err != nil || size > len(data) {
			return io.ErrUnexpectedEOF
		}
		if size != len(data) {
			return io.ErrShortBuffer
		}
		_, err = parseFrame(data)
		return err
	}
	mustNil(t, parse(whole))
	for bit := range len(whole) * 8 {
		damaged := bytes.Clone(whole)
		damaged[bit/8] ^= 1 << (bit % 8)
		if parse(damaged) == nil {
			t.Errorf("bit %d flipped and not noticed", bit)
		}
	}
	for n := range whole {
		if parse(whole[:n]) == nil {
			t.Errorf("cut to %d bytes and not noticed", n)
		}
	}
}

// TestArchiveFrameContradictions has frames with a right checksum that make no sense.
func TestArchiveFrameContradictions(t *testing.T) {
	good := func() *archiveFrame { return randomFrame(rand.New(rand.NewPCG(5, 6)), 3) }
	for name, change := range map[string]func(*archiveFrame){
		"events":    func(f *archiveFrame) { f.Events++ },
		"no events": func(f *archiveFrame) { f.Events, f.Entries = 0, nil },
		"offset":    func(f *archiveFrame) { f.Offset = -1 },
		"watermark": func(f *archiveFrame) { f.Previous = f.Watermark + 1 },
	} {
		f := good()
		change(f)
		_, err := parseFrame(f.append(nil))
		if err == nil || !strings.Contains(err.Error(), "contradicts itself") {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustNil(t, func() error { _, err := parseFrame(good().append(nil)); return err }())
}

// FuzzArchiveFrame: no body makes the parser panic or claim too much memory.
func FuzzArchiveFrame(f *testing.F) {
	f.Add(randomFrame(rand.New(rand.NewPCG(7, 8)), 5).append(nil)[frameHeaderSize:])
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, body []byte) {
		r := frameReader{rest: body}
		var before archiveEntry
		for !r.failed && len(r.rest) > 0 {
			before = r.entry(&before)
		}
		if size, err := frameSize(body); err == nil && size <= len(body) {
			_, _ = parseFrame(body[len(body)-size:])
		}
	})
}
