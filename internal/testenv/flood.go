package testenv

import (
	"slices"
	"sync"
	"testing"
	"time"
)

// Flood calls ask so many times a second, each time without waiting for the call before, until it
// is stopped.
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

// Paced reports how long it takes to call what next returns, which it does once in every period.
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
