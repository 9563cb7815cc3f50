package pipeline

import "context"

// Buffer is how full a bounded buffer is.
type Buffer struct {
	Name  string // such as "events that wait for a transaction"; one of a few
	Unit  string // of Used and Limit, in words
	Used  int64
	Limit int64 // 0: it has none
	// Busy says that the buffer is full whenever there is enough to do, and that nobody need know.
	Busy bool
}

// Fill is the part of the limit that is used; 0 where there is none.
func (b Buffer) Fill() float64 {
	if b.Limit <= 0 {
		return 0
	}
	return float64(b.Used) / float64(b.Limit)
}

// StreamFills says how full the streams are.
func StreamFills(ctx context.Context, q *Queue) ([]Buffer, error) {
	var all []Buffer
	for _, name := range []string{EventsStream, ReceiptsStream} {
		stream, err := q.js.Stream(ctx, name)
		if err != nil {
			return nil, notReady(err, "stream "+name)
		}
		info := stream.CachedInfo()
		all = append(all, streamBuffer(name, int64(info.State.Bytes), info.Config.MaxBytes))
	}
	return all, nil
}

func streamBuffer(name string, bytes, limit int64) Buffer {
	return Buffer{Name: "stream " + name, Unit: "bytes", Used: bytes, Limit: limit}
}
