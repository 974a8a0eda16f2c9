package consume

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/testenv"
)

// TestSmallPulls: a durable that allows only small and short pulls still delivers. If that changes
// while it runs, the log has the broker's own words, and the durable is opened again.
func TestSmallPulls(t *testing.T) {
	t.Parallel()
	const messages = 20
	conn := testenv.Connect(t, testenv.NewBroker(t).URL())
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "Q", Subjects: []string{"q"}, Retention: jetstream.WorkQueuePolicy}); err != nil {
		t.Fatal(err)
	}
	limited := jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, MaxRequestBatch: 5, MaxRequestExpires: 2 * time.Second}
	handled := make(chan int, messages)
	expect := func(n int) {
		t.Helper()
		for range n {
			if _, err := js.Publish(t.Context(), "q", nil); err != nil {
				t.Fatal(err)
			}
		}
		for n > 0 {
			select {
			case some := <-handled:
				n -= some
			case <-time.After(time.Minute):
				t.Fatal("messages don't come")
			}
		}
	}
	var log testenv.Log
	var opened atomic.Pointer[jetstream.Consumer]
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config[struct{}]{
			Open: func(ctx context.Context) (Source[struct{}], error) {
				consumer, err := js.CreateOrUpdateConsumer(ctx, "Q", limited)
				if err != nil {
					return nil, err
				}
				opened.Store(&consumer)
				pull := NewPull(consumer, conn, messages)
				pull.heartbeat = leastHeartbeat
				return pull.Source(ctx, messages, nil)
			},
			Handle: func(_ context.Context, batch []*Plain) error {
				handled <- len(batch)
				return nil
			},
			Conn: conn, Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
	}()
	expect(messages)
	smaller := limited
	smaller.MaxRequestBatch = 2
	if _, err := js.UpdateConsumer(t.Context(), "Q", smaller); err != nil {
		t.Fatal(err)
	}
	consumer := *opened.Load()
	if _, err := consumer.Info(t.Context()); err != nil { // which refreshes what the consumer knows of itself
		t.Fatal(err)
	}
	expect(messages) // the next pull is refused
	if log.Count("Exceeded MaxRequestBatch of 2") == 0 {
		t.Errorf("the log says\n%s", log.String())
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestRefusal: it returns the broker's words, and nothing if the broker only has no message to
// deliver.
func TestRefusal(t *testing.T) {
	t.Parallel()
	conn := testenv.Connect(t, testenv.NewBroker(t).URL())
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "Q", Subjects: []string{"q"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "q", nil); err != nil {
		t.Fatal(err)
	}
	consumer, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "d", AckPolicy: jetstream.AckExplicitPolicy, MaxWaiting: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := NewPull(consumer, conn, 10).refusal(); err != nil {
		t.Errorf("a pull that is taken: %v", err)
	}
	if info, err := consumer.Info(t.Context()); err != nil || info.Delivered.Consumer > 0 {
		t.Errorf("to ask has taken a message: %+v, %v", info, err)
	}
	empty, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{
		Durable: "empty", AckPolicy: jetstream.AckExplicitPolicy, MaxWaiting: 1, DeliverPolicy: jetstream.DeliverNewPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	other, err := empty.Messages(jetstream.PullMaxMessages(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Stop)
	go func() { _, _ = other.Next() }()
	testenv.Eventually(t, time.Minute, "it pulls", func() error {
		info, err := empty.Info(t.Context())
		if err == nil && info.NumWaiting == 0 {
			err = errors.New("not yet")
		}
		return err
	})
	if err := NewPull(empty, conn, 10).refusal(); err == nil || !strings.Contains(err.Error(), "MaxWaiting") {
		t.Errorf("no room for another pull: %v", err)
	}
	if err := stream.DeleteConsumer(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	if err := NewPull(consumer, conn, 10).refusal(); err == nil || !strings.Contains(err.Error(), "no consumer d") {
		t.Errorf("no durable: %v", err)
	}
}

// TestPutAfterARestart: a durable that outlived a restart of the broker has its own creation time,
// and is not taken for another one.
func TestPutAfterARestart(t *testing.T) {
	t.Parallel()
	broker := testenv.NewBroker(t)
	js, err := jetstream.New(testenv.Connect(t, broker.URL()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "Q", Subjects: []string{"q"}}); err != nil {
		t.Fatal(err)
	}
	put := func() time.Time {
		t.Helper()
		consumer, err := Put(t.Context(), jetstream.ConsumerConfig{Durable: "d"}, func(cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
			return js.CreateOrUpdateConsumer(t.Context(), "Q", cfg)
		})
		if err != nil {
			t.Fatal(err)
		}
		return consumer.CachedInfo().Created
	}
	before := put()
	broker.Stop()
	broker.Start()
	testenv.Eventually(t, time.Minute, "it is back", func() error {
		_, err := js.Consumer(t.Context(), "Q", "d")
		return err
	})
	if after := put(); !after.Equal(before) {
		t.Errorf("made at %s, and after a restart at %s", before, after)
	}
}
