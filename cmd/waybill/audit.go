package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/internal/reconcile"
	"github.com/waybillhq/waybill/sinks"
)

// auditCommand accounts for every seqnum that was given out.
type auditCommand struct {
	DatabaseURL string `name:"database-url" secret:"" want:"postgres" required:"" placeholder:"URL" help:"Postgres. WAYBILL_DATABASE_URL_FILE names a file that holds it."`
	process.Lanes
	process.S3
	outputFlag
	Since timePoint `env:"-" placeholder:"TIME" help:"Only what was accepted at or after this: a time such as 2026-11-25T08:00:00Z, or how long ago, such as 2h. Default: everything."`
}

// Help says what is compared with what.
func (*auditCommand) Help() string {
	return `Every seqnum that Postgres gave out must be waiting for a sink, a dead letter of it, or settled; and what is settled of the archive must be there, once. The archive is read from its beginning or, with --since, from where it may hold what was accepted then. It may run beside everything else: what is on its way does not count as missing.

Dead letters that were purged, or are past their TTL, are missing from the archive too. With --since the account of each key begins with the first event of it that is still known: what was lost before that one is found without --since only.`
}

// Run reads both and prints the report. It fails, with a status of its own, if something is missing.
func (c *auditCommand) Run(ctx context.Context, con *console) error {
	store, err := openStore(ctx, c.DatabaseURL, c.Lanes.Lanes)
	if err != nil {
		return err
	}
	defer store.Close()
	now, err := store.Now(ctx)
	if err != nil {
		return err
	}
	told := time.Now()
	config := reconcile.Config{
		Store: store, ArchiveSink: sinks.DefaultArchiveConfig().Name, Since: c.Since.at(now),
		Tell: func(what string, events int64) {
			if events%1000 == 0 && time.Since(told) > progressEvery {
				told = time.Now()
				_, _ = fmt.Fprintf(con.err, "%d read so far; now %s\n", events, what)
			}
		},
	}
	if c.S3Bucket != "" {
		if config.Archive, err = c.ArchiveReader(ctx); err != nil {
			return err
		}
	}
	report, err := reconcile.Run(ctx, config)
	if err != nil {
		return interrupted(ctx, err)
	}
	if c.json() {
		err = c.print(con, "", report)
	} else {
		err = writeAudit(con, report)
	}
	if err == nil && report.Bad() {
		err = cli.NegativeError{Err: errors.New("the account does not add up: see what is missing, doubled, gone or was never given out")}
	}
	return err
}

func writeAudit(con *console, r reconcile.Report) error {
	table := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
	since := "ever"
	if !r.Since.IsZero() {
		since = "since " + r.Since.UTC().Format(time.RFC3339)
	}
	_, _ = fmt.Fprintf(table, "%s accepted %s, of %s, as of %s\n\n", plural(int(r.Accepted), "event"), since, plural(r.Keys, "key"), r.At.UTC().Format(time.RFC3339)) // Flush tells
	_, _ = fmt.Fprintln(table, "sink\taccepted\twaiting\tdead letters\tsettled\tarchived\tmissing\tdoubled\trows gone")
	for _, s := range r.Sinks {
		archived := "-"
		if s.Archived != nil {
			archived = fmt.Sprint(*s.Archived)
		}
		_, _ = fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%s\t%d\t%d\t%d\n", s.Sink, s.Accepted, s.Waiting, s.Dead, s.Settled, archived, s.Missing, s.Doubled, s.Gone)
	}
	_, _ = fmt.Fprintln(table)
	for _, m := range r.Missing {
		_, _ = fmt.Fprintf(table, "missing in %s: seqnum %s of %s %s\n", m.Sink, span(m.From, m.To), oneLine(m.Source), oneLine(m.Type))
	}
	if len(r.Missing) == reconcile.MaxExamples {
		_, _ = fmt.Fprintln(table, "and perhaps more")
	}
	if r.NeverGivenOut > 0 {
		_, _ = fmt.Fprintf(table, "%s in the archive were never given out: Postgres was set back, by a restore or a failover\n", plural(int(r.NeverGivenOut), "seqnum"))
	}
	for _, note := range r.Notes {
		_, _ = fmt.Fprintf(table, "note: %s\n", note)
	}
	if !r.Bad() {
		_, _ = fmt.Fprintln(table, "nothing is missing")
	}
	return table.Flush()
}

// span writes the numbers from one to another.
func span(from, to int64) string {
	if from == to {
		return fmt.Sprint(from)
	}
	return fmt.Sprintf("%d to %d", from, to)
}
