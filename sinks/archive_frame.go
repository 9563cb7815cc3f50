package sinks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// An archive object is one zstd frame of NDJSON followed by one skippable frame, which
// lists the batches whose events the object holds. Decoders pass over it.
//
//	skippable frame  magic 0x184D2A57 (u32) · size of the rest (u32) · body · trailer
//	trailer          length of the body (u32) · CRC-32C of the body (u32) · "WAYBILL1"
//	body             offset, events, watermark, previous watermark, number of entries,
//	                 then per entry: batch number (difference to the entry before), token
//	                 (u64), events, accepted at (difference), flags, origin (number, token,
//	                 index), left-out indexes (number of them, differences)
//
// Fixed numbers are little-endian, the others varints; times are microseconds since 1970.
const (
	frameMagic       = 0x184D2A57
	frameHeaderSize  = 8
	frameTrailerSize = 16
	frameEndMark     = "WAYBILL1"

	flagOrigin  = 1
	flagDropped = 2
)

// noWatermark is below every time: the watermark before the first object of a lane.
const noWatermark = math.MinInt64

var frameChecksums = crc32.MakeTable(crc32.Castagnoli)

// archiveFrame is what an object says of itself.
type archiveFrame struct {
	Offset int64 // of its first event in the lane
	Events int64
	// Watermark is the latest AcceptedAt over the batches of this object and of all
	// earlier ones of the lane, Previous that of the earlier ones alone. A batch that was
	// accepted at A can only be in an object whose watermark is not below A.
	Watermark int64
	Previous  int64
	Entries   []archiveEntry
}

// archiveEntry is one batch of an object.
type archiveEntry struct {
	ID       pipeline.BatchID
	Events   int   // in the object
	Accepted int64 // µs
	Origin   *pipeline.Origin
	Dropped  []int // indexes of events that the object does not hold, ascending
}

// end is the offset of the event that follows the object's last one.
func (f *archiveFrame) end() int64 { return f.Offset + f.Events }

// archiveTime is t as frames hold it: with the precision of Postgres.
func archiveTime(t time.Time) int64 { return t.UnixMicro() }

// append appends the frame to an object's body.
func (f *archiveFrame) append(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, frameHeaderSize)...)
	dst = binary.AppendUvarint(dst, uint64(f.Offset))
	dst = binary.AppendUvarint(dst, uint64(f.Events))
	dst = binary.AppendVarint(dst, f.Watermark)
	dst = binary.AppendVarint(dst, f.Previous)
	dst = binary.AppendUvarint(dst, uint64(len(f.Entries)))
	var before archiveEntry
	for i := range f.Entries {
		dst = f.Entries[i].append(dst, &before)
		before = f.Entries[i]
	}
	body := dst[start+frameHeaderSize:]
	checksum := crc32.Checksum(body, frameChecksums)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(body)))
	dst = binary.LittleEndian.AppendUint32(dst, checksum)
	dst = append(dst, frameEndMark...)
	binary.LittleEndian.PutUint32(dst[start:], frameMagic)
	binary.LittleEndian.PutUint32(dst[start+4:], uint32(len(dst)-start-frameHeaderSize))
	return dst
}

func (e *archiveEntry) append(dst []byte, before *archiveEntry) []byte {
	var flags byte
	if e.Origin != nil {
		flags |= flagOrigin
	}
	if len(e.Dropped) > 0 {
		flags |= flagDropped
	}
	dst = binary.AppendVarint(dst, e.ID.Number-before.ID.Number)
	dst = binary.LittleEndian.AppendUint64(dst, e.ID.Token)
	dst = binary.AppendUvarint(dst, uint64(e.Events))
	dst = binary.AppendVarint(dst, e.Accepted-before.Accepted)
	dst = append(dst, flags)
	if e.Origin != nil {
		dst = binary.AppendUvarint(dst, uint64(e.Origin.Batch.Number))
		dst = binary.LittleEndian.AppendUint64(dst, e.Origin.Batch.Token)
		dst = binary.AppendUvarint(dst, uint64(e.Origin.Index))
	}
	if len(e.Dropped) == 0 {
		return dst
	}
	dst = binary.AppendUvarint(dst, uint64(len(e.Dropped)))
	last := 0
	for _, index := range e.Dropped {
		dst = binary.AppendUvarint(dst, uint64(index-last))
		last = index
	}
	return dst
}

// frameSize returns the size of the frame that the tail of an object ends with, so that
// a tail that is too short for it can be read again.
func frameSize(tail []byte) (int, error) {
	if len(tail) < frameHeaderSize+frameTrailerSize {
		return 0, errors.New("it is too short to end with a list of batches")
	}
	trailer := tail[len(tail)-frameTrailerSize:]
	if string(trailer[8:]) != frameEndMark {
		return 0, errors.New("it does not end with a list of batches")
	}
	body := binary.LittleEndian.Uint32(trailer)
	return frameHeaderSize + int(body) + frameTrailerSize, nil
}

// parseFrame reads the frame that fills data, as frameSize measured it.
func parseFrame(data []byte) (*archiveFrame, error) {
	body := data[frameHeaderSize : len(data)-frameTrailerSize]
	checksum := binary.LittleEndian.Uint32(data[len(data)-frameTrailerSize+4:])
	if binary.LittleEndian.Uint32(data) != frameMagic ||
		binary.LittleEndian.Uint32(data[4:]) != uint32(len(data)-frameHeaderSize) {
		return nil, errors.New("its list of batches has no zstd frame around it")
	}
	if crc32.Checksum(body, frameChecksums) != checksum {
		return nil, errors.New("the checksum of its list of batches is wrong")
	}
	r := frameReader{rest: body}
	f := &archiveFrame{Offset: int64(r.uvarint()), Events: int64(r.uvarint()), Watermark: r.varint(), Previous: r.varint()}
	count := r.uvarint()
	if count > uint64(len(body)) {
		return nil, errors.New("its list of batches is malformed")
	}
	f.Entries = make([]archiveEntry, count)
	var before archiveEntry
	for i := range f.Entries {
		f.Entries[i] = r.entry(&before)
		before = f.Entries[i]
	}
	if r.failed || len(r.rest) > 0 {
		return nil, errors.New("its list of batches is malformed")
	}
	return f, f.check()
}

// check refuses a frame that no writer of this format would make.
func (f *archiveFrame) check() error {
	var events int64
	for i := range f.Entries {
		events += int64(f.Entries[i].Events)
	}
	if events != f.Events || f.Events < 1 || f.Offset < 0 || f.Watermark < f.Previous {
		return fmt.Errorf("its list of batches contradicts itself (offset %d, %d events, %d listed)", f.Offset, f.Events, events)
	}
	return nil
}

// frameReader takes a frame's body apart. After a failure it returns zeros.
type frameReader struct {
	rest   []byte
	failed bool
}

func (r *frameReader) entry(before *archiveEntry) archiveEntry {
	e := archiveEntry{ID: pipeline.BatchID{Number: before.ID.Number + r.varint(), Token: r.fixed()}}
	e.Events = int(r.uvarint())
	e.Accepted = before.Accepted + r.varint()
	flags := r.byte()
	if flags&flagOrigin != 0 {
		e.Origin = &pipeline.Origin{Batch: pipeline.BatchID{Number: int64(r.uvarint()), Token: r.fixed()}, Index: int(r.uvarint())}
	}
	if flags&flagDropped == 0 {
		return e
	}
	count := r.uvarint()
	if count > pipeline.MaxBatchEvents {
		r.fail()
		return e
	}
	last := 0
	for range count {
		last += int(r.uvarint())
		e.Dropped = append(e.Dropped, last)
	}
	return e
}

func (r *frameReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *frameReader) varint() int64 {
	v, n := binary.Varint(r.rest)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *frameReader) fixed() uint64 {
	if len(r.rest) < 8 {
		r.fail()
		return 0
	}
	v := binary.LittleEndian.Uint64(r.rest)
	r.rest = r.rest[8:]
	return v
}

func (r *frameReader) byte() byte {
	if len(r.rest) < 1 {
		r.fail()
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *frameReader) fail() { r.failed, r.rest = true, nil }
