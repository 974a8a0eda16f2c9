package registry

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/queue"
	"omiappreg.org/keyrotation/streams"
)

// TestForgedSpendsNothing: forged requests use up nobody's rate limit, nonce or key, in one batch with the honest ones and
// before them, and leave no trace in the database.
func TestForgedSpendsNothing(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		in := newTestIntake(t, store, Policy{Origin: testOrigin, RotationsPerMinute: 2}, time.Now)
		victim := newDeveloper(t, store, "org.omiappreg.alice", "victim")
		other := victim.another("other")
		decideAll(t, in, victim.bind(), other.bind())
		thief := events.GenerateSigningKey()
		rotation, binding := victim.rotate(), victim.another("new").bind() // the honest ones, which a thief saw on their way
		forge := func(r request, by events.SigningKey) request {
			payload, err := r.draft.Sign(by)
			if err != nil {
				t.Fatal(err)
			}
			return request{r.draft, payload}
		}
		var forged []request
		for i := range 50 {
			forged = append(forged, forge(rotation, thief), forge(binding, thief),
				victim.sign(events.Rotation, events.GenerateSigningKey(), thief),
				victim.sign(events.Reset, rotation.draft.NewKey, thief),
				victim.sign(events.Revocation, events.SigningKey{}, thief),
				other.sign(events.Rotation, rotation.draft.NewKey, thief),
				victim.another(fmt.Sprintf("unknown-%d", i)).sign(events.Rotation, rotation.draft.NewKey, thief))
		}
		before := dump(t, store)
		for i, o := range decideAll(t, in, forged...) {
			if o.Verdict != decision.Refused {
				t.Fatalf("forged request %d: %v", i, o.Verdict)
			}
		}
		if after := dump(t, store); !maps.Equal(before, after) {
			t.Errorf("forged requests reached the database: %v, then %v", before, after)
		}
		list := slices.Concat(forged, []request{rotation, binding, victim.rotate(), other.rotate(), victim.rotate()})
		outcomes := decideAll(t, in, list...)[len(forged):]
		for i, want := range []events.Reason{"", "", "", "", events.RateLimited} {
			if got := outcomes[i].Reason; got != want {
				t.Errorf("honest request %d: %q, want %q", i+1, got, want)
			}
		}
	})
}

// TestEarlierKeys: who signs with a key of long ago is told so, too, as long as that costs all services together no more than
// it may a second. Beyond that, the newest of the earlier keys are still known.
func TestEarlierKeys(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		now := time.Unix(testNow, 0)
		in := newTestIntake(t, store, Policy{Origin: testOrigin, RotationsPerMinute: -1}, func() time.Time { return now })
		d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		d.now = in.now
		decideAll(t, in, d.bind())
		keys := []events.SigningKey{d.current}
		for range 20 {
			list := make([]request, 13)
			for i := range list {
				list[i] = d.rotate()
				keys = append(keys, d.current)
			}
			decideAll(t, in, list...)
		}
		last := len(keys) - 1
		reason := func(place int) events.Reason {
			return decideAll(t, in, d.sign(events.Rotation, events.GenerateSigningKey(), keys[place]))[0].Reason
		}
		for place, want := range map[int]events.Reason{
			0: events.InvalidSignature, last - decision.MostEarlierKeys - 1: events.InvalidSignature, last - decision.MostEarlierKeys: events.SupersededKey,
			last / 2: events.SupersededKey, last - 1: events.SupersededKey,
		} {
			if got := reason(place); got != want {
				t.Errorf("signed by key %d of %d: %q, want %q", place, len(keys), got, want)
			}
		}
		const each = decision.MostEarlierKeys - decision.NewestKeys
		for range decision.FarVerificationsASecond/each - 5 {
			reason(last / 2)
		}
		if got := reason(last / 2); got != events.InvalidSignature {
			t.Errorf("beyond what may be looked at in a second: %q", got)
		}
		if got := reason(last - decision.NewestKeys); got != events.SupersededKey {
			t.Errorf("one of the newest then: %q", got)
		}
		now = now.Add(time.Second)
		if got := reason(last / 2); got != events.SupersededKey {
			t.Errorf("a second later: %q", got)
		}
	})
}

// TestFloodOrder: a request that is stored behind many forged ones of another service, and behind as much garbage, is
// answered before most of them; and they are all answered.
func TestFloodOrder(t *testing.T) {
	t.Parallel()
	const forged, garbage = 2000, queue.GarbageBurst
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	if err := EnsureStreamsWithin(t.Context(), w.js, 1, StreamLimits{Waiting: forged}); err != nil {
		t.Fatal(err)
	}
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "victim")
	stop := w.run()
	if err := w.committed(d.bind()); err != nil {
		t.Fatal(err)
	}
	stop()
	thief := events.GenerateSigningKey()
	for range forged {
		r := d.sign(events.Binding, thief, thief)
		if _, err := w.js.PublishAsync(r.draft.Subject(), r.payload); err != nil {
			t.Fatal(err)
		}
	}
	for i := range garbage {
		if _, err := w.js.PublishAsync(fmt.Sprintf("%sorg.nobody.s-%d", events.RotationSubject, i), []byte("{")); err != nil {
			t.Fatal(err)
		}
	}
	<-w.js.PublishAsyncComplete()
	honest := d.another("honest").bind()
	w.publish(honest)
	w.run()
	if receipt := w.answer(honest); receipt.Event != events.RequestCommitted {
		t.Fatalf("receipt %+v", receipt)
	}
	stream, err := w.js.Stream(t.Context(), streams.Receipts)
	if err != nil {
		t.Fatal(err)
	}
	last, err := stream.GetLastMsgForSubject(t.Context(), events.ReceiptSubject+honest.draft.Target.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("it has the answer number %d", last.Sequence)
	if last.Sequence > (forged+garbage)/2 {
		t.Errorf("it has the answer number %d", last.Sequence)
	}
	testenv.Eventually(t, time.Hour, "all are answered", func() error {
		info, err := stream.Info(t.Context())
		if err == nil && info.State.LastSeq != 1+forged+garbage+1 {
			err = fmt.Errorf("%d answers", info.State.LastSeq)
		}
		return err
	})
	w.clean()
}
