package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/internal/roundtrip"
)

// activity is what Postgres has counted of the rows of a table.
type activity struct{ inserted, deleted int64 }

func (a activity) since(b activity) activity {
	return activity{a.inserted - b.inserted, a.deleted - b.deleted}
}

// sample is one look at the system. All counts are those since a time that all samples of a
// series share.
type sample struct {
	at                time.Duration // since that time
	emitted, accepted int64
	events, batches   activity
	pending           map[string]int64 // events, by sink; those that nothing waits for are missing
	received          int64            // by the endpoint
}

// waiting is what the sink lacks for which most events wait.
func (s sample) waiting() int64 {
	most := int64(0)
	for _, n := range s.pending {
		most = max(most, n)
	}
	return most
}

// settled is how many events every sink has, as far as Postgres was told. It does not wait for
// Postgres to have counted the rows.
func (s sample) settled() int64 { return s.accepted - s.waiting() }

// observer looks at a system and subtracts what was there before.
type observer struct {
	system  *system
	began   time.Time
	before  map[string]activity
	records int64         // of the endpoint before
	ends    map[int]int64 // of the archive's lanes before
}

func observe(ctx context.Context, s *system) (*observer, error) {
	o := &observer{system: s}
	var err error
	if o.before, err = s.activity(ctx); err != nil {
		return nil, err
	}
	if o.records, err = roundtrip.EndpointReceived(ctx, s.stack.EndpointAdmin); err != nil {
		return nil, err
	}
	if o.ends, err = roundtrip.ArchiveEnds(ctx, s.archive); err != nil {
		return nil, err
	}
	o.began = time.Now()
	return o, nil
}

// look takes a sample. What the tables say is read last: it is not older than the rest.
func (o *observer) look(ctx context.Context, tally *tally) (sample, error) {
	out := sample{pending: map[string]int64{}}
	out.emitted, out.accepted = tally.counts()
	received, err := roundtrip.EndpointReceived(ctx, o.system.stack.EndpointAdmin)
	if err != nil {
		return out, err
	}
	out.received = received - o.records
	survey, err := o.system.store.Survey(ctx)
	if err != nil {
		return out, err
	}
	for sink, backlog := range survey.BySink() {
		out.pending[sink] = backlog.Events
	}
	now, err := o.system.activity(ctx)
	if err != nil {
		return out, err
	}
	out.events, out.batches = now["events"].since(o.before["events"]), now["batches"].since(o.before["batches"])
	out.at = time.Since(o.began)
	return out, nil
}

// activity is of the tables that every event goes through, by name, since they were made.
// Postgres's processes report what they did a second or two after they did it.
func (s *system) activity(ctx context.Context) (map[string]activity, error) {
	rows, err := s.conn.Query(ctx, `
		SELECT relname, n_tup_ins, n_tup_del FROM pg_stat_user_tables
		WHERE schemaname = 'waybill' AND relname IN ('events', 'batches')`)
	if err != nil {
		return nil, fmt.Errorf("read pg_stat_user_tables: %w", err)
	}
	out := map[string]activity{}
	var name string
	var a activity
	if _, err := pgx.ForEachRow(rows, []any{&name, &a.inserted, &a.deleted}, func() error { out[name] = a; return nil }); err != nil {
		return nil, fmt.Errorf("read pg_stat_user_tables: %w", err)
	}
	if len(out) != 2 {
		return nil, fmt.Errorf("read pg_stat_user_tables: it has %v, want events and batches", out)
	}
	return out, nil
}

// rows is how many events, batches and dead letters there are.
func (s *system) rows(ctx context.Context) (events, batches, letters int64, err error) {
	err = s.conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM waybill.events), (SELECT count(*) FROM waybill.batches),
		(SELECT count(*) FROM waybill.dead_letters)`).Scan(&events, &batches, &letters)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("count the rows: %w", err)
	}
	return events, batches, letters, nil
}

// received is what the endpoint has of sources with a prefix, added up over them.
func (s *system) received(ctx context.Context, prefix string) (sources int, total endpoint.KeyStats, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.stack.EndpointAdmin+"/stats", nil)
	if err != nil {
		return 0, total, fmt.Errorf("ask the endpoint: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, total, fmt.Errorf("ask the endpoint: %w", err)
	}
	defer func() { _ = response.Body.Close() }() // it was read
	var stats endpoint.Stats
	if err := json.NewDecoder(response.Body).Decode(&stats); err != nil {
		return 0, total, fmt.Errorf("read the endpoint's counts: %w", err)
	}
	for _, key := range stats.Keys {
		if strings.HasPrefix(key.Source, prefix) {
			sources++
			total.Received += key.Received
			total.Doubles += key.Doubles
			total.Inversions += key.Inversions
			total.HighestSeqnum += key.HighestSeqnum
		}
	}
	return sources, total, nil
}

// archived is how many events of sources with a prefix the archive has gained, and how many of
// them it has more than once.
func (o *observer) archived(ctx context.Context, prefix string) (total, doubles int64, err error) {
	seen := map[[2]string]bool{}
	for d, err := range roundtrip.ArchiveDeliveries(ctx, o.system.archive, o.ends) {
		if err != nil {
			return total, doubles, fmt.Errorf("read the archive: %w", err)
		}
		if !strings.HasPrefix(d.Source, prefix) {
			continue
		}
		total++
		event := [2]string{d.Source, d.ID}
		if seen[event] {
			doubles++
		}
		seen[event] = true
	}
	return total, doubles, nil
}
