package testenv

import (
	"slices"
	"sync"
	"testing"
	"time"
)

// Flood calls ask at this rate per second until stop is called. No call waits for an earlier one.
func Flood(b *testing.B, rate int, ask func()) (stop func()) {
	b.Helper()
	if rate == 0 {
		return func() {}
	}
	done, tick := make(chan struct{}), time.NewTicker(time.Second/time.Duration(rate))
	var asking sync.WaitGroup
	asking.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				asking.Go(ask)
			}
		}
	})
	return func() { close(done); asking.Wait(); tick.Stop() }
}

// Paced calls what next returns, once per period, and reports how long these calls take.
func Paced(b *testing.B, period time.Duration, next func() func()) {
	b.Helper()
	tick := time.NewTicker(period)
	defer tick.Stop()
	var took []time.Duration
	for b.Loop() {
		<-tick.C
		one := next()
		began := time.Now()
		one()
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
