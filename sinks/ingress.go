package sinks

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/pipeline/failpoint"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

const (
	// ingressReconnectMax bounds the wait between attempts to connect. gRPC's own
	// default of two minutes would hold lanes back long after the endpoint is up again.
	ingressReconnectMax = 2 * time.Second
	// ingressConnectTimeout bounds one attempt to connect, TLS included.
	ingressConnectTimeout = 5 * time.Second
	// maxIngressResponse is far above any response: one that were too large would look
	// like a request that is.
	maxIngressResponse = 64 << 20
)

// Ingress is the sink that delivers to a ChipIngress endpoint with PublishBatch.
//
// # What becomes of an event
//
// Its result decides: no error is Delivered. VALIDATION_FAILED, SCHEMA_MISSING,
// ENCODE_ERROR and DOMAIN_MISCONFIGURATION are Refused with that code: none of them
// passes without somebody's doing, and until then the rest of the lane, other domains
// included, would wait. The event is kept as a dead letter and can be requeued once
// the schema or the domain is in order.
//
// UNKNOWN may be a fault of the endpoint that passes, or an event it chokes on. It is
// Retry, until the event was answered so for IngressConfig.UnknownFor while the endpoint
// took other events; then the event is Refused with code UNKNOWN. While the endpoint
// takes nothing, nothing is refused.
//
// A result that is missing, or names another event, says nothing: Retry, counted.
//
// # What becomes of a request
//
// Too large for the endpoint: it is halved, and an event that is too large alone is
// Refused with code TOO_LARGE. INVALID_ARGUMENT: it is halved until the event at fault
// is alone, which is Refused with that code. Every other status, wrong credentials and
// overload included, is Retry for the whole request, but for an event in it that cannot be
// decoded as a CloudEvent: no ingest lets such a one in, and no endpoint can take it; it is
// Refused with the code MALFORMED_EVENT, and the others are sent without it.
//
// A Send stops at the first request that leaves something to be retried, since what
// comes after would overtake it.
//
// Ingress is safe for use by many lanes at once. Close it after the last Send.
type Ingress struct {
	cfg     IngressConfig
	conns   []*grpc.ClientConn
	headers metadata.MD
	codec   grpc.CallOption
	metrics *ingressMetrics

	// delivered is when the endpoint last took an event, in Unix nanoseconds.
	delivered atomic.Int64

	mu sync.Mutex // guards suspects
	// suspects are the events answered UNKNOWN by the last Send of each lane.
	suspects map[int]ingressSuspects
}

var _ pipeline.Sink = (*Ingress)(nil)

// ingressSuspects maps events to when they were first answered UNKNOWN.
type ingressSuspects map[ingressEventKey]time.Time

type ingressEventKey struct {
	batch pipeline.BatchID
	index int
}

// NewIngress returns a sink that connects with its first call. The error is one of the
// configuration.
func NewIngress(cfg IngressConfig) (*Ingress, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	metrics, err := newIngressMetrics(cfg)
	if err != nil {
		return nil, fmt.Errorf("ingress sink: create instruments: %w", err)
	}
	options, err := cfg.dialOptions()
	if err != nil {
		return nil, err
	}
	s := &Ingress{
		cfg:      cfg,
		headers:  cfg.metadata(),
		codec:    grpc.ForceCodecV2(newIngressCodec()),
		metrics:  metrics,
		suspects: make(map[int]ingressSuspects),
	}
	for range cfg.Connections {
		conn, err := grpc.NewClient(cfg.Endpoint, options...)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("ingress sink: Endpoint (WAYBILL_INGRESS_ENDPOINT) %q: %w", cfg.Endpoint, err), s.Close())
		}
		s.conns = append(s.conns, conn)
	}
	return s, nil
}

func (c IngressConfig) dialOptions() ([]grpc.DialOption, error) {
	creds := insecure.NewCredentials()
	if c.TLS.Enabled {
		config, err := c.TLS.load()
		if err != nil {
			return nil, err
		}
		creds = credentials.NewTLS(config)
	}
	reconnect := backoff.DefaultConfig
	reconnect.MaxDelay = ingressReconnectMax
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithUserAgent("waybill"),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: ingressConnectTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxIngressResponse)),
		// Repeating is the lane worker's: it knows what else waits.
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
	}
	if c.KeepaliveTime > 0 {
		options = append(options, grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: c.KeepaliveTime, Timeout: c.KeepaliveTimeout, PermitWithoutStream: true,
		}))
	}
	return append(options, c.DialOptions...), nil
}

func (c IngressConfig) metadata() metadata.MD {
	md := metadata.New(c.Headers)
	if c.User != "" {
		md.Set("authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(c.User+":"+c.Password)))
	}
	return md
}

// Name returns the name of the sink.
func (s *Ingress) Name() string { return s.cfg.Name }

// Limits returns the limits of one request.
func (s *Ingress) Limits() pipeline.Limits {
	return pipeline.Limits{Events: s.cfg.MaxRequestEvents, Bytes: s.cfg.MaxRequestBytes, Linger: s.cfg.Linger}
}

// Probe pings the endpoint and logs what it finds. It fails only with ctx: an endpoint
// that is down, or refuses this client for now, must not keep the other sinks waiting.
func (s *Ingress) Probe(ctx context.Context) error {
	answer, err := s.Ping(ctx)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("ingress sink: probe %s: %w", s.cfg.Endpoint, ctx.Err())
	case err != nil:
		s.cfg.Log.WarnContext(ctx, "ingress endpoint does not answer; its lanes will keep trying",
			"sink", s.cfg.Name, "endpoint", s.cfg.Endpoint, "error", err)
	default:
		s.cfg.Log.InfoContext(ctx, "ingress endpoint answers",
			"sink", s.cfg.Name, "endpoint", s.cfg.Endpoint, "answer", ingressReason(answer))
	}
	return nil
}

// Ping asks the endpoint whether it is there and returns its words.
func (s *Ingress) Ping(ctx context.Context) (string, error) {
	ctx, cancel := s.callContext(ctx)
	defer cancel()
	pong, err := chipingress.NewChipIngressClient(s.conns[0]).Ping(ctx, &chipingress.EmptyRequest{})
	if err != nil {
		return "", fmt.Errorf("ping %s: %w", s.cfg.Endpoint, err)
	}
	return pong.GetMessage(), nil
}

// Send delivers items in order and returns one result each.
func (s *Ingress) Send(ctx context.Context, lane int, items []pipeline.Item) ([]pipeline.Result, error) {
	a := s.newAttempt(ctx, lane, items)
	for _, span := range splitIngress(items, s.cfg.MaxRequestBytes, s.cfg.MaxRequestEvents) {
		if !a.deliver(span) {
			break
		}
	}
	a.remember()
	return a.outcome()
}

// Close ends the connections. Calls under way fail.
func (s *Ingress) Close() error {
	var errs []error
	for _, conn := range s.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// publish makes one call and records it.
func (s *Ingress) publish(ctx context.Context, lane int, request ingressRequest) (*chipingress.PublishResponse, error) {
	ctx, cancel := s.callContext(ctx)
	defer cancel()
	conn := s.conns[lane%len(s.conns)]
	response := new(chipingress.PublishResponse)
	start := time.Now()
	failpoint.Hit("forwarder/before-send")
	err := conn.Invoke(ctx, chipingress.ChipIngress_PublishBatch_FullMethodName, request, response, s.codec)
	err = failpoint.Err("forwarder/after-send", err)
	code := status.Code(err)
	s.metrics.request(ctx, code, time.Since(start), len(request), request.size())
	if code != codes.OK {
		return nil, fmt.Errorf("publish %d events to %s: %w", len(request), s.cfg.Endpoint, err)
	}
	return response, nil
}

func (s *Ingress) callContext(ctx context.Context) (context.Context, context.CancelFunc) {
	if outgoing, ok := metadata.FromOutgoingContext(ctx); ok {
		ctx = metadata.NewOutgoingContext(ctx, metadata.Join(outgoing, s.headers))
	} else {
		ctx = metadata.NewOutgoingContext(ctx, s.headers)
	}
	return context.WithTimeout(ctx, s.cfg.Timeout)
}

func (s *Ingress) laneSuspects(lane int) ingressSuspects {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.suspects[lane]
}

func (s *Ingress) setSuspects(lane int, suspects ingressSuspects) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(suspects) == 0 {
		delete(s.suspects, lane)
		return
	}
	s.suspects[lane] = suspects
}
