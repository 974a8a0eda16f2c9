package registry

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/streams"
)

// TestRateLimit: so many rotations in any minute, by the time at which JetStream stored them; recovery is never held
// up.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	in := newTestIntake(t, store, Policy{Origin: testOrigin, RotationsPerMinute: 2}, func() time.Time { return time.Unix(testNow+3600, 0) })
	d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
	var at int64
	d.now = func() time.Time { return time.Unix(at, 0) }
	lookup := newLookup(Config{Policy: in.policy, Key: testKey, Store: store, Log: testLog(t), Now: d.now}, nil, openGuard{})
	for _, c := range []struct {
		second int64
		kind   events.RequestKind
		want   events.Reason
		next   int64 // the second that the record names as that of the next rotation; 0: none
	}{
		{0, events.Binding, "", 0},
		{0, events.Rotation, "", 0},
		{30, events.Rotation, "", 60},
		{59, events.Rotation, events.RateLimited, 60},
		{59, events.Reset, "", 60},
		{60, events.Rotation, "", 90},
		{61, events.Rotation, events.RateLimited, 90},
		{89, events.Rotation, events.RateLimited, 90},
		{90, events.Rotation, "", 120},
	} {
		at = testNow + c.second
		newKey, by := events.GenerateSigningKey(), d.master
		if c.kind == events.Rotation {
			by = d.current
		}
		r := d.sign(c.kind, newKey, by)
		o := decideOne(t, in, r.draft.Subject(), r.payload, at)
		if o.Reason != c.want {
			t.Fatalf("a %s at second %d: reason %q, want %q", c.kind, c.second, o.Reason, c.want)
		}
		if c.want == "" {
			d.current = newKey
		}
		next := c.next
		if next != 0 {
			next += testNow
		}
		if record, err := lookup.keys(t.Context(), d.target); err != nil || record.NextRotationAt != next {
			t.Errorf("after a %s at second %d, the record says that the next rotation is at %d, want %d (%v)",
				c.kind, c.second, record.NextRotationAt, next, err)
		}
	}
	at = testNow + 120
	if record, err := lookup.keys(t.Context(), d.target); err != nil || record.NextRotationAt != 0 {
		t.Errorf("a rotation is accepted again, and the record still says %d (%v)", record.NextRotationAt, err)
	}
}

// TestRecordOverTime: the record names a key in grace until just before its expiry, and a reset ends every grace.
func TestRecordOverTime(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		now := time.Unix(testNow, 0)
		clock := func() time.Time { return now }
		in := newTestIntake(t, w.store, Policy{Origin: testOrigin, GracePeriod: 10 * time.Second}, clock)
		lookup := newLookup(Config{Policy: in.policy, Key: testKey, Store: w.store, Log: testLog(t), Now: clock}, w.js, openGuard{})
		d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
		d.now = clock
		decideAll(t, in, d.bind())
		first := d.current.Public()
		decideAll(t, in, d.rotate())
		grace := func() []events.GraceKey {
			record, err := lookup.Service(t.Context(), d.target)
			if err != nil {
				t.Fatal(err)
			}
			return record.Grace
		}
		now = time.Unix(testNow+9, 0)
		if g := grace(); len(g) != 1 || g[0] != (events.GraceKey{PublicKey: first, Expires: testNow + 10}) {
			t.Errorf("one second before its expiry: %+v", g)
		}
		decideAll(t, in, d.rotate())
		if g := grace(); len(g) != 2 {
			t.Errorf("two keys are in grace: %+v", g)
		}
		now = time.Unix(testNow+10, 0)
		if g := grace(); len(g) != 1 || g[0].PublicKey == first {
			t.Errorf("at the first key's expiry: %+v", g)
		}
		decideAll(t, in, d.reset())
		if g := grace(); len(g) != 0 {
			t.Errorf("after a Master Reset: %+v", g)
		}
	})
}

// TestReceiptStreamAway: a refusal is acknowledged only when its receipt is in the stream.
func TestReceiptStreamAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	w.run()
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
	if err := w.js.DeleteStream(t.Context(), streams.Receipts); err != nil {
		t.Fatal(err)
	}
	forged := d.sign(events.Binding, events.GenerateSigningKey(), events.GenerateSigningKey())
	w.publish(forged)
	testenv.Eventually(t, patience, "the registry has tried", func() error {
		consumer, err := w.js.Consumer(t.Context(), streams.Requests, streams.RegistryDurable)
		if err != nil {
			return err
		}
		if n := consumer.CachedInfo().Delivered.Consumer; n < 2 {
			return jetstream.ErrNoMessages
		}
		return nil
	})
	// The broker clears a deleted stream's folder in its own time.
	testenv.Eventually(t, patience, "the stream is made again", func() error {
		_, err := w.js.CreateStream(t.Context(), streams.ReceiptsConfig())
		return err
	})
	if receipt := w.answer(forged); receipt.Reason != events.InvalidSignature || receipt.RequestHash != events.RequestHash(forged.payload) {
		t.Errorf("receipt %+v", receipt)
	}
}

// TestDurableOfAnotherMeaning: a durable that skips what was there before it ends the start with a clear error.
func TestDurableOfAnotherMeaning(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	if err := EnsureStreams(t.Context(), w.js, 1); err != nil {
		t.Fatal(err)
	}
	config := streams.RegistryConsumer()
	config.FilterSubject = events.BindingSubject + ">"
	if _, err := w.js.CreateConsumer(t.Context(), streams.Requests, config); err != nil {
		t.Fatal(err)
	}
	r, err := New(Config{Policy: Policy{Origin: testOrigin}, Key: testKey, Store: w.store, Conn: w.conn, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); !errors.Is(err, ErrStreamMeaning) {
		t.Errorf("got %v", err)
	}
}

// TestAnyString: what a binding says of its service is any string, and is told as it came.
func TestAnyString(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
		d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		for _, kind := range []events.RequestKind{events.Binding, events.Reset} {
			draft := d.draft(kind, events.GenerateSigningKey())
			draft.ServiceType = string(kind) + "\"\\\u00fc\U0001f511\ufffd"
			payload, err := draft.Sign(d.master)
			if err != nil {
				t.Fatal(err)
			}
			if o := decideOne(t, in, draft.Subject(), payload, time.Now().Unix()); o.Verdict != decision.Committed {
				t.Fatalf("a %s: %s %s", kind, o.Reason, o.Detail)
			}
			told, err := store.ledger.Service(t.Context(), d.target)
			if err != nil || told.ServiceType != draft.ServiceType {
				t.Errorf("the service is told to be a %q: %v", told.ServiceType, err)
			}
		}
	})
}
