package intake

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/httpconv"
	"go.opentelemetry.io/otel/semconv/v1.43.0/rpcconv"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// servingMetrics are what OpenTelemetry's conventions have for servers: the whole time of a
// request, answer included, whatever becomes of it.
type servingMetrics struct {
	http metric.Float64Histogram
	rpc  metric.Float64Histogram

	// The attributes of each kind of answer, made once. There are few kinds: of methods and paths
	// only known ones are told apart.
	httpSets sync.Map // httpAnswer → metric.MeasurementOption
	rpcSets  sync.Map // rpcAnswer → metric.MeasurementOption
}

// httpAnswer and rpcAnswer are what the time of a request is recorded by.
type (
	httpAnswer struct {
		method, route string
		status        int
	}
	rpcAnswer struct {
		method string
		code   codes.Code
	}
)

func newServingMetrics(m metric.Meter) (*servingMetrics, error) {
	h, err := httpconv.NewServerRequestDuration(m)
	if err != nil {
		return nil, err
	}
	r, err := rpcconv.NewServerCallDuration(m)
	if err != nil {
		return nil, err
	}
	return &servingMetrics{http: h.Inst(), rpc: r.Inst()}, nil
}

// answeredHTTP takes note of a request's answer. route is "" where there is none.
func (s *servingMetrics) answeredHTTP(r *http.Request, route string, code int, took time.Duration) {
	a := httpAnswer{knownMethod(r.Method), route, code}
	of, ok := s.httpSets.Load(a)
	if !ok {
		of = metric.WithAttributeSet(a.attributes())
		s.httpSets.Store(a, of)
	}
	s.http.Record(context.Background(), took.Seconds(), of.(metric.MeasurementOption))
}

// knownMethod is the method, or _OTHER for one that a client made up.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return method
	default:
		return "_OTHER"
	}
}

func (a httpAnswer) attributes() attribute.Set {
	out := []attribute.KeyValue{
		semconv.HTTPRequestMethodKey.String(a.method), semconv.HTTPResponseStatusCode(a.status), semconv.URLScheme("http"),
	}
	if a.route != "" {
		out = append(out, semconv.HTTPRoute(a.route))
	}
	if a.status >= http.StatusInternalServerError {
		out = append(out, semconv.ErrorTypeKey.String(strconv.Itoa(a.status)))
	}
	return attribute.NewSet(out...)
}

// answeredRPC takes note of the end of a call. method is as gRPC has it, and one of the server's.
func (s *servingMetrics) answeredRPC(method string, err error, took time.Duration) {
	a := rpcAnswer{method, status.Code(err)}
	of, ok := s.rpcSets.Load(a)
	if !ok {
		of = metric.WithAttributeSet(a.attributes())
		s.rpcSets.Store(a, of)
	}
	s.rpc.Record(context.Background(), took.Seconds(), of.(metric.MeasurementOption))
}

func (a rpcAnswer) attributes() attribute.Set {
	out := []attribute.KeyValue{
		semconv.RPCSystemNameGRPC, semconv.RPCMethod(strings.TrimPrefix(a.method, "/")), semconv.RPCResponseStatusCode(a.code.String()),
	}
	switch a.code { // those that the conventions take for a server's own fault
	case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		out = append(out, semconv.ErrorTypeKey.String(a.code.String()))
	}
	return attribute.NewSet(out...)
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(code int) {
	if w.status == 0 && code >= http.StatusOK {
		w.status = code
	}
	w.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(body []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(body)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// timed records the time of the requests that next answers.
func (h *httpFront) timed(route string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		watched := &statusWriter{ResponseWriter: w}
		next(watched, r)
		h.intake.metrics.serving.answeredHTTP(r, route, watched.status, time.Since(began))
	}
}

// timed records the time of a call.
func (g *GRPC) timed(method string, call func() error) error {
	began := time.Now()
	err := call()
	g.intake.metrics.serving.answeredRPC(method, err, time.Since(began))
	return err
}
