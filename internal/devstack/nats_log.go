package devstack

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/nats-io/nats-server/v2/server"
)

// natsLog passes on what a nats-server logs and remembers its fatal error, which is the
// only word it gives on why it does not start.
type natsLog struct {
	logger *slog.Logger
	fatal  atomic.Pointer[string]
}

var _ server.Logger = (*natsLog)(nil)

// newNATSLog logs to logger; nil: to nobody.
func newNATSLog(logger *slog.Logger) *natsLog {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &natsLog{logger: logger}
}

func (l *natsLog) Noticef(format string, v ...any) { l.write(slog.LevelInfo, format, v) }
func (l *natsLog) Warnf(format string, v ...any)   { l.write(slog.LevelWarn, format, v) }
func (l *natsLog) Errorf(format string, v ...any)  { l.write(slog.LevelError, format, v) }
func (l *natsLog) Debugf(format string, v ...any)  { l.write(slog.LevelDebug, format, v) }
func (l *natsLog) Tracef(format string, v ...any)  { l.write(slog.LevelDebug, format, v) }

func (l *natsLog) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.fatal.Store(&text)
	l.write(slog.LevelError, format, v)
}

func (l *natsLog) write(level slog.Level, format string, v []any) {
	l.logger.Log(context.Background(), level, fmt.Sprintf(format, v...))
}
