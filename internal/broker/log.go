package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
)

// logger brings the server's log lines to slog, and keeps the first fatal one: the embedded server reports so, and in no
// other way, that it can't listen or can't open its store.
type logger struct {
	log *slog.Logger

	mu    sync.Mutex
	first error
}

func (l *logger) debugging() bool { return l.log.Enabled(context.Background(), slog.LevelDebug) }

func (l *logger) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

// Noticef is for what the server finds noteworthy, such as its banner; to the process that embeds it, it is not.
func (l *logger) Noticef(format string, v ...any) { l.write(slog.LevelDebug, format, v) }

// Debugf is for debugging.
func (l *logger) Debugf(format string, v ...any) { l.write(slog.LevelDebug, format, v) }

// Tracef is for protocol traces, which are never turned on.
func (l *logger) Tracef(format string, v ...any) { l.write(slog.LevelDebug, format, v) }

// Warnf is for what may become a trouble.
func (l *logger) Warnf(format string, v ...any) { l.write(slog.LevelWarn, format, v) }

// Errorf is for troubles that the server survives.
func (l *logger) Errorf(format string, v ...any) { l.write(slog.LevelWarn, format, v) }

// Fatalf is for what keeps the server from starting.
func (l *logger) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		l.first = fmt.Errorf(format, v...)
	}
}

func (l *logger) write(level slog.Level, format string, v []any) {
	ctx := context.Background() // the server's interface has none
	if l.log.Enabled(ctx, level) {
		l.log.Log(ctx, level, "nats-server", "says", fmt.Sprintf(format, v...))
	}
}
