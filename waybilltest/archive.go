package waybilltest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/internal/s3mem"
)

const (
	// archiveLinger is how long an object waits to be filled.
	archiveLinger = 20 * time.Millisecond
	// headerTimeout bounds the wait for the headers of a request.
	headerTimeout = 10 * time.Second
	// archiveKey is both keys of the server: it is on this machine only.
	archiveKey = "waybilltest"
)

// settings are those of whatever writes or reads the archive.
func (a Archive) settings() process.S3 {
	s := process.DefaultS3()
	s.S3Endpoint, s.S3Region, s.S3AccessKey, s.S3SecretKey = a.Endpoint, a.Region, a.AccessKey, a.SecretKey
	s.S3Bucket, s.S3Prefix, s.S3PathStyle, s.S3Isolated = a.Bucket, a.Prefix, true, true
	return s
}

// startArchive starts an S3 server in memory, with a bucket.
func (w *Waybill) startArchive(ctx context.Context) error {
	listener, err := net.Listen("tcp", loopback)
	if err != nil {
		return fmt.Errorf("listen for the archive: %w", err)
	}
	server := &http.Server{Handler: s3mem.New(archiveKey, archiveKey), ReadHeaderTimeout: headerTimeout}
	w.onStop(w.parts.run("archive", func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { _ = server.Close() })()
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}))
	w.Archive = Archive{
		Endpoint: "http://" + listener.Addr().String(), Region: s3mem.Region, AccessKey: archiveKey, SecretKey: archiveKey,
		Bucket: "archive", Prefix: "waybill",
	}
	client, err := w.Archive.settings().Client(ctx)
	if err != nil {
		return err
	}
	if _, err := client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(w.Archive.Bucket)}); err != nil {
		return fmt.Errorf("make the bucket of the archive: %w", err)
	}
	w.reader, err = w.Archive.settings().ArchiveReader(ctx)
	return err
}

// ExpectArchived is Expect of the archive: it waits until count events that match are in it, and returns them by lane, in
// the order in which they were archived.
func (w *Waybill) ExpectArchived(t testing.TB, filter Filter, count int, within time.Duration) []Event {
	t.Helper()
	e := expectation{what: "in the archive", filter: filter, count: count, exactly: true, within: within}
	return w.expect(t, e, func(ctx context.Context) (state, error) { return w.archived(ctx, filter) })
}

// archived reads the archive.
func (w *Waybill) archived(ctx context.Context, filter Filter) (s state, err error) {
	lanes, err := w.reader.Lanes(ctx)
	if err != nil {
		return state{}, err
	}
	for _, lane := range lanes {
		for record, err := range w.reader.Records(ctx, lane, 0) {
			if err != nil {
				return state{}, err
			}
			ce, err := record.Event()
			if err != nil {
				return state{}, err
			}
			if e := newEvent(ce); filter.matches(e) {
				s.matching = append(s.matching, e)
			} else {
				s.other = append(s.other, e)
			}
		}
	}
	return s, nil
}
