package process

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// mostReasons is how many are remembered at a time.
const mostReasons = 16

// wait tells the log why a process has no broker: each reason once until there is one, and not at each try.
type wait struct {
	nats NATS
	log  *slog.Logger
	conn atomic.Pointer[nats.Conn] // nil until the first try has failed

	mu   sync.Mutex
	told map[string]struct{}
}

func (w *wait) options() []nats.Option {
	return []nats.Option{
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectErrHandler(func(nc *nats.Conn, err error) {
			w.conn.Store(nc)
			w.tell(err)
		}),
		// Of a broker that answers, and does not let us in, nats.go tells nobody before it was connected once. It has the error here.
		nats.CustomReconnectDelay(func(int) time.Duration {
			if nc := w.conn.Load(); nc != nil {
				w.tell(nc.LastError())
			}
			return reconnectWait + rand.N(reconnectJitter) //nolint:gosec // it only spreads the tries
		}),
		nats.ErrorHandler(func(nc *nats.Conn, _ *nats.Subscription, err error) {
			if nc.IsConnected() {
				w.log.Warn("broker", "error", err)
			} else {
				w.tell(err)
			}
		}),
		nats.ConnectHandler(func(nc *nats.Conn) {
			w.forget()
			w.log.Info("connected to the broker", "server", nc.ConnectedServerName())
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			w.forget()
			tellReconnected(w.log, nc)
		}),
	}
}

func (w *wait) tell(err error) {
	if err == nil || errors.Is(err, nats.ErrNoServers) { // which says of several that none is there: the next try says why
		return
	}
	w.mu.Lock()
	reason := innermost(err)
	_, known := w.told[reason]
	if len(w.told) == mostReasons {
		clear(w.told)
	}
	w.told[reason] = struct{}{}
	w.mu.Unlock()
	if known {
		return
	}
	args := []any{"url", w.nats.redacted(), "error", err}
	if _, do := mend(err); do != "" {
		args = append(args, "do", do)
	}
	w.log.Warn("waiting for the broker", args...)
}

func (w *wait) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.told)
}

// innermost is the text of an error's own cause, without the addresses around it, of which each try may have another.
func innermost(err error) string {
	for {
		cause := errors.Unwrap(err)
		if cause == nil {
			return err.Error()
		}
		err = cause
	}
}
