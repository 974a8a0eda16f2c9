package subscriber

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
)

// The values of the label "result".
const (
	resultApplied  = "applied"
	resultRepeated = "repeated" // applied earlier: a redelivery
	resultSetAside = "set_aside"
)

type metrics struct {
	events   *prometheus.CounterVec
	latency  prometheus.Histogram
	setAside *prometheus.GaugeVec
}

func newMetrics(durable string) *metrics {
	labels := prometheus.Labels{"durable": durable}
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omi_subscriber_events_total", ConstLabels: labels,
			Help: "Messages of the invalidation stream, by what became of them and, where they were refused, why.",
		}, []string{"result", "reason"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "omi_subscriber_publish_to_applied_seconds", ConstLabels: labels,
			Help:    "From JetStream storing an event to its effect being committed.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16), // 1 ms to 33 s
		}),
		setAside: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "omi_subscriber_set_aside", ConstLabels: labels,
			Help: "Messages of the invalidation stream that are set aside now, by reason; the newest 1,000 of each kind are kept.",
		}, []string{"reason"}),
	}
	m.showSetAside(nil)
	for _, result := range []string{resultApplied, resultRepeated} {
		m.events.WithLabelValues(result, "") // a rate needs a start at 0
	}
	return m
}

// register registers the metrics.
func (s *Subscriber) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	labels := prometheus.Labels{"durable": s.cfg.Durable}
	all := []prometheus.Collector{
		s.metrics.events, s.metrics.latency, s.metrics.setAside,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "omi_subscriber_oldest_in_hand_seconds", ConstLabels: labels,
			Help: "For how long the oldest of the events in hand has been worked on, while none was finished; 0: none is in hand.",
		}, s.inHand.Seconds),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "omi_subscriber_as_of_seconds", ConstLabels: labels,
			Help: "The time up to which the subscriber knows the stream, in seconds since the Unix epoch.",
		}, func() float64 { return float64(s.AsOf()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "omi_subscriber_events_waiting", ConstLabels: labels,
			Help: "Events that wait at the broker to be delivered by the durable, by its last answer.",
		}, func() float64 { return float64(s.status.deliveries.Waiting()) }),
	}
	if s.cfg.Store.IsSQLite() {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "omi_subscriber_sqlite_log_bytes", ConstLabels: labels,
			Help: "Size of SQLite's log, the file next to the database whose name ends in -wal.",
		}, func() float64 { return float64(s.cfg.Store.LogBytes()) }))
	}
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register a metric: %w", err)
		}
	}
	return nil
}

// showSetAside shows what is set aside now. Reasons that an operator should hear of start at 0.
func (m *metrics) showSetAside(byReason map[string]int64) {
	m.setAside.Reset()
	for _, reason := range []string{storage.UnknownKey, string(events.EndedRegistryKey), consume.Panics, consume.Fails} {
		m.setAside.WithLabelValues(reason)
	}
	for reason, n := range byReason {
		m.setAside.WithLabelValues(reason).Set(float64(n))
	}
}
