package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/archivecheck"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// s3Flags are what finds the plant's archive.
func (p *plant) s3Flags() []string {
	return []string{
		"--s3-endpoint", p.s3.Endpoint, "--s3-access-key", p.s3.AccessKey, "--s3-secret-key", p.s3.SecretKey,
		"--s3-path-style", "--s3-bucket", p.archive.Bucket, "--s3-prefix", p.archive.Prefix,
	}
}

func (p *plant) archiveCommand(t *testing.T, args ...string) result {
	t.Helper()
	return command(t, nil, append(append([]string{"archive"}, args...), p.s3Flags()...)...)
}

// mustArchiveSome lets events go into the archive in several objects a lane, and returns their number.
func (p *plant) mustArchiveSome(t *testing.T) int {
	t.Helper()
	in := p.startIngest(t, testSpec.Lanes, time.Hour)
	p.startJanitor(t, testSpec.Lanes)
	p.startForwarder(t, testSpec.Lanes)
	store := p.store(t, testSpec.Lanes)
	for i := range 3 {
		mustAccept(t, in, fmt.Sprintf("part%d", i), 80)
		p.mustDrain(t, store)
	}
	p.stop(t, "ingest", "forwarder", "janitor")
	return 240
}

func (p *plant) s3Client(t *testing.T) *s3.Client {
	t.Helper()
	client, err := sinks.NewS3Client(t.Context(), p.s3Config())
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (p *plant) mustGet(t *testing.T, key string) []byte {
	t.Helper()
	out, err := p.s3Client(t).GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String(p.archive.Bucket), Key: aws.String(key)})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// mustPut stores an object, or deletes it where there is no body.
func (p *plant) mustPut(t *testing.T, key string, body []byte) {
	t.Helper()
	client := p.s3Client(t)
	var err error
	if body == nil {
		_, err = client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: aws.String(p.archive.Bucket), Key: aws.String(key)})
	} else {
		_, err = client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(p.archive.Bucket), Key: aws.String(key), Body: bytes.NewReader(body)})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// archivedObjects lists the objects of each lane.
func (p *plant) archivedObjects(t *testing.T) map[int][]archivedObject {
	t.Helper()
	r := p.archiveCommand(t, "ls", "--objects", "-o", "json")
	if r.failure != nil {
		t.Fatal(r.failure)
	}
	out := map[int][]archivedObject{}
	for line := range strings.Lines(r.out) {
		var o archivedObject
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatal(err)
		}
		out[o.Lane] = append(out[o.Lane], o)
	}
	return out
}

func (p *plant) verify(t *testing.T) (archivecheck.Report, error) {
	t.Helper()
	r := p.archiveCommand(t, "verify", "-o", "json")
	var report archivecheck.Report
	if err := json.Unmarshal([]byte(r.out), &report); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	return report, r.failure
}

func kinds(r archivecheck.Report) (out []string) {
	for _, f := range r.Findings {
		out = append(out, fmt.Sprintf("%s in %d", f.Kind, f.Lane))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// What the archive holds is listed and found sound; and each way in which it can be damaged is found
// and named, with all others and what lies behind it.
func TestArchiveVerify(t *testing.T) {
	p := mustPlant(t)
	sent := p.mustArchiveSome(t)
	report, err := p.verify(t)
	if err != nil || report.Bad != 0 || report.Events != int64(sent) || len(report.Lanes) != testSpec.Lanes {
		t.Fatalf("%+v, %v", report, err)
	}
	if r := p.archiveCommand(t, "verify", "--lane=1,2"); r.failure != nil || !strings.Contains(r.out, "offsets are dense") {
		t.Errorf("%+v", r)
	}
	objects := p.archivedObjects(t)
	total := int64(0)
	for line := range strings.Lines(p.archiveCommand(t, "ls", "-o", "json").out) {
		var l archivedLane
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.From != 0 || l.Bytes < 1 || l.Newest.IsZero() || l.Objects != int64(len(objects[l.Lane])) || l.Objects < 3 {
			t.Errorf("%v: %+v", err, l)
		}
		total += l.To
	}
	if total != int64(sent) {
		t.Errorf("the lanes end at %d in all", total)
	}
	if r := p.archiveCommand(t, "ls"); r.failure != nil || !strings.Contains(r.out, "from offset") {
		t.Errorf("%+v", r)
	}
	if r := p.archiveCommand(t, "ls", "--lane=99"); r.failure != nil || !regexp.MustCompile(`(?m)^99 .* -$`).MatchString(r.out) {
		t.Errorf("a lane without an object: %+v", r)
	}
	const none = "nothing is archived of lane 99: the archive has the lanes 0-3"
	if r := p.archiveCommand(t, "ls", "--lane=0,99"); !strings.Contains(r.err, none) {
		t.Errorf("%+v", r)
	}
	replay := append([]string{"replay", "--sink=ingress", "--dry-run", "--lane=99", "--nats-url", p.nats.URL()}, p.s3Flags()...)
	if r := command(t, nil, append(replay, "--from=archive")...); r.failure != nil || !strings.Contains(r.err, none) {
		t.Errorf("%+v", r)
	}
	mustFail(t, command(t, nil, replay...), "--lane: 99; the pipeline has the lanes 0 to 3")
	for _, what := range []string{"ls", "verify", "cat"} {
		args := append(append([]string{"archive", what}, p.s3Flags()...), "--s3-prefix=nowhere")
		if r := command(t, nil, args...); r.failure != nil || !strings.Contains(r.err, "nothing is archived") {
			t.Errorf("%s of an archive that is empty: %+v", what, r)
		}
	}
	for types, want := range map[string]int{"*": sent, "no*,*": sent, "no*": 0} {
		if n := strings.Count(p.archiveCommand(t, "cat", "--type="+types).out, "\n"); n != want {
			t.Errorf("%d events of the types %s, want %d", n, types, want)
		}
	}

	p.mustPut(t, objects[0][1].Key, nil) // in the middle
	p.mustPut(t, objects[1][0].Key, nil) // the oldest one, as a lifecycle rule does
	body := p.mustGet(t, objects[2][0].Key)
	body[len(body)/4] ^= 1
	p.mustPut(t, objects[2][0].Key, body)
	// What another writer appended once more, with offsets that fit.
	last := objects[3][len(objects[3])-1]
	copied := p.mustGet(t, objects[3][0].Key)
	p.mustPut(t, last.Key, copied)
	p.mustPut(t, p.archive.Prefix+"/lane=03/notes.txt", []byte("x"))
	report, err = p.verify(t)
	mustFail(t, result{failure: err}, "damaged")
	// The copy says that it begins at 0: it is damaged where it stands.
	if got := kinds(report); !slices.Equal(got, []string{"damaged in 2", "damaged in 3", "foreign in 3", "missing in 0"}) {
		t.Errorf("%q: %+v", got, report)
	}
	for _, l := range report.Lanes {
		if (l.From > 0) != (l.Lane == 1) {
			t.Errorf("%+v", l)
		}
	}
	if r := p.archiveCommand(t, "verify"); !strings.Contains(r.out, "missing: lane 0, offset ") || strings.Contains(r.out, "are dense") {
		t.Errorf("%+v", r)
	}
}

// An archive that has an event twice, as no sink of ours writes it.
func TestArchiveVerifyFindsDoubles(t *testing.T) {
	p := mustPlant(t)
	sent := p.mustArchiveSome(t)
	// The same events under other batches: what a pipeline that forgot its batches would archive.
	archive, err := sinks.NewArchive(p.s3Client(t), p.archive)
	if err != nil {
		t.Fatal(err)
	}
	first := p.archived(t)[0][0]
	again, err := proto.Marshal(&pb.CloudEvent{
		Id: "again", Source: first.Source, Type: first.Type, SpecVersion: "1.0",
		Attributes: map[string]*pb.CloudEventAttributeValue{pipeline.SeqnumAttribute: textValue(fmt.Sprint(first.Seqnum))},
	})
	if err != nil {
		t.Fatal(err)
	}
	batch := &pipeline.Batch{ID: pipeline.BatchID{Number: 1 << 40, Token: 1}, AcceptedAt: time.Now(), Events: [][]byte{again}}
	if results, err := archive.Send(t.Context(), 0, []pipeline.Item{{Batch: batch}}); err != nil || results[0].Verdict != pipeline.Delivered {
		t.Fatal(results, err)
	}
	report, err := p.verify(t)
	mustFail(t, result{failure: err}, "finding")
	if report.Bad == 0 || report.Events <= int64(sent) || !slices.Equal(kinds(report), []string{"double in 0"}) || !strings.Contains(report.Findings[0].What, "is there twice") {
		t.Errorf("%+v", report)
	}
}

// Nobody can say that an archive is sound that he cannot read.
func TestArchiveVerifyWithoutAServer(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	reader, err := sinks.NewS3Client(ctx, sinks.DefaultS3Config())
	if err != nil {
		t.Fatal(err)
	}
	r, err := sinks.NewArchiveReader(reader, "b", "", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := archivecheck.Check(ctx, r, []int{0}, nil); err == nil {
		t.Error("it is found sound")
	}
	mustFail(t, command(t, nil, "archive", "verify"), "--s3-bucket")
	mustFail(t, command(t, nil, "archive", "ls"), "--s3-bucket")
}
