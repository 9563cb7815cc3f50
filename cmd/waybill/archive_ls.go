package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/waybillhq/waybill/internal/archivecheck"
	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/sinks"
)

// archivePlace is how a command finds an archive.
type archivePlace struct {
	process.S3
	Lane []int `env:"-" want:"lane" help:"Only these lanes."`
}

// Check refuses to look nowhere.
func (p archivePlace) Check() error {
	if p.S3Bucket == "" {
		return errors.New("--s3-bucket: is empty; name the bucket of the archive, or set WAYBILL_S3_BUCKET; or run it where a `waybill dev` runs, or with the directory of one as WAYBILL_DIR")
	}
	return p.S3.Check()
}

// open returns a reader, and the lanes that are wanted or, where none is named, those that there are. It says so
// where there is none.
func (p archivePlace) open(ctx context.Context, con *console) (*sinks.ArchiveReader, []int, error) {
	reader, err := p.ArchiveReader(ctx)
	if err != nil {
		return nil, nil, err
	}
	lanes, err := reader.Lanes(ctx)
	if err != nil {
		return nil, nil, err
	}
	if len(lanes) == 0 {
		_, err = fmt.Fprintf(con.err, "waybill: nothing is archived in bucket %s under the prefix %s (--s3-bucket, --s3-prefix)\n", p.S3Bucket, p.S3Prefix)
	} else if empty := slices.DeleteFunc(slices.Clone(p.Lane), func(lane int) bool { return slices.Contains(lanes, lane) }); len(empty) > 0 {
		_, err = fmt.Fprintf(con.err, "waybill: --lane: nothing is archived of lane %s: the archive has the lanes %s\n", ranges(empty), ranges(lanes))
	}
	if len(p.Lane) > 0 {
		lanes = p.Lane
	}
	return reader, lanes, err
}

// archiveLsCommand lists the archive: lane by lane, or object by object.
type archiveLsCommand struct {
	archivePlace
	outputFlag
	Objects bool `env:"-" help:"Each object instead of each lane."`
}

// archivedLane is a lane as -o json prints it.
type archivedLane struct {
	Lane    int   `json:"lane"`
	Objects int64 `json:"objects"`
	Bytes   int64 `json:"bytes"` // compressed
	// From is the first offset that is there, To the one that the next event will have.
	From   int64     `json:"from"`
	To     int64     `json:"to"`
	Newest time.Time `json:"newest_object_at,omitzero"` // by the S3 server's clock
}

// archivedObject is an object as -o json prints it.
type archivedObject struct {
	Lane     int       `json:"lane"`
	Offset   int64     `json:"offset"` // of its first event
	Bytes    int64     `json:"bytes"`
	Modified time.Time `json:"modified_at"` // by the S3 server's clock
	Key      string    `json:"key"`
}

// Run lists what is there now.
func (c *archiveLsCommand) Run(ctx context.Context, con *console) error {
	reader, lanes, err := c.open(ctx, con)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
	switch {
	case c.json():
	case c.Objects:
		_, _ = fmt.Fprintln(table, "lane\toffset\tbytes\tmodified\tkey") // Flush tells
	default:
		_, _ = fmt.Fprintln(table, "lane\tobjects\tbytes\tfrom offset\tto\tnewest object")
	}
	for _, lane := range lanes {
		if err := c.lane(ctx, con, table, reader, lane); err != nil {
			return errors.Join(err, table.Flush())
		}
	}
	return table.Flush()
}

func (c *archiveLsCommand) lane(ctx context.Context, con *console, table *tabwriter.Writer, reader *sinks.ArchiveReader, lane int) error {
	sum := archivedLane{Lane: lane}
	for object, err := range reader.Objects(ctx, lane, 0) {
		if err != nil && object.Key == "" {
			return err
		}
		if err != nil {
			_, _ = fmt.Fprintf(con.err, "waybill: %v\n", err)
			continue
		}
		if sum.Objects == 0 {
			sum.From = object.Offset
		}
		sum.Objects++
		sum.Bytes += object.Bytes
		sum.Newest = object.Modified.UTC()
		if !c.Objects {
			continue
		}
		if c.json() {
			err = c.print(con, "", archivedObject{lane, object.Offset, object.Bytes, object.Modified.UTC(), object.Key})
		} else {
			_, err = fmt.Fprintf(table, "%d\t%d\t%d\t%s\t%s\n", lane, object.Offset, object.Bytes, object.Modified.UTC().Format(time.DateTime), object.Key)
		}
		if err != nil {
			return err
		}
	}
	if c.Objects {
		return nil
	}
	var err error
	if sum.To, err = reader.End(ctx, lane); err != nil {
		return err
	}
	if c.json() {
		return c.print(con, "", sum)
	}
	newest := "-"
	if sum.Objects > 0 {
		newest = sum.Newest.Format(time.DateTime)
	}
	_, err = fmt.Fprintf(table, "%d\t%d\t%d\t%d\t%d\t%s\n", lane, sum.Objects, sum.Bytes, sum.From, sum.To, newest)
	return err
}

// archiveVerifyCommand reads the archive and checks it.
type archiveVerifyCommand struct {
	archivePlace
	outputFlag
}

// Run reads every object. It fails, with a status of its own, if something is wrong.
func (c *archiveVerifyCommand) Run(ctx context.Context, con *console) error {
	reader, lanes, err := c.open(ctx, con)
	if err != nil {
		return err
	}
	told := time.Now()
	report, err := archivecheck.Check(ctx, reader, lanes, func(lane int, objects, events int64) {
		if time.Since(told) > progressEvery {
			told = time.Now()
			_, _ = fmt.Fprintf(con.err, "%d objects, %d events so far; in lane %d\n", objects, events, lane)
		}
	})
	if err != nil {
		return interrupted(ctx, fmt.Errorf("%w (%d events were checked before, %d findings)", err, report.Events, report.Bad))
	}
	if c.json() {
		err = c.print(con, "", report)
	} else {
		err = writeVerified(con, report)
	}
	if err == nil && report.Bad > 0 {
		err = cli.NegativeError{Err: fmt.Errorf("the archive is damaged: %s; restore earlier versions of the objects that are named, where the bucket keeps them", plural(int(report.Bad), "finding"))}
	}
	return err
}

func writeVerified(con *console, r archivecheck.Report) error {
	table := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "lane\tobjects\tevents\tbytes\tfrom offset\tto") // Flush tells
	for _, l := range r.Lanes {
		_, _ = fmt.Fprintf(table, "%d\t%d\t%d\t%d\t%d\t%d\n", l.Lane, l.Objects, l.Events, l.Bytes, l.From, l.To)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, f := range r.Findings {
		if _, err := fmt.Fprintf(con.out, "%s: lane %d, offset %d: %s\n", f.Kind, f.Lane, f.Offset, oneLine(f.What)); err != nil {
			return err
		}
	}
	if more := r.Bad - int64(len(r.Findings)); more > 0 {
		if _, err := fmt.Fprintf(con.out, "and %d more\n", more); err != nil {
			return err
		}
	}
	if r.Bad > 0 {
		return nil // the error says so
	}
	_, err := fmt.Fprintf(con.out, "%d events: offsets are dense, checksums are right, nothing is there twice\n", r.Events)
	return err
}
