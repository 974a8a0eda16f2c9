package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
)

// logger passes the server's log lines to slog, and keeps the first fatal one: only by that does
// the embedded server report that it can't listen or can't open its store.
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

// Noticef logs what the server finds noteworthy, such as its banner; it is not noteworthy for the
// process that embeds it.
func (l *logger) Noticef(format string, v ...any) { l.write(slog.LevelDebug, format, v) }

// Debugf logs for debugging.
func (l *logger) Debugf(format string, v ...any) { l.write(slog.LevelDebug, format, v) }

// Tracef logs protocol traces, which are never turned on.
func (l *logger) Tracef(format string, v ...any) { l.write(slog.LevelDebug, format, v) }

// Warnf logs possible problems.
func (l *logger) Warnf(format string, v ...any) { l.write(slog.LevelWarn, format, v) }

// Errorf logs problems that the server survives.
func (l *logger) Errorf(format string, v ...any) { l.write(slog.LevelWarn, format, v) }

// Fatalf records why the server can't start.
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
