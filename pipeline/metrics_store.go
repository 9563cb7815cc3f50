package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/dbconv"
)

// storeMetrics records the store's operations: one of them is a transaction, or all attempts
// at it, whatever its statements are.
type storeMetrics struct {
	duration metric.Float64Histogram
}

// poolName names the store's connections in a metric.
const poolName = "waybill"

func newStoreMetrics(m metric.Meter, pool *pgxpool.Pool) (*storeMetrics, error) {
	if m == nil {
		m = noop.NewMeterProvider().Meter("")
	}
	var errs [3]error
	duration, err := dbconv.NewClientOperationDuration(m)
	errs[0] = err
	count, err := dbconv.NewClientConnectionCountObservable(m)
	errs[1] = err
	most, err := dbconv.NewClientConnectionMaxObservable(m)
	errs[2] = err
	if err := metricsError(errs[:]); err != nil {
		return nil, err
	}
	name := semconv.DBClientConnectionPoolName(poolName)
	used, idle := metric.WithAttributes(name, semconv.DBClientConnectionStateUsed), metric.WithAttributes(name, semconv.DBClientConnectionStateIdle)
	_, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		stat := pool.Stat()
		o.ObserveInt64(count.Inst(), int64(stat.AcquiredConns()), used)
		o.ObserveInt64(count.Inst(), int64(stat.IdleConns()), idle)
		o.ObserveInt64(most.Inst(), int64(stat.MaxConns()), metric.WithAttributes(name))
		return nil
	}, count.Inst(), most.Inst())
	if err != nil {
		return nil, fmt.Errorf("observe the connections: %w", err)
	}
	return &storeMetrics{duration.Inst()}, nil
}

// time measures an operation from now until the returned function is called, which is told how
// it ended. It may be called on nil.
func (s *storeMetrics) time(operation string) func(*error) {
	if s == nil {
		return func(*error) {}
	}
	began := time.Now()
	return func(err *error) {
		attributes := append(make([]attribute.KeyValue, 0, 3), semconv.DBSystemNamePostgreSQL, semconv.DBOperationName(operation))
		if *err != nil {
			attributes = append(attributes, semconv.ErrorTypeKey.String(storeErrorType(*err)))
		}
		s.duration.Record(context.Background(), time.Since(began).Seconds(), metric.WithAttributeSet(attribute.NewSet(attributes...)))
	}
}

// storeErrorType names an error of Postgres in a metric: by its SQLSTATE, where it has one.
func storeErrorType(err error) string {
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr):
		return pgErr.Code
	case errors.Is(err, errAcceptedBefore), errors.Is(err, errServerChanged):
		return "taken_back"
	case errors.Is(err, errLogInUse):
		return "in_use"
	case errors.Is(err, ErrOutcomeUnknown):
		return "outcome_unknown"
	default:
		return contextErrorType(err)
	}
}
