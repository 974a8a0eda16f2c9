package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/registry/internal/outbox"
)

// metrics is the metrics of one registry.
type metrics struct {
	requests *prometheus.CounterVec
	batch    prometheus.Histogram
	decided  prometheus.Histogram
	lost     prometheus.Counter
	letters  *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omi_registry_requests_total",
			Help: "Requests, by kind and result: committed, duplicate, answered_before, unanswerable, unanswered, or the reason of the refusal.",
		}, []string{"kind", "result"}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "omi_registry_batch_requests", Help: "Requests in a batch.", Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}),
		decided: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "omi_registry_stored_to_decided_seconds",
			Help:    "Time from when JetStream stored a request to its commit or refusal.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18),
		}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "omi_registry_lost_races_total",
			Help: "Services of a batch that were in conflict and were decided again: another replica changed them first, or a key or nonce was used before.",
		}),
		letters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omi_registry_dead_letters_total",
			Help: "Requests that could not be decided and were set aside, by reason: panic or error. See omi-registry deadletters.",
		}, []string{"reason"}),
	}
	for _, reason := range []string{consume.Panics, consume.Fails} {
		// It starts at 0, so that the first dead letter is an increase, which an alert sees.
		m.letters.WithLabelValues(reason)
	}
	r.MustRegister(m.requests, m.batch, m.decided, m.lost, m.letters)
	return m
}

// Errors of [Registry.Checks], for [errors.Is].
var (
	// ErrDegraded means that the registry goes on with its work in spite of the error.
	ErrDegraded = health.ErrDegraded
	// ErrRestart means that only a restart of the process helps.
	ErrRestart = health.ErrRestart
	// ErrUnpublished means that committed changes can't be announced. They wait in the outbox.
	ErrUnpublished = outbox.ErrUnpublished
	// ErrNoSpace means that the broker takes no more events or receipts because it has no space
	// left. Committed changes wait in the outbox.
	ErrNoSpace = outbox.ErrNoSpace
)

// Checks returns the names of what the registry needs, each with a check, for a readiness probe.
// While a check fails, requests wait, unless the error is [ErrDegraded]. A check runs until it
// knows, or its context ends, so give it a deadline. The text of an error is fit for strangers.
func (r *Registry) Checks() iter.Seq2[string, func(context.Context) error] {
	return health.Checks([]health.Part{
		health.Connection(r.cfg.Conn),
		health.Pinged(r.cfg.Store),
		{Name: health.Streams, Check: r.checkStreams},
		{Name: health.Consumer, Check: r.checkConsumer},
		{Name: health.RestoreGuard, Check: r.checkGuard},
		{Name: health.Outbox, Check: r.checkOutbox},
		{Name: health.Requests, Check: r.inHand.Check},
	})
}

// checkStreams fails while a stream is missing or sealed, or while the broker has no space for what
// the registry publishes. Another part reports a broker that is away. While the registry starts,
// checkStreams says what it waits for.
func (r *Registry) checkStreams(context.Context) error {
	if !r.cfg.Conn.IsConnected() {
		return nil
	}
	if err := r.Ready(); err != nil {
		return err
	}
	return r.watch.StreamsErr()
}

// checkConsumer fails while no requests come although the broker may be there.
func (r *Registry) checkConsumer(context.Context) error {
	if !r.cfg.Conn.IsConnected() {
		return nil
	}
	return cmp.Or(r.watch.ConsumerErr(), r.watch.Deliveries.Err())
}

// checkGuard fails while nothing is served because the database may lack what was announced.
// Services that are behind are on hold one by one, and the others are served.
func (r *Registry) checkGuard(context.Context) error {
	if !r.guard.Compared() {
		return errors.New("the database is being compared with the stream of events, and nothing is served until that is done")
	}
	return nil
}

// checkOutbox fails while committed changes are not published. The cause names services, so only
// the log has it. Another part reports a database that is away.
func (r *Registry) checkOutbox(ctx context.Context) error {
	late, err := r.relay.Overdue(ctx)
	switch {
	case err != nil && r.cfg.Store.Ping(ctx) != nil:
		return nil //nolint:nilerr // another part reports it
	case err != nil:
		return health.Because(err, "the database doesn't tell what is in the outbox")
	case late > 0:
		return health.Because(r.relay.Err(), fmt.Sprintf("changes are committed but not published, the oldest for %v", late.Round(time.Second)))
	}
	if n := r.relay.Unsendable(); n > 0 {
		return health.AsRemark(fmt.Errorf("%d changes can't be announced because the broker refuses a message as it is: see the log", n))
	}
	return nil
}
