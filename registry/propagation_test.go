package registry

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// heard is a durable on the stream of events, with a service in the stream, and what a registry says of it.
type heard struct {
	p        propagation
	target   events.Target
	config   jetstream.ConsumerConfig
	consumer jetstream.Consumer
}

// newHeard is of a registry with these keys.
func newHeard(t *testing.T, keys ...events.SigningKey) *heard {
	t.Helper()
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	if err := EnsureStreams(t.Context(), js, 1); err != nil {
		t.Fatal(err)
	}
	var public []events.PublicKey
	for _, key := range keys {
		public = append(public, key.Public())
	}
	trust, err := events.NewTrust(testOrigin, public...)
	if err != nil {
		t.Fatal(err)
	}
	h := &heard{p: propagation{js: js, trust: trust}, config: streams.SubscriberConsumer(streams.AuthDurable)}
	if h.consumer, err = js.CreateConsumer(t.Context(), streams.Invalidations, h.config); err != nil {
		t.Fatal(err)
	}
	if h.target, err = events.ParseTarget("org.omiappreg.alice.cms"); err != nil {
		t.Fatal(err)
	}
	return h
}

// publish puts an event of the service into the stream.
func (h *heard) publish(t *testing.T, sequence int64, signer events.SigningKey) {
	t.Helper()
	event := events.Invalidation{
		Origin: testOrigin, Target: h.target, Event: events.KeyRotation, Sequence: sequence, Nonce: events.NewNonce(),
		OldKey: events.GenerateSigningKey().Public(), NewKey: events.GenerateSigningKey().Public(), Timestamp: testNow, GracePeriodExpiry: testNow,
	}
	if _, err := h.p.js.Publish(t.Context(), event.Subject(), event.Sign(signer)); err != nil {
		t.Fatal(err)
	}
}

func (h *heard) acknowledge(t *testing.T) {
	t.Helper()
	m, err := h.consumer.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// announce sets what the durable says of itself.
func (h *heard) announce(t *testing.T, metadata map[string]string) {
	t.Helper()
	h.config.Metadata = metadata
	if _, err := h.p.js.UpdateConsumer(t.Context(), streams.Invalidations, h.config); err != nil {
		t.Fatal(err)
	}
}

// says waits until the record of the service, at this sequence, says so of the durable.
func (h *heard) says(t *testing.T, sequence int64, applied bool) {
	t.Helper()
	testenv.Eventually(t, patience, "the record says so", func() error {
		got, _ := h.p.of(t.Context(), h.target, sequence, Policy{}.waitsFor)
		if has, known := got[streams.AuthDurable]; !known || has != applied {
			return fmt.Errorf("%v, want %t", got, applied)
		}
		return nil
	})
}

// TestPropagationOutOfOrder: a service's last event is acknowledged when it is, also where an earlier one stands behind it in
// the stream: whoever committed that died before it was published.
func TestPropagationOutOfOrder(t *testing.T) {
	t.Parallel()
	h := newHeard(t, testKey)
	for _, sequence := range []int64{1, 3, 2} {
		h.publish(t, sequence, testKey)
	}
	for _, acknowledged := range []bool{false, true, true} {
		h.acknowledge(t)
		h.says(t, 3, acknowledged)
	}
}

// TestPropagationTrust: what a durable has acknowledged is not applied where it does not trust the key that signed it, or says
// that it failed on it; one that announces nothing is as ever. A stranger's message on the subject is not the last event.
func TestPropagationTrust(t *testing.T) {
	t.Parallel()
	earlier, stranger := events.GenerateSigningKey(), events.GenerateSigningKey()
	h := newHeard(t, testKey, earlier)
	h.publish(t, 1, earlier)
	h.publish(t, 2, testKey)
	h.publish(t, 2, stranger)
	h.publish(t, 9, stranger)
	for range 2 {
		h.acknowledge(t)
	}
	byEarlier, byLast := events.TrustedBy(testOrigin, earlier.Public()), events.TrustedBy(testOrigin, testKey.Public())
	says := func(applied bool, metadata map[string]string) {
		t.Helper()
		h.announce(t, metadata)
		h.says(t, 2, applied)
	}
	says(false, map[string]string{events.TrustMetadata: byEarlier})
	says(true, map[string]string{events.TrustMetadata: byEarlier + " " + byLast})
	says(false, map[string]string{events.TrustMetadata: events.TrustedBy("elsewhere.org", testKey.Public())})
	says(true, nil)
	says(false, map[string]string{events.TrustMetadata: ""})
	says(true, map[string]string{events.FailedMetadata: "1 7"})
	says(false, map[string]string{events.FailedMetadata: "2 7"})
	says(true, map[string]string{"owner": "ops"})
	says(false, map[string]string{events.TrustMetadata: byLast, events.FailedMetadata: events.FailedMany})
	says(true, map[string]string{events.TrustMetadata: byLast})
	h.says(t, 3, false) // only the stranger has it
}

// TestOtherDurables: only the durables of Auth and Billing, and those that the operator names, say whether a change is applied. One
// that nobody reads delayed every change, of every service. So many of them are listed and no more.
func TestOtherDurables(t *testing.T) {
	t.Parallel()
	h := newHeard(t, testKey)
	h.publish(t, 1, testKey)
	for _, name := range []string{"authsub-web-1", "billingsub", "billingsub-2", "audit", "reports-1", "authsubs", "billing"} {
		if _, err := h.p.js.CreateConsumer(t.Context(), streams.Invalidations, streams.SubscriberConsumer(name)); err != nil {
			t.Fatal(err)
		}
	}
	h.acknowledge(t)
	for want, policy := range map[[2]string]Policy{
		{"authsub authsub-web-1 billingsub billingsub-2", "audit authsubs billing reports-1"}: {},
		{"audit authsub authsub-web-1 billingsub billingsub-2 reports-1", "authsubs billing"}: {WaitFor: []string{"reports-*", "audit"}},
	} {
		testenv.Eventually(t, patience, "the record says so", func() error {
			known, others := h.p.of(t.Context(), h.target, 1, policy.waitsFor)
			names := func(list map[string]bool) string { return strings.Join(slices.Sorted(maps.Keys(list)), " ") }
			if got := [2]string{names(known), names(others)}; got != want || !known[streams.AuthDurable] || others["audit"] {
				return fmt.Errorf("%v, %v; want %q", known, others, want)
			}
			return nil
		})
	}
	for i := range 100 {
		if _, err := h.p.js.CreateConsumer(t.Context(), streams.Invalidations, streams.SubscriberConsumer(fmt.Sprintf("x-%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, patience, "the list is full", func() error {
		if _, others := h.p.of(t.Context(), h.target, 1, Policy{}.waitsFor); len(others) != otherDurables {
			return fmt.Errorf("%d others", len(others))
		}
		return nil
	})
}

func TestWaitFor(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "*", "-*", "a b", "a*", "a.b", "a>", "a/b", "a\\b", "a\n", "a\u202e", "*-*"} {
		if _, err := (Policy{Origin: testOrigin, WaitFor: []string{"audit", bad}}).WithDefaults(); !errors.Is(err, ErrPolicy) {
			t.Errorf("%q is taken: %v", bad, err)
		}
	}
	p, err := Policy{Origin: testOrigin, WaitFor: []string{"b-*", "audit", "b-*"}}.WithDefaults()
	if err != nil || p.recordedWaitFor() != "audit b-*" {
		t.Errorf("%q, %v", p.recordedWaitFor(), err)
	}
	again, err := p.withSettings(p.recorded())
	if err != nil || len(p.differences(again)) > 0 {
		t.Errorf("read back: %v, %v", p.differences(again), err)
	}
}
