package verify

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
)

// TestVerifySaysWhatTheKeyringSays: whatever has happened to a service, in whichever order its
// events come, and whatever the clock says, the answer is that of a look at each key of the whole
// keyring, including the current one. If that is sure, the registry is not asked.
func TestVerifySaysWhatTheKeyringSays(t *testing.T) {
	t.Parallel()
	target, keys := subtest.NewService(t, "any").Target, make([]events.SigningKey, 5)
	for i := range keys {
		keys[i] = events.GenerateSigningKey()
	}
	message := []byte("a request")
	rapid.Check(t, func(rt *rapid.T) {
		now, asked := start, false
		m, err := New(Config{
			Registry: &meanwhile{registry{err: errors.New("away")}, func() { asked = true }},
			Log:      slog.New(slog.DiscardHandler), LookupMemory: time.Nanosecond,
			Now: func() time.Time { return time.Unix(now, 0) },
		})
		if err != nil {
			rt.Fatal(err)
		}
		public := func(name string) events.PublicKey { return rapid.SampledFrom(keys).Draw(rt, name).Public() }
		around := func(name string) int64 { return start + rapid.Int64Range(-20, 20).Draw(rt, name) }
		var want known
		heard := false
		for range rapid.IntRange(0, 12).Draw(rt, "steps") {
			now = around("now")
			if rapid.IntRange(0, 2).Draw(rt, "hears") > 0 {
				e := anyEvent(rt, target, public, around)
				m.Apply([]events.Invalidation{e})
				want, heard = want.apply(&e, now), true
			}
			now = around("later, or earlier")
			for _, key := range keys {
				q := events.VerifyQuery{Target: target, Message: message, Signature: key.Sign(message)}
				asked = false
				answer, settled := m.Verify(context.Background(), q)
				wanted, sure := want.judgeIf(heard, &q, now, 0)
				if answer != wanted || settled != sure || sure && asked {
					rt.Fatalf("%+v at %d, by %v: got %+v, %t, want %+v, %t; the registry was asked: %t",
						want, now, key.Public(), answer, settled, wanted, sure, asked)
				}
			}
		}
	})
}

// anyEvent draws an event that a trusted registry could send, whether or not it fits the others.
func anyEvent(
	rt *rapid.T, target events.Target, public func(string) events.PublicKey, around func(string) int64,
) events.Invalidation {
	e := events.Invalidation{
		Target: target, Sequence: rapid.Int64Range(0, 12).Draw(rt, "sequence"), Timestamp: around("timestamp"),
		Event: rapid.SampledFrom([]events.EventKind{
			events.KeyRotation, events.KeyRotation, events.ServiceBinding, events.MasterReset, events.ServiceRevocation,
		}).Draw(rt, "event"),
	}
	e.GracePeriodExpiry = e.Timestamp
	if e.Event == events.KeyRotation {
		e.GracePeriodExpiry += rapid.Int64Range(0, 20).Draw(rt, "grace")
	}
	if e.Event != events.ServiceBinding {
		e.OldKey = public("old")
	}
	if e.Event != events.ServiceRevocation {
		e.NewKey = public("new")
	}
	return e
}
