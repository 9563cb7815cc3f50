// Package e2e runs the whole system, every part a process of its own, and breaks it while
// events go through.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// patience bounds a wait for what must come about; no test waits for it to pass.
const patience = 3 * time.Minute

// executable is the waybill binary under test, built once.
var executable string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "waybill-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	executable = filepath.Join(dir, "waybill")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", executable, "github.com/waybillhq/waybill/cmd/waybill")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build waybill: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// system is a running stack.
type system struct {
	*devrun.Stack
	dir    string
	config devrun.Config
	store  *pipeline.Store
	stop   func() // in order; safe to call again
}

func mustStart(t *testing.T, change func(*devrun.Config)) *system {
	t.Helper()
	// Not t.TempDir: Postgres runs as another user, who must be able to pass through.
	dir, err := os.MkdirTemp("", "waybill-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	config := devrun.DefaultConfig()
	config.Dir, config.Executable, config.FreePorts = dir, executable, true
	config.ArchiveLinger = 200 * time.Millisecond
	config.Env = os.Environ()
	config.Say = func(line string) { fmt.Fprintln(t.Output(), line) }
	if change != nil {
		change(&config)
	}
	s := mustStartIn(t, config)
	t.Cleanup(func() {
		s.stop()
		if err := s.Remove(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustStartIn(t *testing.T, config devrun.Config) *system {
	t.Helper()
	stack, err := devrun.New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := stack.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := &system{Stack: stack, dir: config.Dir, config: config}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() { defer close(ran); stack.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		if s.store != nil {
			s.store.Close()
		}
		cancel()
		<-ran
		if err := stack.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	if s.store, err = stack.OpenStore(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// pid is the process id of a part, or 0 while it is down.
func (s *system) pid(name string) int {
	for _, p := range s.Parts() {
		if p.Name == name {
			return p.PID
		}
	}
	return 0
}

// mustSignal sends a signal to a part and, if it ends it, waits until it was started again.
func (s *system) mustKill(t *testing.T, name string, signal syscall.Signal) {
	t.Helper()
	pid := s.pid(name)
	if pid == 0 {
		t.Fatalf("%s does not run", name)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		t.Fatalf("signal %s: %v", name, err)
	}
	eventually(t, patience, name+" is started again", func() bool { p := s.pid(name); return p != 0 && p != pid })
}

func (s *system) mustBehave(t *testing.T, behaviour string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.EndpointAdmin+"/behaviour", strings.NewReader(behaviour))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusNoContent {
		t.Fatalf("the endpoint answers %s", response.Status)
	}
}

// pending is the number of events that wait for a sink.
func (s *system) pending(sink string) int64 {
	survey, err := s.store.Survey(context.Background())
	if err != nil {
		return -1
	}
	return survey.BySink()[sink].Events
}

func (s *system) mustSettle(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, "everything is settled", func() bool {
		survey, err := s.store.Survey(t.Context())
		return err == nil && len(survey.Backlogs) == 0
	})
}

// send sends a plan in the background.
func (s *system) send(t *testing.T, events int) (accepted *atomic.Int64, wait func() *roundtrip.Ledger) {
	t.Helper()
	config := roundtrip.DefaultSenderConfig(s.HTTP, s.GRPC)
	config.Progress = new(atomic.Int64)
	plan := roundtrip.DefaultPlan(strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())), events)
	type result struct {
		ledger *roundtrip.Ledger
		err    error
	}
	done := make(chan result, 1)
	go func() {
		ledger, err := roundtrip.Send(t.Context(), config, plan)
		done <- result{ledger, err}
	}()
	return config.Progress, func() *roundtrip.Ledger {
		t.Helper()
		r := <-done
		if r.err != nil {
			t.Fatal(r.err)
		}
		if err := r.ledger.NotAccepted(); err != nil {
			t.Fatal(err)
		}
		return r.ledger
	}
}

func (s *system) mustVerify(t *testing.T, ledger *roundtrip.Ledger, sink string) roundtrip.Report {
	t.Helper()
	var deliveries iter.Seq2[roundtrip.Delivery, error]
	if sink == "ingress" {
		deliveries = roundtrip.EndpointDeliveries(t.Context(), s.EndpointAdmin, 0)
	} else {
		reader, err := s.S3.ArchiveReader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		deliveries = roundtrip.ArchiveDeliveries(t.Context(), reader, nil)
	}
	report, err := ledger.Verify(sink, deliveries)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(t.Output(), "%+v\n", report)
	return report
}

// mustHold checks what holds whatever was broken: nothing missing, nothing wrong, no gap, and
// nothing double in the archive.
func (s *system) mustHold(t *testing.T, ledger *roundtrip.Ledger) {
	t.Helper()
	for _, sink := range []string{"ingress", "archive"} {
		r := s.mustVerify(t, ledger, sink)
		if !r.Complete() {
			t.Errorf("%s lacks events or has wrong ones: %+v", sink, r)
		}
		if sink == "archive" && r.Double > 0 {
			t.Errorf("the archive has %d events more than once: %+v", r.Double, r)
		}
	}
	letters, err := s.store.DeadLetters(t.Context(), 1000)
	if err != nil || len(letters) != 0 {
		t.Errorf("dead letters: %v, %v", letters, err)
	}
}

func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Each of the processes is killed with -9 under load, twice, and so are the servers that
// keep what they acknowledged.
func TestKilledUnderLoad(t *testing.T) {
	s := mustStart(t, func(c *devrun.Config) { c.Ingests, c.Forwarders = 2, 2 })
	var names []string
	for _, p := range s.Parts() {
		names = append(names, p.Name)
	}
	victims := []string{}
	for _, name := range names {
		for _, kind := range []string{"ingest", "forwarder", "janitor", "nats-server"} {
			if strings.HasPrefix(name, kind) {
				victims = append(victims, name)
			}
		}
	}
	if len(victims) != 6 {
		t.Fatalf("victims are %v of %v, want 2 ingests, 2 forwarders, a janitor and a nats-server", victims, names)
	}
	const events = 6000
	accepted, wait := s.send(t, events)
	for round, at := 0, int64(0); round < 2; round++ {
		for _, victim := range victims {
			at += events / int64(2*len(victims)+2)
			eventually(t, patience, "load goes on", func() bool { return accepted.Load() >= at })
			s.mustKill(t, victim, syscall.SIGKILL)
		}
	}
	ledger := wait()
	s.mustSettle(t, patience)
	s.mustHold(t, ledger)
}

// The whole JetStream directory is deleted while its server is down, with a backlog in it.
func TestJetStreamDeleted(t *testing.T) {
	s := mustStart(t, nil)
	s.mustBehave(t, `{"down":true}`)
	accepted, wait := s.send(t, 3000)
	eventually(t, patience, "load", func() bool { return accepted.Load() > 1500 })
	before := s.mustStreamCreated(t)
	pid := s.pid("nats-server")
	// It stands still meanwhile, or its successor could come before its directory is gone.
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(s.dir, "nats"), filepath.Join(s.dir, "deleted")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(s.dir, "deleted")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ledger := wait() // producers do not notice
	eventually(t, patience, "the stream is made anew", func() bool {
		created, err := s.streamCreated(t)
		return err == nil && !created.Equal(before)
	})
	s.mustBehave(t, `{"down":false}`)
	s.mustSettle(t, patience)
	s.mustHold(t, ledger)
}

func (s *system) streamCreated(t *testing.T) (time.Time, error) {
	nc, err := nats.Connect(s.NATSURL)
	if err != nil {
		return time.Time{}, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return time.Time{}, err
	}
	stream, err := js.Stream(t.Context(), pipeline.EventsStream)
	if err != nil {
		return time.Time{}, err
	}
	return stream.CachedInfo().Created, nil
}

func (s *system) mustStreamCreated(t *testing.T) time.Time {
	t.Helper()
	created, err := s.streamCreated(t)
	if err != nil {
		t.Fatal(err)
	}
	return created
}

// One sink is down: the other gets everything, a stop finishes in time and loses nothing,
// and a second start on the same directory goes on.
func TestSinkDownAndRestart(t *testing.T) {
	s := mustStart(t, nil)
	s.mustBehave(t, `{"down":true}`)
	_, wait := s.send(t, 2000)
	ledger := wait()
	eventually(t, patience, "the archive has everything", func() bool { return s.pending("archive") == 0 })
	if n := s.pending("ingress"); n != int64(ledger.Accepted()) {
		t.Fatalf("%d events wait for the endpoint that is down, want all %d", n, ledger.Accepted())
	}
	if r := s.mustVerify(t, ledger, "archive"); !r.OK() {
		t.Fatalf("archive: %+v", r)
	}
	start := time.Now()
	s.stop()
	if took := time.Since(start); took > 90*time.Second {
		t.Fatalf("the stop took %v", took)
	}
	again := mustStartIn(t, s.config)
	again.mustSettle(t, patience)
	again.mustHold(t, ledger)
}

// An existing ChipIngress client batches up to just under 10 MiB, pings every ten seconds
// and takes a missing result for not delivered.
func TestExistingBatchingClient(t *testing.T) {
	s := mustStart(t, nil)
	conn, err := grpc.NewClient(s.GRPC[0], grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := chipingress.NewChipIngressClient(conn)
	batch := &chipingress.CloudEventBatch{}
	payload := bytes.Repeat([]byte{7}, 64<<10)
	for size := 0; ; {
		e := beholderEvent(len(batch.Events), payload)
		if size += proto.Size(e) + 8; size > 10<<20-10<<10 {
			break
		}
		batch.Events = append(batch.Events, e)
	}
	bad := len(batch.Events) / 2
	batch.Events[bad].Type = ""
	response, err := client.PublishBatch(t.Context(), batch)
	if err != nil {
		t.Fatal(err)
	}
	if len(response.Results) != len(batch.Events) {
		t.Fatalf("%d results for %d events", len(response.Results), len(batch.Events))
	}
	for i, r := range response.Results {
		if (r.Error != nil) != (i == bad) || r.EventId != batch.Events[i].Id {
			t.Fatalf("result %d: %v", i, r)
		}
	}
	s.mustSettle(t, patience)
	got := 0
	for d, err := range roundtrip.EndpointDeliveries(t.Context(), s.EndpointAdmin, 0) {
		if err != nil {
			t.Fatal(err)
		}
		got++
		if d.Seqnum != int64(got) {
			t.Fatalf("event %s has seqnum %d, want Waybill's own %d", d.ID, d.Seqnum, got)
		}
	}
	if got != len(batch.Events)-1 {
		t.Fatalf("the endpoint has %d events, want %d", got, len(batch.Events)-1)
	}
}

// beholderEvent is an event as existing emitters send it.
func beholderEvent(i int, payload []byte) *pb.CloudEvent {
	text := func(s string) *pb.CloudEventAttributeValue {
		return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: s}}
	}
	e := &pb.CloudEvent{
		Id: fmt.Sprintf("event-%d", i), Source: "beholder", SpecVersion: "1.0", Type: "workflow.executed",
		Attributes: map[string]*pb.CloudEventAttributeValue{
			"datacontenttype": text("application/protobuf"), "emitter": text("test"),
			"idempotencykey": text(strings.Repeat("ab", 32)), "seqnum": text("4711"),
		},
	}
	e.Data = protoData(payload)
	return e
}

// The operator's command on the system that runs.
func TestStatusNamesWhatIsAlive(t *testing.T) {
	s := mustStart(t, func(c *devrun.Config) { c.Forwarders = 2 })
	eventually(t, patience, "all lanes have an owner", func() bool {
		out, err := s.waybill(t, "status")
		return err == nil && strings.Contains(out, "forwarder") && strings.Contains(out, "janitor") && strings.Contains(out, "ingest")
	})
}

// waybill runs the command against the system.
func (s *system) waybill(t *testing.T, args ...string) (string, error) {
	t.Helper()
	env, err := os.ReadFile(filepath.Join(s.dir, devrun.EnvironmentFile))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), executable, args...)
	cmd.Env = append(os.Environ(), strings.Split(strings.TrimSpace(string(env)), "\n")...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), err
}
