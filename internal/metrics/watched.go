package metrics

import (
	"context"
	"log/slog"
	"sync"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// watchedExporter logs when metrics can no longer be sent, and when they can again.
type watchedExporter struct {
	sdkmetric.Exporter
	log *slog.Logger

	mu      sync.Mutex // guards failing
	failing bool
}

var _ sdkmetric.Exporter = (*watchedExporter)(nil)

// Export implements sdkmetric.Exporter. Its error is told here, and nowhere else.
func (w *watchedExporter) Export(ctx context.Context, all *metricdata.ResourceMetrics) error {
	err := w.Exporter.Export(ctx, all)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil && !w.failing:
		w.log.Warn("metrics cannot be sent by OTLP; it is tried again", "error", err)
	case err == nil && w.failing:
		w.log.Info("metrics can be sent by OTLP again")
	}
	w.failing = err != nil
	return nil
}
