package registry

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/streams"
)

// TestUnsendable: an event that its stream refuses as it is holds up no other, is tried again
// once the broker may have other settings, and leaves the outbox then. Its receipt is published
// once.
func TestUnsendable(t *testing.T) {
	t.Parallel()
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	if err := EnsureStreams(t.Context(), js, 1); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
	r := newRelay(relayConfig{
		JetStream: js, Store: store, Guard: &fence{store: store, log: testLog(t), woken: make(chan struct{}, 1)},
		Metrics: prometheus.NewRegistry(), Now: func() time.Time { return now }, Log: testLog(t),
	})
	long := newDeveloper(t, store, "org.omiappreg.alice", strings.Repeat("x", 63))
	decided := decideAll(t, in, long.bind(), long.another("short").bind())
	small := streams.InvalidationsConfig()
	small.MaxMsgSize = int32(len(decided[0].EventBytes) + 20) // headers count too
	if _, err := js.UpdateStream(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	for _, o := range decided {
		r.forget(t.Context(), r.publish(t.Context(), o.Messages()))
	}
	check := func(when string, events, outbox int) {
		t.Helper()
		now = now.Add(ledger.LeaseFor + time.Second)
		if _, err := r.recoverOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		report, err := store.Admin().Check(t.Context(), nil, now)
		if err != nil || report.Outbox != outbox || r.passed.count() != outbox {
			t.Errorf("%s: %d in the outbox, %d passed over: %v", when, report.Outbox, r.passed.count(), err)
		}
		if rows, oldest, err := store.outbox.Backlog(t.Context(), r.passed.has); err != nil || rows != outbox || !oldest.IsZero() {
			t.Errorf("%s: the outbox stands still with %d rows, the oldest of %v: %v", when, rows, oldest, err)
		}
		for name, want := range map[string]int{"OMI_INVALIDATIONS": events, "OMI_RECEIPTS": 2} {
			stream, err := js.Stream(t.Context(), name)
			if err != nil || int(stream.CachedInfo().State.Msgs) != want {
				t.Errorf("%s: %s has %d messages, want %d: %v", when, name, stream.CachedInfo().State.Msgs, want, err)
			}
		}
	}
	check("at first", 1, 1)
	if _, err := js.UpdateStream(t.Context(), streams.InvalidationsConfig()); err != nil {
		t.Fatal(err)
	}
	check("before its time", 1, 1)
	r.passed.retryNow()
	check("after that", 2, 0)
}

// TestSendBehindATooLargeMessage: nor does one hold up others that the client's own library
// refuses.
func TestSendBehindATooLargeMessage(t *testing.T) {
	t.Parallel()
	p := newPublisherTest(t, 2)
	p.streams(true)
	p.messages[0].Payload = make([]byte, p.js.Conn().MaxPayload()+1)
	sent := p.send(t.Context(), p.messages)
	if sent.err != nil || sent.faults[0] == nil || sent.stored[0] || !sent.stored[1] || !sent.stored[2] || !sent.stored[3] {
		t.Errorf("%+v", sent)
	}
}
