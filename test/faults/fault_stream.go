package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/test/faults/proxy"
)

// loseNewest takes the store, or the messages of one stream, back to what they were when it
// was injected.
type loseNewest struct {
	s      *system
	on     string
	copy   string // directory
	lost   int
	stream string // whose messages are counted
}

// streamDir is where a nats-server keeps a stream, below its own directory.
func streamDir(stream string) string { return filepath.Join("jetstream", "$G", "streams", stream) }

func (f *loseNewest) inject(context.Context) error {
	f.copy, f.stream = filepath.Join(f.s.dir, "nats-earlier"), pipeline.EventsStream
	if f.on == pipeline.ReceiptsStream {
		f.stream = f.on
	}
	pid := f.s.pid("nats-server")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stop nats-server for a copy: %w", err)
	}
	err := os.CopyFS(f.copy, os.DirFS(filepath.Join(f.s.dir, "nats")))
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		return fmt.Errorf("continue nats-server: %w", err)
	}
	if err != nil {
		return fmt.Errorf("copy JetStream's store: %w", err)
	}
	return nil
}

func (f *loseNewest) heal(ctx context.Context) error {
	newest := f.last(ctx)
	if err := (&kill{f.s, "nats-server"}).inject(ctx); err != nil {
		return err
	}
	// Two renames are faster than the supervisor.
	store, earlier := filepath.Join(f.s.dir, "nats"), f.copy
	if f.on != "the whole store" {
		store, earlier = filepath.Join(store, streamDir(f.on), "msgs"), filepath.Join(earlier, streamDir(f.on), "msgs")
	}
	if err := errors.Join(os.Rename(store, store+"-lost"), os.Rename(earlier, store)); err != nil {
		return fmt.Errorf("take JetStream's store back: %w", err)
	}
	if err := f.s.awaitStart(ctx, "nats-server"); err != nil {
		return err
	}
	err := f.s.untilNATS(ctx, func(ctx context.Context) error {
		info, err := f.s.streamInfo(ctx, f.stream)
		if err == nil && newest > info.State.LastSeq {
			f.lost = int(newest - info.State.LastSeq)
		}
		return err
	})
	return errors.Join(err, os.RemoveAll(store+"-lost"), os.RemoveAll(f.copy))
}

// last is the newest sequence; 0 where nobody can tell.
func (f *loseNewest) last(ctx context.Context) uint64 {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	info, err := f.s.streamInfo(ctx, f.stream)
	if err != nil {
		return 0
	}
	return info.State.LastSeq
}

func (f *loseNewest) proof() (int, string) { return f.lost, "messages of " + f.stream + " were lost" }

func (s *system) streamInfo(ctx context.Context, name string) (*jetstream.StreamInfo, error) {
	stream, err := s.js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	return stream.CachedInfo(), nil
}

// lateOriginals holds up what an ingest publishes: its connection is taken and nothing is
// forwarded until the fault is healed, and then everything that was on the way is.
type lateOriginals struct {
	s     *system
	on    string
	first uint64 // sequence from which on they may be
	late  int
}

func (f *lateOriginals) inject(ctx context.Context) error {
	return (&network{s: f.s, processes: []string{f.on}, server: "nats", fault: proxy.Fault{Mode: proxy.BlackHole}}).inject(ctx)
}

// lateLimit bounds the wait for what was held up to be stored.
const lateLimit = 5 * time.Second

func (f *lateOriginals) heal(ctx context.Context) error {
	if info, err := f.s.streamInfo(ctx, pipeline.EventsStream); err == nil {
		f.first = info.State.LastSeq + 1
	}
	err := (&network{s: f.s, processes: []string{f.on}, server: "nats"}).heal(ctx)
	for end := time.Now().Add(lateLimit); f.late == 0 && time.Now().Before(end); {
		f.late = f.count(ctx)
		sleep(ctx, 200*time.Millisecond)
	}
	return err
}

// count looks for originals behind the retransmits of their batches; what cannot be read is
// not counted.
func (f *lateOriginals) count(ctx context.Context) int {
	retransmitted, late := map[string]bool{}, 0
	_ = f.s.eachMessage(ctx, 1, func(seq uint64, h nats.Header) error {
		batch := h.Get("Waybill-Batch")
		switch {
		case h.Get("Waybill-Attempt") != "0":
			retransmitted[batch] = true
		case seq >= f.first && retransmitted[batch]:
			late++
		}
		return nil
	})
	return late
}

func (f *lateOriginals) proof() (int, string) {
	return f.late, "originals were stored behind their retransmits"
}

// eachMessage visits the headers of EVENTS from a sequence on, up to what is stored now.
func (s *system) eachMessage(ctx context.Context, from uint64, visit func(uint64, nats.Header) error) error {
	info, err := s.streamInfo(ctx, pipeline.EventsStream)
	if err != nil || info.State.LastSeq < from {
		return err
	}
	consumer, err := s.js.OrderedConsumer(ctx, pipeline.EventsStream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(from, 1), HeadersOnly: true,
	})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextMaxWait(time.Second))
		if err != nil {
			return err
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if err := visit(meta.Sequence.Stream, m.Headers()); err != nil {
			return err
		}
		if meta.Sequence.Stream >= info.State.LastSeq {
			return nil
		}
	}
}

// replayOriginals publishes the oldest messages of the stream again.
type replayOriginals struct {
	s         *system
	published int
}

// replays is how many messages are published again.
const replays = 40

func (f *replayOriginals) inject(ctx context.Context) error {
	return f.s.untilNATS(ctx, func(ctx context.Context) error {
		stream, err := f.s.js.Stream(ctx, pipeline.EventsStream)
		if err != nil {
			return err
		}
		state := stream.CachedInfo().State
		for seq := max(state.FirstSeq, 1); seq <= state.LastSeq && f.published < replays; seq++ {
			m, err := stream.GetMsg(ctx, seq)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if !strings.HasPrefix(m.Header.Get("Waybill-Attempt"), "0") {
				continue
			}
			m.Header.Del(nats.MsgIdHdr)
			if _, err := f.s.js.PublishMsg(ctx, &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data}); err != nil {
				return err
			}
			f.published++
		}
		return nil
	})
}

func (f *replayOriginals) heal(context.Context) error { return nil }

func (f *replayOriginals) proof() (int, string) { return f.published, "messages were published again" }
