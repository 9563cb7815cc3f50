package bench

import (
	_ "embed"
	"encoding/binary"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// sampleTrace is what is replayed where no file is named.
//
//go:embed trace-sample.csv
var sampleTrace string

// traceHeader is the first line of a trace.
var traceHeader = []string{"time", "key", "size"}

const (
	// maxTraceRows bounds the memory of a trace, at 16 bytes a row.
	maxTraceRows = 10_000_000
	// maxTraceSize leaves room for the attributes below the limit of an event.
	maxTraceSize = 1<<20 - 4<<10
	// textField is CloudEvent.text_data.
	textField protowire.Number = 7
)

// arrival is one row of a trace.
type arrival struct {
	at   time.Duration // since the first
	key  int32         // number of its key, in the order in which they appear
	size int32         // bytes of data
}

// trace is a recorded arrival pattern.
type trace struct {
	name string // of the file
	rows []arrival
	keys int
}

// readTrace reads a trace from a file; an empty path is the sample.
func readTrace(path string) (*trace, error) {
	if path == "" {
		return parseTrace("the sample", strings.NewReader(sampleTrace))
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--trace: %w", err)
	}
	defer func() { _ = file.Close() }() // it is only read
	return parseTrace(path, file)
}

// parseTrace reads CSV with the header time,key,size: seconds as a decimal number or RFC 3339
// times, in order; any text; bytes of data. An error names the line and the column of what is
// wrong, both from 1, and what would be right.
func parseTrace(name string, from io.Reader) (*trace, error) {
	r := csv.NewReader(from)
	r.FieldsPerRecord, r.ReuseRecord = -1, true
	t := &trace{name: name}
	fail := func(field int, format string, args ...any) (*trace, error) {
		line, column := r.FieldPos(field)
		return nil, fmt.Errorf("%s: line %d, column %d: "+format, append([]any{name, line, column}, args...)...)
	}
	fields, err := r.Read()
	switch {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s: line 1: it is empty; want the header %s, then a row an event", name, strings.Join(traceHeader, ","))
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case !slices.Equal(fields, traceHeader):
		return fail(0, "the header is %q; want %s", strings.Join(fields, ","), strings.Join(traceHeader, ","))
	}
	p := traceParser{keys: map[string]int32{}}
	for {
		fields, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil { // it names line and column
			return nil, fmt.Errorf("%s: %w; put quotes around the whole key, and double those inside", name, err)
		}
		if len(fields) != len(traceHeader) {
			return fail(min(len(fields), len(traceHeader))-1, "%d fields; want %d: %s, in double quotes where a key has a comma", len(fields), len(traceHeader), strings.Join(traceHeader, ","))
		}
		if len(t.rows) == maxTraceRows {
			return fail(0, "more than %d rows; split the file", maxTraceRows)
		}
		row, bad, err := p.row(fields)
		if err != nil {
			return fail(bad, "%s: %w", traceHeader[bad], err)
		}
		t.rows = append(t.rows, row)
	}
	if len(t.rows) == 0 {
		return nil, fmt.Errorf("%s: line 2: there is no row; want one an event behind the header", name)
	}
	t.keys = len(p.keys)
	return t, nil
}

// traceParser knows of the rows that were read what the next is compared with.
type traceParser struct {
	keys  map[string]int32
	began bool
	first float64   // seconds
	start time.Time // of traces with times of day
	last  time.Duration
}

// row reads a row. Of one that is wrong it returns the field.
func (p *traceParser) row(fields []string) (row arrival, bad int, err error) {
	if row.at, err = p.time(strings.TrimSpace(fields[0])); err != nil {
		return row, 0, err
	}
	if fields[1] == "" {
		return row, 1, errors.New("it is empty; give every event a key")
	}
	number, known := p.keys[fields[1]]
	if !known {
		number = int32(len(p.keys))
		p.keys[strings.Clone(fields[1])] = number
	}
	row.key = number
	size, err := strconv.Atoi(strings.TrimSpace(fields[2]))
	if err != nil {
		return row, 2, fmt.Errorf("%q is not a whole number; want bytes of data, such as 512", fields[2])
	}
	if size < 0 || size > maxTraceSize {
		return row, 2, fmt.Errorf("%d; want 0 to %d bytes, which is what fits an event", size, maxTraceSize)
	}
	row.size = int32(size)
	return row, 0, nil
}

// time reads when an event came, since the first.
func (p *traceParser) time(text string) (time.Duration, error) {
	at, err := p.since(text)
	switch {
	case err != nil:
		return 0, err
	case at < p.last:
		return 0, fmt.Errorf("%s is before the row above; sort the rows by time", text)
	}
	p.last = at
	return at, nil
}

func (p *traceParser) since(text string) (time.Duration, error) {
	const want = "want seconds, such as 12.345, or a time, such as 2026-11-30T12:00:00.345Z, and the same form in all rows"
	seconds, err := strconv.ParseFloat(text, 64)
	if err == nil && p.start.IsZero() {
		if !p.began {
			p.began, p.first = true, seconds
		}
		since := (seconds - p.first) * float64(time.Second)
		if !(since > -float64(maxTraceLength) && since < float64(maxTraceLength)) {
			return 0, fmt.Errorf("%q is no time within %v of the first row; %s", text, maxTraceLength, want)
		}
		return time.Duration(since), nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || p.began {
		return 0, fmt.Errorf("%q; %s", text, want)
	}
	if p.start.IsZero() {
		p.start = at
	}
	if since := at.Sub(p.start); since < maxTraceLength {
		return since, nil
	}
	return 0, fmt.Errorf("%q is no time within %v of the first row; %s", text, maxTraceLength, want)
}

// maxTraceLength is below what the ledger's times can hold.
const maxTraceLength = 10 * time.Hour

// length is from the first arrival to the last.
func (t *trace) length() time.Duration { return t.rows[len(t.rows)-1].at }

// peak is the most arrivals that begin within a second.
func (t *trace) peak(speed float64) int {
	most, from := 0, 0
	second := time.Duration(float64(time.Second) * speed)
	for to := range t.rows {
		for t.rows[to].at-t.rows[from].at >= second {
			from++
		}
		most = max(most, to-from+1)
	}
	return most
}

// meanSize is bytes of data of an event.
func (t *trace) meanSize() float64 {
	sum := 0.0
	for _, row := range t.rows {
		sum += float64(row.size)
	}
	return sum / float64(len(t.rows))
}

// emptyText is how the encoding of an event with an empty text ends: a tag and a length.
const emptyText = 2

// traceCalls makes the calls of a trace, one event each.
type traceCalls struct {
	rows  []arrival
	heads [][]byte // of each key, the encoding of an event without data
	noise []byte   // what data are cut from
}

func newTraceCalls(t *trace, run string) (*traceCalls, error) {
	largest := 0
	for _, row := range t.rows {
		largest = max(largest, int(row.size))
	}
	r := rand.New(rand.NewPCG(uint64(largest), uint64(t.keys))) // the same in every run
	c := &traceCalls{rows: t.rows, heads: make([][]byte, t.keys), noise: noiseOf(r, 4*largest+1<<20)}
	for key := range c.heads {
		e, err := newEvent(run, key, nil, false)
		if err != nil {
			return nil, err
		}
		c.heads[key] = e.encoded[:len(e.encoded)-emptyText]
	}
	return c, nil
}

// message is the call of a row. It is made when it is due: the events of a trace are of no few
// kinds that could be encoded beforehand.
func (c *traceCalls) message(i int64) *message {
	row := c.rows[i]
	size, head := int(row.size), c.heads[row.key]
	from := int(i) * 7919 % (len(c.noise) - size) // a prime, so that no two are alike for long
	wire := make([]byte, 0, len(head)+2*binary.MaxVarintLen32+size)
	wire = append(wire, head...)
	wire = protowire.AppendTag(wire, textField, protowire.BytesType)
	wire = protowire.AppendBytes(wire, c.noise[from:from+size])
	return &message{wire: wire, ids: []int{idAt}}
}
