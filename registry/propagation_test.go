package registry

import (
	"fmt"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestPropagationOutOfOrder: a service's last event is acknowledged when it is, also where an earlier one stands behind it in
// the stream: whoever committed that died before it was published.
func TestPropagationOutOfOrder(t *testing.T) {
	t.Parallel()
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	if err := EnsureStreams(t.Context(), js, 1); err != nil {
		t.Fatal(err)
	}
	config := events.SubscriberConsumerConfig(events.AuthDurable)
	consumer, err := js.CreateConsumer(t.Context(), events.InvalidationStream, config)
	if err != nil {
		t.Fatal(err)
	}
	target, err := events.ParseTarget("org.omiappreg.alice.cms")
	if err != nil {
		t.Fatal(err)
	}
	p := propagation{js: js}
	want := func(acknowledged bool) error {
		got := p.of(t.Context(), target, 3)
		if has, known := got[events.AuthDurable]; !known || has != acknowledged {
			return fmt.Errorf("%v, want %t", got, acknowledged)
		}
		return nil
	}
	for _, sequence := range []int64{1, 3, 2} {
		event := events.Invalidation{Origin: testOrigin, Target: target, Event: events.KeyRotation, Sequence: sequence, Nonce: events.NewNonce()}
		if _, err := js.Publish(t.Context(), event.Subject(), event.Sign(testKey)); err != nil {
			t.Fatal(err)
		}
	}
	for _, acknowledged := range []bool{false, true, true} {
		m, err := consumer.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, patience, "the record says so", func() error { return want(acknowledged) })
	}
}
