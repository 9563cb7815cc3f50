package tracing

import (
	"context"
	"log/slog"
	"sync"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// watchedExporter logs when spans can no longer be sent, and when they can again. What was not
// sent is dropped.
type watchedExporter struct {
	sdktrace.SpanExporter
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	failing bool
	dropped int // spans, while failing
}

var _ sdktrace.SpanExporter = (*watchedExporter)(nil)

// ExportSpans implements sdktrace.SpanExporter. Its error is told here, and nowhere else.
func (w *watchedExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := w.SpanExporter.ExportSpans(ctx, spans)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil && !w.failing:
		w.log.Warn("spans cannot be sent; they are dropped until they can", "error", err)
		w.failing, w.dropped = true, len(spans)
	case err != nil:
		w.dropped += len(spans)
	case w.failing:
		w.log.Info("spans can be sent again", "dropped", w.dropped)
		w.failing = false
	}
	return nil
}
