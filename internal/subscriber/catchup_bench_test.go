//go:build unix

package subscriber_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// BenchmarkCatchUp is what an event costs a new subscriber that reads a whole stream on SQLite:
// delivered, verified, applied and acknowledged, with 20,000 services or one for each event. The
// broker runs in this process too, so the CPU time includes its part.
func BenchmarkCatchUp(b *testing.B) {
	b.Run("rotations", func(b *testing.B) { benchCatchUp(b, min(20_000, b.N/2+1)) })
	b.Run("bindings", func(b *testing.B) { benchCatchUp(b, b.N) })
}

func benchCatchUp(b *testing.B, services int) {
	b.Helper()
	js, err := jetstream.New(testenv.Connect(b, testenv.NewBroker(b).URL()))
	if err != nil {
		b.Fatal(err)
	}
	subtest.Stream(b, js)
	registry := subtest.NewRegistry(b, events.GenerateSigningKey())
	for list := eventsOf(b, services, b.N); len(list) > 0; {
		batch := list[:min(1024, len(list))]
		for i := range batch {
			if _, err := js.PublishAsync(batch[i].Subject(), batch[i].Sign(registry.Key)); err != nil {
				b.Fatal(err)
			}
		}
		<-js.PublishAsyncComplete()
		list = list[len(batch):]
	}
	applied, done := 0, make(chan struct{})
	s, err := subscriber.New(subscriber.Config{
		JetStream: js, Durable: streams.AuthDurable, Trust: registry.Trust, Store: openAuthStore(b, testenv.Database(b, testenv.SQLite)), Log: discard(),
		Applied: func(_ context.Context, batch, _ []events.Invalidation) error {
			if applied += len(batch); applied == b.N {
				close(done)
			}
			return nil
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	used := ownCPU(b)
	b.ResetTimer()
	stop := subtest.Running(b, s.Run)
	select {
	case <-done:
	case <-time.After(5 * time.Minute):
		b.Fatal(errors.New("it has not caught up"))
	}
	b.StopTimer()
	b.ReportMetric(float64(ownCPU(b)-used)/1000/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	stop()
}

// eventsOf returns n events of services that are bound and then rotate in rounds, in another order
// each round.
func eventsOf(b *testing.B, services, n int) (list []events.Invalidation) {
	b.Helper()
	all := make([]*subtest.Service, services)
	for i := range all { // their names have another order
		all[i] = subtest.NewService(b, fmt.Sprintf("cms-article-%08x", uint32(i)*2654435761))
	}
	for now := start; ; now += 10 {
		for _, s := range all {
			if len(list) == n {
				return list
			}
			if len(s.Events) == 0 {
				list = append(list, s.Bind(now))
			} else {
				list = append(list, s.Rotate(now, 300))
			}
		}
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	}
}

// ownCPU is what this process has used, in nanoseconds.
func ownCPU(b *testing.B) int64 {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}
