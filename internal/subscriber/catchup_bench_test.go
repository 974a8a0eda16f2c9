//go:build unix

package subscriber_test

import (
	"context"
	"errors"
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
	b.Run("rotations", func(b *testing.B) { benchCatchUp(b, min(benchServices, b.N/2+1)) })
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
	load := newLoad(services)
	for published := 0; published < b.N; {
		batch := load.bind(min(1024, b.N-published))
		if len(batch) == 0 {
			batch = load.rotate(min(1024, b.N-published))
		}
		for i := range batch {
			if _, err := js.PublishAsync(batch[i].Subject(), batch[i].Sign(registry.Key)); err != nil {
				b.Fatal(err)
			}
		}
		<-js.PublishAsyncComplete()
		published += len(batch)
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
