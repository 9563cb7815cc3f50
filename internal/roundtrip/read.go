package roundtrip

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"strconv"

	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/sinks"
)

// maxRecordBytes bounds a line of GET /events, which holds no data.
const maxRecordBytes = 1 << 20

// EndpointDeliveries reads back what a `waybill endpoint` took after record number since,
// from its admin address (a URL), in the order in which it took it.
func EndpointDeliveries(ctx context.Context, admin string, since int64) iter.Seq2[Delivery, error] {
	return func(yield func(Delivery, error) bool) {
		body, err := open(ctx, admin+"/events?since="+strconv.FormatInt(since, 10))
		if err != nil {
			yield(Delivery{}, err)
			return
		}
		defer func() { _ = body.Close() }() // everything was read, or is not wanted
		lines := bufio.NewScanner(body)
		lines.Buffer(nil, maxRecordBytes)
		for lines.Scan() {
			var r endpoint.Record
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				yield(Delivery{}, fmt.Errorf("read a record: %w", err))
				return
			}
			d := Delivery{Source: r.Source, Type: r.Type, ID: r.ID, Seqnum: r.Seqnum, DataCRC32C: r.DataCRC32C, At: r.ReceivedAt}
			if !yield(d, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(Delivery{}, fmt.Errorf("read the records: %w", err))
		}
	}
}

// FileDeliveries reads back what a `waybill endpoint`, or several one after another, wrote
// to its file of records. Lines that a killed one left unfinished are passed over: what
// they would say was not answered.
func FileDeliveries(path string) iter.Seq2[Delivery, error] {
	return func(yield func(Delivery, error) bool) {
		file, err := os.Open(path)
		if err != nil {
			yield(Delivery{}, fmt.Errorf("open the endpoint's records: %w", err))
			return
		}
		defer func() { _ = file.Close() }() // it was read only
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, maxRecordBytes)
		for lines.Scan() {
			var r endpoint.Record
			if json.Unmarshal(lines.Bytes(), &r) != nil {
				continue
			}
			d := Delivery{Source: r.Source, Type: r.Type, ID: r.ID, Seqnum: r.Seqnum, DataCRC32C: r.DataCRC32C, At: r.ReceivedAt}
			if !yield(d, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(Delivery{}, fmt.Errorf("read the endpoint's records: %w", err))
		}
	}
}

// EndpointReceived returns how many events a `waybill endpoint` has taken so far.
func EndpointReceived(ctx context.Context, admin string) (int64, error) {
	body, err := open(ctx, admin+"/stats?keys=false")
	if err != nil {
		return 0, err
	}
	defer func() { _ = body.Close() }() // it was read
	var stats endpoint.Stats
	if err := json.NewDecoder(body).Decode(&stats); err != nil {
		return 0, fmt.Errorf("read the endpoint's counts: %w", err)
	}
	return stats.Received, nil
}

func open(ctx context.Context, url string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the endpoint: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the endpoint: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		_ = response.Body.Close()
		return nil, fmt.Errorf("ask the endpoint: %s says %s", url, response.Status)
	}
	return response.Body, nil
}

// ArchiveEnds returns where the lanes of an archive end now: from there on is what is
// archived later. Lanes that are missing begin at 0.
func ArchiveEnds(ctx context.Context, reader *sinks.ArchiveReader) (map[int]int64, error) {
	lanes, err := reader.Lanes(ctx)
	if err != nil {
		return nil, err
	}
	ends := make(map[int]int64, len(lanes))
	for _, lane := range lanes {
		if ends[lane], err = reader.End(ctx, lane); err != nil {
			return nil, err
		}
	}
	return ends, nil
}

// ArchiveDeliveries reads back what was archived from the offsets in since on, lane after
// lane, each in order.
func ArchiveDeliveries(ctx context.Context, reader *sinks.ArchiveReader, since map[int]int64) iter.Seq2[Delivery, error] {
	return func(yield func(Delivery, error) bool) {
		lanes, err := reader.Lanes(ctx)
		if err != nil {
			yield(Delivery{}, err)
			return
		}
		for _, lane := range lanes {
			for record, err := range reader.Records(ctx, lane, since[lane]) {
				d, err := archived(record, err)
				if !yield(d, err) || err != nil {
					return
				}
			}
		}
	}
}

func archived(record sinks.Record, err error) (Delivery, error) {
	if err != nil {
		return Delivery{}, err
	}
	data, err := lineData(record.Line)
	if err != nil {
		return Delivery{}, err
	}
	return Delivery{
		Source: record.Source, Type: record.Type, ID: record.ID, Seqnum: record.Seqnum,
		DataCRC32C: checksum(data), Lane: record.Lane, Offset: record.Offset, Position: record.Position,
	}, nil
}
