package registry

import (
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/internal/consume"
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
