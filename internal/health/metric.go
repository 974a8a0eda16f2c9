package health

import "github.com/prometheus/client_golang/prometheus"

// The checker is a [prometheus.Collector]: it shows the latest state of each part, and runs no
// check.
var _ prometheus.Collector = (*Checker)(nil)

//nolint:gochecknoglobals // it never changes
var readyDesc = prometheus.NewDesc("omi_ready",
	"1 if this part of the process could do its work at the last check, otherwise 0 (GET /readyz says why).", []string{"part"}, nil)

// Describe implements [prometheus.Collector].
func (*Checker) Describe(ch chan<- *prometheus.Desc) { ch <- readyDesc }

// Collect implements [prometheus.Collector].
func (c *Checker) Collect(ch chan<- prometheus.Metric) {
	ready := map[string]float64{}
	for _, s := range c.Last().Parts {
		if s.Ready {
			ready[s.Name] = 1
		}
	}
	for _, p := range c.parts {
		ch <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, ready[p.Name], p.Name)
	}
}
