package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Usage is what this process has used, as the operating system counts it.
type Usage struct {
	CPU      time.Duration // user and system, of all its threads, since its start
	Resident int64         // memory now, in bytes
}

// Meter reads the [Usage] of this process.
type Meter struct{ registry *prometheus.Registry }

// NewMeter returns a meter.
func NewMeter() *Meter {
	m := &Meter{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Read returns what the process has used so far.
func (m *Meter) Read() (Usage, error) {
	var u Usage
	families, err := m.registry.Gather()
	if err != nil {
		return u, fmt.Errorf("read what the process uses: %w", err)
	}
	for _, f := range families {
		switch f.GetName() {
		case "process_cpu_seconds_total":
			u.CPU = time.Duration(f.GetMetric()[0].GetCounter().GetValue() * float64(time.Second))
		case "process_resident_memory_bytes":
			u.Resident = int64(f.GetMetric()[0].GetGauge().GetValue())
		}
	}
	return u, nil
}

// Peak samples the memory until ctx ends, and returns the maximum.
func (m *Meter) Peak(ctx context.Context) int64 {
	// a sample takes half a millisecond, which counts as the process's
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	var peak int64
	for {
		if u, err := m.Read(); err == nil {
			peak = max(peak, u.Resident)
		}
		select {
		case <-ctx.Done():
			return peak
		case <-ticker.C:
		}
	}
}
