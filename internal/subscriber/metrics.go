package subscriber

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
)

// The values of the label "result".
const (
	resultApplied  = "applied"
	resultRepeated = "repeated" // applied before: a redelivery
	resultSetAside = "set_aside"
)

type metrics struct {
	durable string
	events  *prometheus.CounterVec
	latency prometheus.Histogram
	aside   *prometheus.GaugeVec
}

func newMetrics(durable string) *metrics {
	labels := prometheus.Labels{"durable": durable}
	m := &metrics{
		durable: durable,
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "omi_subscriber_events_total", ConstLabels: labels,
			Help: "Messages of the invalidation stream, by what became of them and, where they were refused, why.",
		}, []string{"result", "reason"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "omi_subscriber_publish_to_applied_seconds", ConstLabels: labels,
			Help:    "From JetStream storing an event to its effect being committed.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16), // 1 ms to 33 s
		}),
		aside: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "omi_subscriber_set_aside", ConstLabels: labels,
			Help: "Messages of the invalidation stream that are set aside now, by reason; the newest 1,000 of each kind are kept.",
		}, []string{"reason"}),
	}
	m.setAside(nil)
	for _, result := range []string{resultApplied, resultRepeated} {
		m.events.WithLabelValues(result, "") // from 0 on: a rate needs a start
	}
	return m
}

func (m *metrics) register(r prometheus.Registerer, asOf func() int64) error {
	if r == nil {
		return nil
	}
	horizon := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "omi_subscriber_as_of_seconds", ConstLabels: prometheus.Labels{"durable": m.durable},
		Help: "The time up to which the subscriber knows the stream, in seconds since the Unix epoch.",
	}, func() float64 { return float64(asOf()) })
	for _, c := range []prometheus.Collector{m.events, m.latency, m.aside, horizon} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register a metric: %w", err)
		}
	}
	return nil
}

// setAside shows what is set aside now. What an operator should be told of is there from the start, as 0.
func (m *metrics) setAside(byReason map[string]int64) {
	m.aside.Reset()
	for _, reason := range []string{unknownKey, string(events.EndedRegistryKey), consume.Panics, consume.Fails} {
		m.aside.WithLabelValues(reason)
	}
	for reason, n := range byReason {
		m.aside.WithLabelValues(reason).Set(float64(n))
	}
}
