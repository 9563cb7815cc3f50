package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline"
)

// corruptMessages publishes what nobody can read.
type corruptMessages struct {
	s         *system
	on        string
	published int
}

func (f *corruptMessages) inject(ctx context.Context) error {
	messages := corruptEvents
	if f.on == pipeline.ReceiptsStream {
		messages = func(context.Context, *system) ([]*nats.Msg, error) { return corruptReceipts(), nil }
	}
	return f.s.untilNATS(ctx, func(ctx context.Context) error {
		all, err := messages(ctx, f.s)
		if err != nil {
			return err
		}
		for _, m := range all {
			if _, err := f.s.js.PublishMsg(ctx, m); err != nil {
				return fmt.Errorf("publish a corrupt message: %w", err)
			}
			f.published++
		}
		return nil
	})
}

func (f *corruptMessages) heal(context.Context) error { return nil }

func (f *corruptMessages) proof() (int, string) { return f.published, "corrupt messages were stored" }

// hugeBytes is above what a worker pulls ahead, and below what the server takes.
const hugeBytes = 7 << 20

// corruptEvents are a message of each sort for each of some lanes.
func corruptEvents(ctx context.Context, s *system) ([]*nats.Msg, error) {
	info, err := s.streamInfo(ctx, pipeline.EventsStream)
	if err != nil {
		return nil, err
	}
	now := strconv.FormatInt(info.TimeStamp.UnixMicro(), 10)
	good := func() nats.Header {
		return nats.Header{
			"Waybill-Batch": {"1.0123456789abcdef"}, "Waybill-Attempt": {"0"}, "Waybill-Events": {"2"},
			"Waybill-Accepted": {now}, "Waybill-Queued": {now},
		}
	}
	with := func(name, value string) nats.Header {
		h := good()
		h.Set(name, value)
		return h
	}
	one := []byte{0x0a, 2, 0x0a, 0} // a body of one event
	all := []*nats.Msg{
		{Subject: "events.9999", Header: good(), Data: one},
		{Subject: "events.nonsense", Data: []byte("no lane")},
	}
	for lane := range 4 {
		subject := "events." + strconv.Itoa(lane)
		all = append(all,
			&nats.Msg{Subject: subject},
			&nats.Msg{Subject: subject, Data: []byte("no headers")},
			&nats.Msg{Subject: subject, Header: good(), Data: []byte("no body of a batch")},
			&nats.Msg{Subject: subject, Header: good(), Data: one}, // fewer than the header says
			&nats.Msg{Subject: subject, Header: good(), Data: one[:2]},
			&nats.Msg{Subject: subject, Header: with("Waybill-Batch", "nonsense"), Data: one},
			&nats.Msg{Subject: subject, Header: with("Waybill-Events", "99999999999999999999"), Data: one},
			&nats.Msg{Subject: subject, Header: with("Waybill-Events", "-1"), Data: one},
			&nats.Msg{Subject: subject, Header: with("Waybill-Queued", "yesterday"), Data: one},
			&nats.Msg{Subject: subject, Header: with("Waybill-Origin", "1/2"), Data: one},
		)
	}
	return append(all, &nats.Msg{Subject: "events.4", Header: good(), Data: make([]byte, hugeBytes)}), nil
}

func corruptReceipts() []*nats.Msg {
	var all []*nats.Msg
	for _, data := range []string{
		"", "no receipt", "{}", `{"sink":"archive","lane":0,"batches":[]}`, `{"sink":"archive","batches":[{"batch":"nonsense"}]}`,
		`{"sink":"archive","batches":[{"batch":"1.0123456789abcdef","refused":[{"index":-1}]}]}`,
		`{"sink":"archive","batches":[{"batch":"1.0123456789abcdef","refused":[{"index":99999}]}]}`,
		// These can be read, and speak of what is not there.
		`{"sink":"nobody","batches":[{"batch":"1.0123456789abcdef"}]}`,
		`{"sink":"archive","batches":[{"batch":"1.0123456789abcdef","refused":[{"index":0,"code":"\u0000","reason":"\ud800"}]}]}`,
	} {
		all = append(all, &nats.Msg{Subject: "receipts", Data: []byte(data)})
	}
	return append(all, &nats.Msg{Subject: "receipts", Data: []byte(strings.Repeat("[", hugeBytes))})
}

// corruptHints puts what cannot be read under every key of the buckets, and under others.
type corruptHints struct {
	s   *system
	put int
}

func (f *corruptHints) inject(ctx context.Context) error {
	return f.s.untilNATS(ctx, func(ctx context.Context) error {
		list := f.s.js.KeyValueStoreNames(ctx)
		var buckets []string
		for name := range list.Name() {
			buckets = append(buckets, name)
		}
		if err := list.Error(); err != nil {
			return err
		}
		for _, bucket := range buckets {
			if err := f.spoil(ctx, bucket); err != nil && gone(err) != nil {
				return err
			}
		}
		return nil
	})
}

func (f *corruptHints) spoil(ctx context.Context, bucket string) error {
	kv, err := f.s.js.KeyValue(ctx, bucket)
	if err != nil {
		return err
	}
	keys, err := kv.ListKeys(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return err
	}
	all := []string{"nonsense", "ingress.99999", "archive.-1", "a.b.c"}
	for key := range keys.Keys() {
		all = append(all, key)
	}
	for _, key := range all {
		if _, err := kv.Put(ctx, key, []byte("\xff{no value")); err != nil {
			return err
		}
		f.put++
	}
	return nil
}

func (f *corruptHints) heal(context.Context) error { return nil }

func (f *corruptHints) proof() (int, string) { return f.put, "values were spoilt" }
