package replay

import (
	"context"
	"fmt"
	"sync"

	"github.com/waybillhq/waybill/pipeline"
)

// portion is what is wanted of one batch.
type portion struct {
	// at is where the batch is in the source: its sequence in the stream; in a lane of the archive,
	// the offset behind it. In a lane it rises.
	at      uint64
	batch   *pipeline.Batch
	items   []pipeline.Item
	bytes   int
	sources []string // of each item
	types   []string // of each item
}

// source reads what is to be replayed.
type source interface {
	// read calls visit with what is wanted, of a lane in its order, and passed after every message or
	// object that was read.
	read(ctx context.Context, visit func(*portion) error, passed func(at uint64) error) error
	// progress is the part that was read, of 0 to 1. It may be called at any time, and so may faults.
	progress() float64
	// faults are what the source lacks, or has and cannot be read.
	faults() []string
}

// take makes a portion of a batch whose events are all there, and adds replayid to those that are
// wanted; nil if none is.
func (c Config) take(at uint64, b *pipeline.Batch) *portion {
	p := &portion{at: at, batch: b}
	for i, encoded := range b.Events {
		if encoded == nil {
			continue
		}
		source, typ := pipeline.KeyOf(encoded)
		if !c.key(source, typ) {
			continue
		}
		b.Events[i] = c.mark(encoded)
		p.items = append(p.items, pipeline.Item{Batch: b, Index: i})
		p.sources, p.types = append(p.sources, source), append(p.types, typ)
		p.bytes += len(b.Events[i])
	}
	if len(p.items) == 0 {
		return nil
	}
	return p
}

// mark returns a copy of an encoding with the name of the replay.
func (c Config) mark(encoded []byte) []byte {
	marked := make([]byte, 0, len(encoded)+pipeline.TextSize(Attribute, c.Name))
	return pipeline.AppendText(append(marked, encoded...), Attribute, c.Name)
}

// maxFaults bounds what is kept of what is wrong with a source.
const maxFaults = 20

// faultList keeps the first faults and counts the others. It is safe for concurrent use.
type faultList struct {
	mu    sync.Mutex // guards what follows
	first []string
	more  int
}

func (l *faultList) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.first) == maxFaults {
		l.more++
		return
	}
	l.first = append(l.first, fmt.Sprintf(format, args...))
}

func (l *faultList) faults() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more == 0 {
		return l.first
	}
	return append(l.first[:len(l.first):len(l.first)], fmt.Sprintf("and %d more", l.more))
}
