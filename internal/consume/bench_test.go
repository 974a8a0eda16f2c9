package consume_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/testenv"
)

// BenchmarkRun measures handing over and acknowledging a message of a backlog, including the
// broker's work.
func BenchmarkRun(b *testing.B) {
	js, err := jetstream.New(testenv.Connect(b, testenv.NewBroker(b).URL()))
	if err != nil {
		b.Fatal(err)
	}
	_, err = js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "Q", Subjects: []string{"q.>"}, Retention: jetstream.WorkQueuePolicy})
	if err != nil {
		b.Fatal(err)
	}
	for range b.N {
		if _, err := js.PublishAsync("q.x", make([]byte, 512)); err != nil {
			b.Fatal(err)
		}
	}
	<-js.PublishAsyncComplete()
	ctx, cancel := context.WithCancel(b.Context())
	handled, batches := 0, 0
	b.ReportAllocs()
	b.ResetTimer()
	err = consume.Run(ctx, consume.Config[struct{}]{
		Open: opener(js, jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 8192}, 0),
		Handle: func(_ context.Context, batch []*consume.Plain) error {
			batches++
			if handled += len(batch); handled >= b.N {
				cancel()
			}
			return nil
		},
		Log: slog.New(slog.NewTextHandler(b.Output(), nil)),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(handled)/float64(batches), "messages/batch")
}
