package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/waybillhq/waybill/internal/expect"
	"github.com/waybillhq/waybill/sinks"
)

type archiveCommand struct {
	Ls     archiveLsCommand     `cmd:"" help:"List the lanes of the archive, or its objects."`
	Cat    archiveCatCommand    `cmd:"" help:"Print archived events, one structured CloudEvent in JSON a line: lane after lane, each in order."`
	Verify archiveVerifyCommand `cmd:"" help:"Read the whole archive and check it: dense offsets, checksums, nothing twice."`
}

// archiveCatCommand prints what is in the archive. Offsets count the events of a lane.
type archiveCatCommand struct {
	archivePlace
	Since   offset   `env:"-" default:"0" help:"From this offset on, in each lane. Offsets count a lane's events from 0."`
	Type    []string `env:"-" help:"Only events of these types; with an asterisk at its end a type stands for those that begin so."`
	Limit   int      `env:"-" want:"not-negative" default:"0" help:"At most this many events; 0: all."`
	Offsets bool     `env:"-" help:"Print {\"lane\":…,\"offset\":…,\"event\":…} instead of the event alone."`
}

// offset is a flag that counts the events of a lane, where others of its name are times.
type offset int64

// UnmarshalText reads a number from 0.
func (o *offset) UnmarshalText(text []byte) error {
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("%q; want an offset, a number from 0, of which `waybill archive ls` has the last: the archive is not searched by time", text)
	}
	*o = offset(n)
	return nil
}

var errEnough = errors.New("enough")

// Run prints the archive as it is now.
func (c *archiveCatCommand) Run(ctx context.Context, con *console) error {
	reader, lanes, err := c.open(ctx, con)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(con.out)
	printed := 0
	for _, lane := range lanes {
		err := c.lane(ctx, con, reader, lane, func(record sinks.Record) error {
			if err := c.print(out, record); err != nil {
				return err
			}
			if printed++; printed == c.Limit {
				return errEnough
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			break
		}
		if err != nil {
			return errors.Join(err, out.Flush())
		}
	}
	return out.Flush()
}

// lane visits the events of a lane that are wanted. It says where objects are missing and
// goes on behind them.
func (c *archiveCatCommand) lane(ctx context.Context, con *console, reader *sinks.ArchiveReader, lane int, visit func(sinks.Record) error) error {
	for since := int64(c.Since); ; {
		var gap *sinks.ArchiveGapError
		for record, err := range reader.Records(ctx, lane, since) {
			if errors.As(err, &gap) {
				break
			}
			if err != nil {
				return err
			}
			if len(c.Type) > 0 && !slices.ContainsFunc(c.Type, func(want string) bool { return expect.MatchesText(want, record.Type) }) {
				continue
			}
			if err := visit(record); err != nil {
				return err
			}
		}
		if gap == nil {
			return nil
		}
		_, _ = fmt.Fprintf(con.err, "waybill: %v\n", gap)
		since = gap.To
	}
}

func (c *archiveCatCommand) print(out io.Writer, record sinks.Record) error {
	if c.Offsets {
		_, err := fmt.Fprintf(out, "{\"lane\":%d,\"offset\":%d,\"event\":%s}\n", record.Lane, record.Offset, record.Line)
		return err
	}
	_, err := fmt.Fprintf(out, "%s\n", record.Line)
	return err
}
