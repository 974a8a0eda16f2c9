package registry

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/streams"
)

// TestUnknownApp: the app is looked for before the service, in every request by the Master Key.
func TestUnknownApp(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	in := newTestIntake(t, store, Policy{Origin: testOrigin}, func() time.Time { return time.Unix(testNow, 0) })
	d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
	d.now = func() time.Time { return time.Unix(testNow, 0) }
	d.target.App, _ = events.ParseAppID("org.omiappreg.later")
	for _, c := range []struct {
		request request
		want    events.Reason
	}{
		{d.bind(), events.UnknownApp},
		{d.rotate(), events.UnknownService},
		{d.reset(), events.UnknownApp},
		{d.revoke(), events.UnknownApp},
	} {
		if o := decideOne(t, in, c.request.draft.Subject(), c.request.payload, testNow); o.Reason != c.want {
			t.Errorf("a %s: reason %q, want %q", c.request.draft.Kind, o.Reason, c.want)
		}
	}
}

// TestRateLimit: so many rotations in any minute, by the time at which JetStream stored them; recovery is never held
// up.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	in := newTestIntake(t, store, Policy{Origin: testOrigin, RotationsPerMinute: 2}, func() time.Time { return time.Unix(testNow+3600, 0) })
	d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
	var at int64
	d.now = func() time.Time { return time.Unix(at, 0) }
	lookup := newLookup(Config{Policy: in.policy, Key: testKey, Store: store, Log: testLog(t), Now: d.now}, nil, nil)
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

// TestClockBehind: time never runs backwards within a service, whichever replica's clock is behind.
func TestClockBehind(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	now := time.Now()
	in := newTestIntake(t, store, Policy{Origin: testOrigin}, func() time.Time { return now })
	d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
	first := decideAll(t, in, d.bind())[0].Event
	now = now.Add(-time.Hour)
	second := decideAll(t, in, d.rotate())[0].Event
	if second.Timestamp != first.Timestamp || second.GracePeriodExpiry != first.Timestamp+300 {
		t.Errorf("bound at %d, rotated at %d with a grace until %d", first.Timestamp, second.Timestamp, second.GracePeriodExpiry)
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
		lookup := newLookup(Config{Policy: in.policy, Key: testKey, Store: w.store, Log: testLog(t), Now: clock}, w.js, nil)
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
			told, err := store.service(t.Context(), d.target)
			if err != nil || told.ServiceType != draft.ServiceType {
				t.Errorf("the service is told to be a %q: %v", told.ServiceType, err)
			}
		}
	})
}

// TestSecondsInDetails: whoever is refused for the time is told by how many seconds, and what to do about it.
func TestSecondsInDetails(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	in := newTestIntake(t, store, Policy{Origin: testOrigin, RotationsPerMinute: 1}, testNowTime)
	d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
	d.now = testNowTime
	decideAll(t, in, d.bind(), d.rotate())
	signed := func(seconds int64, kind events.RequestKind, by events.SigningKey) request {
		one := *d
		one.now = func() time.Time { return time.Unix(testNow+seconds, 0) }
		return one.sign(kind, events.GenerateSigningKey(), by)
	}
	for _, c := range []struct {
		request  request
		storedAt int64
		reason   events.Reason
		detail   []string
	}{
		{signed(-301, events.Rotation, d.current), testNow, events.TimestampOutOfWindow, []string{"301 s before", "300 s", "clock is probably behind"}},
		{signed(7200, events.Reset, d.master), testNow, events.TimestampOutOfWindow, []string{"7200 s after", "300 s", "clock is probably ahead"}},
		{signed(0, events.Rotation, d.current), testNow + 18, events.RateLimited, []string{"1 times a minute", "try again in 42 s"}},
		{signed(-9, events.Reset, d.master), testNow, events.TimestampOutOfOrder, []string{"9 s before", "clock"}},
	} {
		o := decideOne(t, in, c.request.draft.Subject(), c.request.payload, c.storedAt)
		if o.Reason != c.reason {
			t.Errorf("%q (%s), want %s", o.Reason, o.Detail, c.reason)
		}
		for _, text := range c.detail {
			if !strings.Contains(o.Detail, text) {
				t.Errorf("%s: %q lacks %q", o.Reason, o.Detail, text)
			}
		}
	}
}
