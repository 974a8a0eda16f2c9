package subscriber

import (
	"log/slog"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestLimitsThatStay: if the broker doesn't give the durable the limits with which it was opened,
// they are set once, and not again and again.
func TestLimitsThatStay(t *testing.T) {
	t.Parallel()
	ctx, discard := t.Context(), slog.New(slog.DiscardHandler)
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	store, err := storage.Open(ctx, testenv.Database(t, testenv.SQLite), sqldb.Billing, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	sub, err := New(Config{JetStream: js, Durable: "sub", Store: store, Log: discard})
	if err != nil {
		t.Fatal(err)
	}
	subtest.Stream(t, js)
	consumer, err := js.CreateConsumer(ctx, streams.Invalidations, sub.config())
	if err != nil {
		t.Fatal(err)
	}
	given := consume.LimitsOf(consumer.CachedInfo().Config)
	opened := given
	opened.AckPending++
	sub.limits.Store(&opened)
	sub.restoreLimits(ctx, consumer.CachedInfo().Config)
	if now := *sub.limits.Load(); now != given {
		t.Errorf("it goes on to ask for %+v, and gets %+v", opened, now)
	}
}
