package registry

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestBrokerThatAllowsLittle: neither a broker that allows small pulls and few messages in flight, nor limits that somebody has put on
// the durable, keep the registry from its requests; nor from comparing its database at a start.
func TestBrokerThatAllowsLittle(t *testing.T) {
	t.Parallel()
	w := newWorldOn(t, testenv.NewBrokerOf(t, "jetstream { limits { max_request_batch: 10, max_ack_pending: 20 } }"), testenv.Database(t, testenv.SQLite))
	w.lookEvery = 20 * time.Millisecond
	stop := w.run()
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "one")
	for i := range 30 {
		w.publish(d.another(fmt.Sprint("s-", i)).bind())
	}
	if err := w.committed(d.bind()); err != nil {
		t.Fatal(err)
	}
	w.drained()
	stop()

	limited := streams.RegistryConsumer()
	limited.MaxWaiting, limited.MaxRequestBatch, limited.MaxAckPending, limited.MaxRequestExpires = 1, 1, 1, time.Second
	if err := w.js.DeleteConsumer(t.Context(), streams.Requests, limited.Durable); err != nil {
		t.Fatal(err)
	}
	if _, err := w.js.CreateConsumer(t.Context(), streams.Requests, limited); err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.db.Exec(t.Context(), "DELETE FROM stream_positions"); err != nil {
		t.Fatal(err)
	}
	w.run()
	if err := w.committed(d.rotate()); err != nil {
		t.Fatal(err)
	}
	config := func() jetstream.ConsumerConfig {
		consumer, err := w.js.Consumer(t.Context(), streams.Requests, limited.Durable)
		if err != nil {
			t.Fatal(err)
		}
		return consumer.CachedInfo().Config
	}
	limits := consume.LimitsOf(config())
	if limits.Batch != 10 || limits.AckPending != 20 || limits.Expires != 0 || config().MaxWaiting < consume.LeastWaiting {
		t.Errorf("the durable is %+v", config())
	}
	limited.MaxWaiting = config().MaxWaiting
	if _, err := w.js.UpdateConsumer(t.Context(), streams.Requests, limited); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "the limits are taken back while it runs", func() error {
		if got := consume.LimitsOf(config()); got != limits {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
}
