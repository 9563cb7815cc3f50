package replay

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// store is an S3 server with an archive that holds batches 1 to n in lane 0, one to an object, each of
// one event.
type store struct {
	client *s3.Client
	reader *sinks.ArchiveReader
}

const storeBucket, storePrefix = "archive", "waybill"

func mustArchive(t *testing.T, n int64) *store {
	t.Helper()
	server, err := devstack.StartS3(t.Context(), devstack.S3Options{Dir: t.TempDir(), Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	c := sinks.DefaultS3Config()
	c.Endpoint, c.PathStyle, c.AccessKey, c.SecretKey = server.Endpoint, true, server.AccessKey, server.SecretKey
	s := &store{}
	if s.client, err = sinks.NewS3Client(t.Context(), c); err == nil {
		err = server.CreateBucket(t.Context(), storeBucket)
	}
	if err == nil {
		s.reader, err = sinks.NewArchiveReader(s.client, storeBucket, storePrefix, patience)
	}
	if err != nil {
		t.Fatal(err)
	}
	config := sinks.DefaultArchiveConfig()
	config.Bucket, config.Prefix, config.Log = storeBucket, storePrefix, slog.New(slog.DiscardHandler)
	archive, err := sinks.NewArchive(s.client, config)
	if err != nil {
		t.Fatal(err)
	}
	for i := int64(1); i <= n; i++ {
		event, err := proto.Marshal(&pb.CloudEvent{
			Id: fmt.Sprint(i), Source: "/source", Type: "t", SpecVersion: "1.0",
			Attributes: map[string]*pb.CloudEventAttributeValue{"seqnum": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: fmt.Sprint(i)}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		b := &pipeline.Batch{ID: batchID(i), AcceptedAt: epoch.Add(time.Duration(i) * time.Second), Events: [][]byte{event}}
		if _, err := archive.Send(t.Context(), 0, []pipeline.Item{{Batch: b}}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// mustRemove deletes the objects of batches.
func (s *store) mustRemove(t *testing.T, from, to int64) {
	t.Helper()
	for i := from; i <= to; i++ {
		key := fmt.Sprintf("%s/lane=00/%020d.ndjson.zst", storePrefix, i-1)
		if _, err := s.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String(storeBucket), Key: aws.String(key)}); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *store) config(sink *recorder, change ...func(*Config)) Config {
	c := DefaultConfig()
	c.Name, c.Archive, c.From, c.Target, c.Sink = "test", s.reader, FromArchive, "somewhere", sink
	for _, f := range change {
		f(&c)
	}
	return c
}

func numbered(from, to int) (out []string) {
	for i := from; i <= to; i++ {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

// What was asked for and is not in the archive any more is named, wherever in a lane it was.
func TestReplayNamesWhatTheArchiveHasNoMore(t *testing.T) {
	s := mustArchive(t, 20)
	s.mustRemove(t, 1, 5) // as a lifecycle rule does
	for _, test := range []struct {
		name    string
		since   int64 // 0: none
		first   int
		missing string
	}{
		{"all that there is", 0, 6, ""},
		{"what is still there", 6, 6, ""},
		{"what is gone", 4, 6, "2026-03-01T12:00:05Z"},
	} {
		sink := newRecorder()
		result := mustReplay(t, s.config(sink, func(c *Config) {
			if test.since > 0 {
				c.Since = second(t, test.since)
			}
		}))
		if got := sink.lane(0); !slices.Equal(got, numbered(test.first, 20)) {
			t.Errorf("%s: %v", test.name, got)
		}
		if text := strings.Join(result.Missing, " "); (test.missing == "") != (text == "") || !strings.Contains(text, test.missing) {
			t.Errorf("%s: missing is %q, want %q", test.name, text, test.missing)
		}
	}
}

// A replay that is resumed names what was deleted of what it had still to read.
func TestResumedReplayNamesWhatTheArchiveHasNoMore(t *testing.T) {
	s := mustArchive(t, 20)
	sink := newRecorder()
	c := s.config(sink)
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	begun := state{Order: c.order(), Position: position{Lanes: map[int]uint64{0: 3}}, Counts: newCounts()}
	if begun.Span, err = c.resolve(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	s.mustRemove(t, 1, 6)
	s.mustRemove(t, 19, 20)
	result, err := r.run(t.Context(), nil, begun)
	if err != nil || !slices.Equal(sink.lane(0), numbered(7, 18)) {
		t.Errorf("%v, %v", sink.lane(0), err)
	}
	if len(result.Missing) != 2 || !strings.Contains(result.Missing[0], "offset 3 to 5") || !strings.Contains(result.Missing[1], "offset 18 to 19") {
		t.Errorf("missing: %q", result.Missing)
	}
}
