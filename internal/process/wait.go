package process

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/internal/refusal"
)

// wait tells the log why a process has no broker, and what a broker that it has does not permit:
// each reason once until it is connected again, and now and then while it lasts.
type wait struct {
	nats NATS
	log  *slog.Logger
	why  refusal.Teller
	conn atomic.Pointer[nats.Conn] // nil until the first try has failed
}

func (w *wait) options() []nats.Option {
	return []nats.Option{
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectErrHandler(func(nc *nats.Conn, err error) {
			w.conn.Store(nc)
			w.tell(err)
		}),
		// If a broker answers, and does not let us in, nats.go reports that only after a first
		// connection. Before that, the error is only here.
		nats.CustomReconnectDelay(func(int) time.Duration {
			if nc := w.conn.Load(); nc != nil {
				w.tell(nc.LastError())
			}
			return reconnectWait + rand.N(reconnectJitter) //nolint:gosec // it only spreads the tries
		}),
		nats.ErrorHandler(func(nc *nats.Conn, _ *nats.Subscription, err error) {
			if _, refused := refusal.Of(err); refused || !nc.IsConnected() {
				w.tell(err)
			} else {
				w.log.Warn("broker", "error", err)
			}
		}),
		nats.ConnectHandler(func(nc *nats.Conn) {
			w.why.Forget()
			w.log.Info("connected to the broker", "server", nc.ConnectedServerName())
			w.tellLimits(nc)
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			w.why.Forget()
			tellReconnected(w.log, nc)
			w.tellLimits(nc)
		}),
	}
}

func (w *wait) tell(err error) {
	if err == nil || errors.Is(err, nats.ErrNoServers) { // the next try says more
		return
	}
	w.why.Tell(err, "url", w.nats.redacted())
}

// tellLimits says of a broker that lets us in what it can't carry.
func (w *wait) tellLimits(nc *nats.Conn) {
	if err := refusal.Limits(nc); err != nil {
		w.tell(err)
	}
}
