package verify

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// TestFollow: for a rotation that follows, follow makes the record that package keyring makes, and
// it recognises such a rotation. All values are few, so that they meet.
func TestFollow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		now := rapid.Int64Range(0, 60).Draw(rt, "now")
		var have known
		event := func() events.Invalidation {
			e := events.Invalidation{
				Event: rapid.SampledFrom([]events.EventKind{
					events.KeyRotation, events.KeyRotation, events.KeyRotation,
					events.MasterReset, events.ServiceRevocation, events.ServiceBinding,
				}).Draw(rt, "event"),
				OldKey: fewKeys(rt), NewKey: fewKeys(rt), Sequence: rapid.Int64Range(0, 40).Draw(rt, "sequence"),
				Timestamp: rapid.Int64Range(0, 40).Draw(rt, "time"),
			}
			if current, ok := have.keyring.Current(); ok && rapid.IntRange(0, 9).Draw(rt, "strays") > 0 {
				e.OldKey = current.PublicKey
				if e.Sequence > 0 {
					e.Sequence = have.keyring.Head + rapid.Int64Range(0, 2).Draw(rt, "further")
				}
			}
			e.GracePeriodExpiry = e.Timestamp + rapid.Int64Range(0, 40).Draw(rt, "grace")
			if e.Event == events.KeyRotation && rapid.IntRange(0, 9).Draw(rt, "end earlier") == 0 {
				e.GracePeriodExpiry, e.EndEarlier = e.Timestamp, true
			}
			return e
		}
		for range rapid.IntRange(1, 30).Draw(rt, "events") {
			e, before := event(), appendRecord(nil, &have)
			kept := bytes.Clone(before)
			after := have.apply(&e, now)
			want := appendRecord(nil, &after)
			got, ok := before.follow(nil, &e, now)
			if ok && !bytes.Equal(got, want) {
				rt.Fatalf("%+v and then %+v at %d: got\n%x, want\n%x", have, e, now, got, want)
			}
			if !bytes.Equal(before, kept) {
				rt.Fatal("the record was written to")
			}
			current, has := have.keyring.Current()
			_, known := have.keyring.Find(e.NewKey)
			usual := e.Event == events.KeyRotation && !e.EndEarlier && !e.OldKey.IsZero() && !e.NewKey.IsZero() && !known &&
				has && current == have.keyring.Keys[0] && current.PublicKey == e.OldKey &&
				keyring.Order(&e) > have.keyring.Head && have.keyring.Head > 0 && len(have.keyring.Cutoffs) < 2
			if ok != usual {
				rt.Fatalf("%+v and then %+v: followed %t", have, e, ok)
			}
			answer, sure := got.accepted()
			if ok && (!sure || answer != after.accepted(&after.keyring.Keys[0])) {
				rt.Fatalf("%+v and then %+v: the new key is accepted: %t, %+v", have, e, sure, answer)
			}
			have = after
			now += rapid.Int64Range(0, 10).Draw(rt, "pause")
		}
	})
}

// fewKeys draws one of some twenty, or none.
func fewKeys(rt *rapid.T) events.PublicKey {
	b := make([]byte, 32)
	b[0] = byte(rapid.IntRange(0, 20).Draw(rt, "key"))
	return must(events.PublicKeyFromBytes(b))
}
