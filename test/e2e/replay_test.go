package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/endpoint/endpointtest"
	"github.com/waybillhq/waybill/internal/livestate"
	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// replayed is a system in which three plans of events were settled, one after another.
type replayed struct {
	*system
	js      jetstream.JetStream
	ledgers [3]*roundtrip.Ledger
	since   time.Time // between the first and the second plan, by Postgres's clock
	until   time.Time // between the second and the third
}

// replayEvents is how many events each of the plans has.
const replayEvents = 600

func mustReplaySystem(t *testing.T) *replayed {
	t.Helper()
	r := &replayed{system: mustStart(t, nil)}
	nc, err := nats.Connect(r.NATSURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if r.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	for i, at := range []*time.Time{nil, &r.since, &r.until} {
		if at != nil {
			if *at, err = r.store.Now(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		r.ledgers[i] = r.mustSend(t, fmt.Sprintf("replay-%d", i), replayEvents)
	}
	r.mustSettle(t, patience)
	return r
}

// mustSend sends a plan to its end.
func (r *replayed) mustSend(t *testing.T, run string, events int) *roundtrip.Ledger {
	t.Helper()
	ledger, err := roundtrip.Send(t.Context(), roundtrip.DefaultSenderConfig(r.HTTP, r.GRPC), roundtrip.DefaultPlan(run, events))
	if err == nil {
		err = ledger.NotAccepted()
	}
	if err != nil {
		t.Fatal(err)
	}
	return ledger
}

// outcome is how a `waybill replay -o json` ended.
type outcome struct {
	status int
	err    string // standard error

	Name, Sink, Target, From string
	DryRun                   bool `json:"dry_run"`
	Events, Refused, Resumed int64
	Lanes, Types             map[string]int64
	Before                   bool `json:"done_before"`
}

// command is `waybill replay` with flags, in the environment of the system.
func (r *replayed) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	env, err := os.ReadFile(filepath.Join(r.dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), executable, append([]string{"replay", "-o", "json"}, args...)...)
	cmd.Env = append(os.Environ(), strings.Split(strings.TrimSpace(string(env)), "\n")...)
	return cmd
}

func (r *replayed) replay(t *testing.T, args ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := r.command(t, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	o := outcome{status: cmd.ProcessState.ExitCode(), err: errs.String()}
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &o); err != nil {
			t.Fatalf("%v: %s", err, out.String())
		}
	}
	fmt.Fprintf(t.Output(), "replay %s: %+v\n", strings.Join(args, " "), o)
	return o
}

// mustReplay counts, delivers, and fails unless both are want events.
func (r *replayed) mustReplay(t *testing.T, from string, want int, args ...string) outcome {
	t.Helper()
	dry := r.replay(t, append(args, "--dry-run")...)
	if dry.status != 0 || !dry.DryRun || dry.Events != int64(want) {
		t.Errorf("the dry run counts %d, status %d, want %d", dry.Events, dry.status, want)
	}
	o := r.replay(t, args...)
	if o.status != 0 || o.Events != int64(want) || o.From != from {
		t.Fatalf("status %d, %d events from the %s, want %d from the %s", o.status, o.Events, o.From, want, from)
	}
	if !reflect.DeepEqual(dry.Lanes, o.Lanes) || !reflect.DeepEqual(dry.Types, o.Types) {
		t.Errorf("the dry run counts %v, %v; delivered were %v, %v", dry.Lanes, dry.Types, o.Lanes, o.Types)
	}
	return o
}

// verifyAt compares what an endpoint has with a ledger.
func verifyAt(t *testing.T, ledger *roundtrip.Ledger, admin string) roundtrip.Report {
	t.Helper()
	report, err := ledger.Verify("ingress", roundtrip.EndpointDeliveries(t.Context(), admin, 0))
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func (r *replayed) mustReset(t *testing.T) {
	t.Helper()
	response, err := http.Post(r.EndpointAdmin+"/reset", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
}

func (r *replayed) state(ctx context.Context) (livestate.State, error) {
	s := livestate.State{}
	if err := s.Queue(ctx, r.js); err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, r.DatabaseURL)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	return s, s.Tables(ctx, conn)
}

// mustRead returns the records of an archive, by lane.
func (r *replayed) mustRead(t *testing.T, bucket, prefix string) map[int][]sinks.Record {
	t.Helper()
	at := r.S3
	at.S3Bucket, at.S3Prefix = bucket, prefix
	reader, err := at.ArchiveReader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lanes, err := reader.Lanes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[int][]sinks.Record{}
	for _, lane := range lanes {
		for record, err := range reader.Records(t.Context(), lane, 0) {
			if err != nil {
				t.Fatal(err)
			}
			if record.Offset != int64(len(out[lane])) {
				t.Fatalf("%s, lane %d: offset %d after %d events", prefix, lane, record.Offset, len(out[lane]))
			}
			out[lane] = append(out[lane], record)
		}
	}
	return out
}

func members(t *testing.T, record sinks.Record) map[string]any {
	t.Helper()
	var out map[string]any
	if err := json.Unmarshal(record.Line, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// mustBeCopies fails unless a lane of a replay has the events of the live archive, in their order,
// once each, at their positions, with the name of the replay.
func mustBeCopies(t *testing.T, live, copies []sinks.Record, name string) {
	t.Helper()
	if len(live) != len(copies) {
		t.Errorf("%d events were copied, and there are %d", len(copies), len(live))
		return
	}
	for i := range live {
		want, got := members(t, live[i]), members(t, copies[i])
		if got["replayid"] != name {
			t.Fatalf("event %d has the replayid %v", i, got["replayid"])
		}
		delete(got, "replayid")
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("event %d is %v, and was %v", i, got, want)
		}
	}
}

func count(lanes map[int][]sinks.Record) (n int) {
	for _, records := range lanes {
		n += len(records)
	}
	return n
}

// TestReplay replays in each of the ways that operators do, on a system at rest and then under load.
func TestReplay(t *testing.T) {
	r := mustReplaySystem(t)
	before, err := livestate.Still(t.Context(), r.state)
	if err != nil {
		t.Fatal(err)
	}
	live := r.mustRead(t, r.S3.S3Bucket, r.S3.S3Prefix)
	t.Run("ALostHour", func(t *testing.T) { mustReplayALostHour(t, r) })
	t.Run("ANewEndpoint", func(t *testing.T) { mustReplayToANewEndpoint(t, r) })
	t.Run("ALaneToAnotherBucket", func(t *testing.T) { mustCopyALane(t, r, live) })
	t.Run("KilledAndResumed", func(t *testing.T) { mustResumeAfterKills(t, r, live) })
	t.Run("WhatIsRefused", func(t *testing.T) { mustReportRefusals(t, r) })
	t.Run("LeavesTheLivePathAlone", func(t *testing.T) {
		after, err := livestate.Still(t.Context(), r.state)
		if err != nil {
			t.Fatal(err)
		}
		if changes := before.Changes(after); len(changes) > 0 || len(before) < 2+2*16+3+5 {
			t.Errorf("of %d states of the live path replaying has changed:\n%s", len(before), strings.Join(changes, "\n"))
		}
		if again := r.mustRead(t, r.S3.S3Bucket, r.S3.S3Prefix); !reflect.DeepEqual(live, again) {
			t.Error("the live archive is not what it was")
		}
	})
	t.Run("UnderLoad", func(t *testing.T) { mustReplayUnderLoad(t, r) })
}

// The endpoint has lost what it took in some time.
func mustReplayALostHour(t *testing.T, r *replayed) {
	r.mustReset(t)
	span := []string{"--since", r.since.Format(time.RFC3339Nano), "--until", r.until.Format(time.RFC3339Nano)}
	r.mustReplay(t, "stream", replayEvents, append(span, "--sink=ingress", "--from=stream", "--name=lost-hour")...)
	if report := verifyAt(t, r.ledgers[1], r.EndpointAdmin); !report.OK() {
		t.Errorf("%+v", report)
	}
	for _, i := range []int{0, 2} {
		if report := verifyAt(t, r.ledgers[i], r.EndpointAdmin); report.Delivered != 0 {
			t.Errorf("plan %d was not asked for: %+v", i, report)
		}
	}
	// It is done; the same command sends nothing.
	if o := r.replay(t, append(span, "--sink=ingress", "--from=stream", "--name=lost-hour")...); o.status != 0 || !o.Before || o.Events != replayEvents {
		t.Errorf("%+v", o)
	}
	if n, err := roundtrip.EndpointReceived(t.Context(), r.EndpointAdmin); err != nil || n != replayEvents {
		t.Errorf("the endpoint has %d events, %v", n, err)
	}
	// Of that, one key by its source and its type, out of the archive.
	o := r.replay(t, append(span, "--sink=ingress", "--from=archive", "--source=/roundtrip/replay-1/3", "--type=roundtrip.type*", "--dry-run")...)
	if o.status != 0 || o.Events == 0 || o.Events >= replayEvents || len(o.Types) != 4 {
		t.Errorf("%+v", o)
	}
	if o = r.replay(t, append(span, "--sink=ingress", "--from=stream", "--name=lost-hour", "--type=x")...); o.status != 1 || !strings.Contains(o.err, "was begun with no --type, and not x") {
		t.Errorf("%+v", o)
	}
}

// A new endpoint needs the last day, which the stream of a young system does not reach back to.
func mustReplayToANewEndpoint(t *testing.T, r *replayed) {
	e, _ := endpointtest.Start(t, nil)
	r.mustReplay(t, "archive", 3*replayEvents, "--sink=ingress", "--since=24h", "--to-ingress-endpoint", e.Addr())
	for i, ledger := range r.ledgers {
		if report := verifyAt(t, ledger, "http://"+e.AdminAddr()); !report.OK() {
			t.Errorf("plan %d: %+v", i, report)
		}
	}
}

// mustBucket creates a bucket beside the archive's.
func (r *replayed) mustBucket(t *testing.T, name string) {
	t.Helper()
	client, err := r.S3.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String(name)}); err != nil {
		t.Fatal(err)
	}
}

// fullest is the lane with most events.
func fullest(lanes map[int][]sinks.Record) (fullest int) {
	for lane, records := range lanes {
		if len(records) > len(lanes[fullest]) {
			fullest = lane
		}
	}
	return fullest
}

func mustCopyALane(t *testing.T, r *replayed, live map[int][]sinks.Record) {
	r.mustBucket(t, "copy")
	lane := fullest(live)
	r.mustReplay(t, "archive", len(live[lane]), "--sink=archive", "--from=archive", fmt.Sprintf("--lane=%d", lane), "--to-s3-bucket=copy", "--name=copied")
	copies := r.mustRead(t, "copy", "waybill/replays/copied")
	mustBeCopies(t, live[lane], copies[lane], "copied")
	if len(copies) != 1 {
		t.Errorf("%d lanes were copied", len(copies))
	}
	// Some events of it, which keep their positions, under a prefix that was asked for.
	r.replay(t, "--sink=archive", "--from=stream", fmt.Sprintf("--lane=%d", lane), "--type=roundtrip.type1", "--to-s3-bucket=copy", "--to-s3-prefix=some", "--name=some")
	var some []sinks.Record
	for _, record := range live[lane] {
		if record.Type == "roundtrip.type1" {
			some = append(some, record)
		}
	}
	mustBeCopies(t, some, r.mustRead(t, "copy", "some")[lane], "some")
	if o := r.replay(t, "--sink=archive", "--to-s3-prefix=waybill", "--name=over"); o.status != 1 || !strings.Contains(o.err, "that of the live archive") {
		t.Errorf("%+v", o)
	}
	if o := r.replay(t, "--sink=archive", "--to-s3-bucket=nowhere", "--name=away"); o.status != 1 || !strings.Contains(o.err, "the bucket nowhere at ") || !strings.Contains(o.err, "it does not exist; create it, or correct --to-s3-bucket\n") {
		t.Errorf("%+v", o)
	}
}

// stored is how many events the state of a replay counts.
func (r *replayed) stored(t *testing.T, name string) int64 {
	t.Helper()
	kv, err := r.js.KeyValue(t.Context(), "waybill_replays")
	if err != nil {
		return 0
	}
	entry, err := kv.Get(t.Context(), name)
	if err != nil {
		return 0
	}
	var state struct{ Counts struct{ Events int64 } }
	if err := json.Unmarshal(entry.Value(), &state); err != nil {
		t.Fatal(err)
	}
	return state.Counts.Events
}

// mustKill starts a replay, waits until it has delivered something and stored that, and kills it.
func (r *replayed) mustKill(t *testing.T, name string, delivered func() int, args ...string) {
	t.Helper()
	had, stored := delivered(), r.stored(t, name)
	cmd := r.command(t, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "something is replayed", func() bool { return delivered() > had && r.stored(t, name) > stored })
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if cmd.ProcessState.Success() {
		t.Fatalf("it was done before it was killed: %s", out.String())
	}
}

// A replay is killed twice: each event comes to an endpoint at least once, in order, and to an archive
// exactly once.
func mustResumeAfterKills(t *testing.T, r *replayed, live map[int][]sinks.Record) {
	for _, from := range []string{"stream", "archive"} {
		name := "killed-" + from
		args := []string{"--sink=archive", "--from=" + from, "--name=" + name}
		written := func() int { return count(r.mustRead(t, r.S3.S3Bucket, "waybill/replays/"+name)) }
		for range 2 {
			r.mustKill(t, name, written, append(args, "--rate=30")...)
		}
		o := r.replay(t, args...)
		if o.status != 0 || o.Events != 3*replayEvents || o.Resumed == 0 || o.Resumed >= 3*replayEvents {
			t.Errorf("%s: %+v", from, o)
		}
		copies := r.mustRead(t, r.S3.S3Bucket, "waybill/replays/"+name)
		for lane := range live {
			mustBeCopies(t, live[lane], copies[lane], name)
		}
		e, _ := endpointtest.Start(t, nil)
		args = []string{"--sink=ingress", "--from=" + from, "--to-ingress-endpoint=" + e.Addr(), "--name=" + name + "-2"}
		taken := func() int { return int(e.Stats().Received) }
		for range 2 {
			r.mustKill(t, name+"-2", taken, append(args, "--rate=100")...)
		}
		if o := r.replay(t, args...); o.status != 0 || o.Events != 3*replayEvents || o.Resumed == 0 || o.Resumed >= 3*replayEvents {
			t.Errorf("%s: %+v", from, o)
		}
		for i, ledger := range r.ledgers {
			// What comes again is no inversion: it was there before.
			if report := verifyAt(t, ledger, "http://"+e.AdminAddr()); !report.Complete() || report.OutOfOrder > 0 || report.Double > 400 {
				t.Errorf("%s, plan %d: %+v", from, i, report)
			}
		}
	}
	// An interruption says how to go on.
	e, _ := endpointtest.Start(t, nil)
	cmd := r.command(t, "--sink=ingress", "--from=stream", "--rate=50", "--to-ingress-endpoint="+e.Addr(), "--name=interrupted")
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "something is replayed", func() bool { return e.Stats().Received > 0 })
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if status := cmd.ProcessState.ExitCode(); status != 1 || !strings.Contains(out.String(), "waybill replay --name=interrupted") {
		t.Errorf("status %d: %s", status, out.String())
	}
}

func mustReportRefusals(t *testing.T, r *replayed) {
	r.mustBehave(t, `{"refuse_type":"type2$"}`)
	o := r.replay(t, "--sink=ingress", "--from=stream", "--source=/roundtrip/replay-0/*")
	r.mustBehave(t, `{}`)
	if o.status != 3 || o.Refused == 0 || o.Refused+o.Events != replayEvents || !strings.Contains(o.err, "refused") {
		t.Errorf("%+v", o)
	}
	if letters, err := r.store.DeadLetters(t.Context(), 1000); err != nil || len(letters) != 0 {
		t.Errorf("dead letters: %v, %v", letters, err)
	}
}

// Replays run while events come in: the live path delivers these as if there were none.
func mustReplayUnderLoad(t *testing.T, r *replayed) {
	r.mustReset(t)
	e, _ := endpointtest.Start(t, nil)
	queues := r.mustQueues(t)
	accepted, wait := r.send(t, 6000)
	eventually(t, patience, "load", func() bool { return accepted.Load() > 500 })
	done := make(chan outcome, 2)
	begun := accepted.Load()
	span := []string{"--from=stream", "--until=" + r.until.Format(time.RFC3339Nano)}
	go func() {
		done <- r.replay(t, append(span, "--sink=ingress", "--name=load-ingress", "--to-ingress-endpoint="+e.Addr())...)
	}()
	go func() { done <- r.replay(t, append(span, "--sink=archive", "--name=load-archive")...) }()
	for range 2 {
		if o := <-done; o.status != 0 || o.Events != 2*replayEvents {
			t.Errorf("%+v", o)
		}
	}
	fmt.Fprintf(t.Output(), "accepted %d when the replays began and %d when they ended\n", begun, accepted.Load())
	ledger := wait()
	r.mustSettle(t, patience)
	r.mustHold(t, ledger)
	if report := verifyAt(t, ledger, r.EndpointAdmin); !report.OK() {
		t.Errorf("the live endpoint: %+v", report)
	}
	for i := range 2 {
		if report := verifyAt(t, r.ledgers[i], "http://"+e.AdminAddr()); !report.OK() {
			t.Errorf("plan %d: %+v", i, report)
		}
	}
	if n := r.Counters(t.Context()).Retransmits; n != 0 {
		t.Errorf("%d events were retransmitted", n)
	}
	// Each queue has given out every message of its lane once, and has all acks.
	stream, err := r.js.Stream(t.Context(), pipeline.EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "all is acked", func() bool {
		for _, queue := range r.mustQueues(t) {
			if queue.NumAckPending > 0 || queue.NumPending > 0 {
				return false
			}
		}
		return true
	})
	for name, now := range r.mustQueues(t) {
		messages := info.State.Subjects[now.Config.FilterSubject]
		was := queues[name]
		if was == nil || !was.Created.Equal(now.Created) || !reflect.DeepEqual(was.Config, now.Config) {
			t.Errorf("queue %s was changed", name)
		}
		if now.NumRedelivered > 0 || now.Delivered.Consumer != messages || now.AckFloor.Consumer != messages {
			t.Errorf("queue %s: %+v, %+v, of %d messages", name, now.Delivered, now.AckFloor, messages)
		}
	}
}

// mustQueues returns the durable consumers of EVENTS.
func (r *replayed) mustQueues(t *testing.T) map[string]*jetstream.ConsumerInfo {
	t.Helper()
	stream, err := r.js.Stream(t.Context(), pipeline.EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*jetstream.ConsumerInfo{}
	list := stream.ListConsumers(t.Context())
	for info := range list.Info() {
		if info.Config.Durable != "" {
			out[info.Name] = info
		}
	}
	if err := list.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}
