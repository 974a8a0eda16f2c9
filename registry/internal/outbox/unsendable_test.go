package outbox

import (
	"strings"
	"testing"
	"time"

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
	p := newPublisherTest(t, 0)
	p.streams(true)
	js := p.js
	now := time.Now()
	b := openBook(t, testenv.Database(t, testenv.SQLite))
	r := New(Config{
		JetStream: js, Outbox: b.outbox, Guard: unguarded{},
		Metrics: prometheus.NewRegistry(), Now: func() time.Time { return now }, Log: b.log,
	})
	decided := b.bind(now, strings.Repeat("x", 63), "short")
	small := streams.InvalidationsConfig()
	small.MaxMsgSize = int32(len(decided[0][0].Payload) + 20) // headers count too
	if _, err := js.UpdateStream(t.Context(), small); err != nil {
		t.Fatal(err)
	}
	for _, messages := range decided {
		r.delete(t.Context(), r.publish(t.Context(), messages))
	}
	check := func(when string, events, outbox int) {
		t.Helper()
		now = now.Add(ledger.LeaseFor + time.Second)
		if _, err := r.recoverOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		if rows := b.rows(); rows != outbox || r.unsendable.count() != outbox {
			t.Errorf("%s: %d in the outbox, %d passed over", when, rows, r.unsendable.count())
		}
		if rows, oldest, err := b.outbox.Backlog(t.Context(), r.unsendable.has); err != nil || rows != outbox || !oldest.IsZero() {
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
	r.unsendable.retryNow()
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
