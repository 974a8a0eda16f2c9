package keyring_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

var opts = cmp.Options{cmp.AllowUnexported(events.PublicKey{}), cmpopts.EquateEmpty()}

// key makes distinct keys cheaply; a keyring never looks inside one.
func key(n int) events.PublicKey {
	b := make([]byte, 32)
	b[0], b[1], b[31] = byte(n), byte(n>>8), 1
	k, err := events.PublicKeyFromBytes(b)
	if err != nil {
		panic(err)
	}
	return k
}

// history draws one that a registry could have committed: a binding, then anything, with commits that may share a
// second. Without sequences, each commit has a second of its own, as only its timestamp orders it.
func history(t *rapid.T) []events.Invalidation {
	sequenced := rapid.Bool().Draw(t, "sequenced")
	n := rapid.IntRange(1, 12).Draw(t, "events")
	now := int64(1_705_412_600)
	var list []events.Invalidation
	current := events.PublicKey{}
	for i := range n {
		step := rapid.Int64Range(0, 400).Draw(t, "pause")
		if !sequenced {
			step++
		}
		now += step
		e := events.Invalidation{Event: events.ServiceBinding, OldKey: current, NewKey: key(i + 1), Timestamp: now, GracePeriodExpiry: now}
		if sequenced {
			e.Sequence = int64(i + 1)
		}
		if !current.IsZero() {
			e.Event = rapid.SampledFrom([]events.EventKind{
				events.KeyRotation, events.KeyRotation, events.KeyRotation, events.MasterReset, events.ServiceRevocation,
			}).Draw(t, "event")
		}
		switch e.Event {
		case events.KeyRotation:
			if e.EndEarlier = rapid.IntRange(0, 5).Draw(t, "end earlier") == 0; !e.EndEarlier {
				e.GracePeriodExpiry += rapid.Int64Range(0, 300).Draw(t, "grace")
			}
		case events.ServiceRevocation:
			e.NewKey = events.PublicKey{}
		}
		current = e.NewKey
		list = append(list, e)
	}
	return list
}

func fold(list []events.Invalidation) keyring.Keyring {
	var k keyring.Keyring
	for i := range list {
		k = k.Apply(&list[i])
	}
	return k
}

// TestOneState: any order, any repetition, and any subset followed by the rest, end in the same state, which is the
// one that a plain reading of the history gives.
func TestOneState(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		list := history(t)
		want := fold(list)

		shuffled := rapid.Permutation(list).Draw(t, "order")
		repeated := slices.Concat(shuffled, rapid.SliceOf(rapid.SampledFrom(list)).Draw(t, "again"))
		if diff := cmp.Diff(want, fold(repeated), opts); diff != "" {
			t.Fatalf("order or repetition changed the state:\n%s", diff)
		}
		cut := rapid.IntRange(0, len(list)).Draw(t, "cut")
		if diff := cmp.Diff(want, fold(shuffled[cut:]).Join(fold(shuffled[:cut])), opts); diff != "" {
			t.Fatalf("a subset, then the rest, changed the state:\n%s", diff)
		}
		if diff := cmp.Diff(want, keyring.Collect(repeated), opts); diff != "" {
			t.Fatalf("collected at once, the state is another:\n%s", diff)
		}
		checkAgainstPlainReading(t, list, want)
	})
}

// checkAgainstPlainReading replays the history in its order with the simplest code that can be right.
func checkAgainstPlainReading(t *rapid.T, list []events.Invalidation, k keyring.Keyring) {
	until := map[events.PublicKey]int64{}
	current := events.PublicKey{}
	for _, e := range list {
		if !current.IsZero() {
			until[current] = e.GracePeriodExpiry
		}
		if e.EndsEarlierKeys() {
			for old, end := range until {
				until[old] = min(end, e.Timestamp)
			}
		}
		current = e.NewKey
	}
	got, ok := k.Current()
	if ok != !current.IsZero() || got.PublicKey != current {
		t.Fatalf("current key: got %v, want %v", got.PublicKey, current)
	}
	for old, end := range until {
		have, ok := k.Find(old)
		if !ok || k.Until(have) != end {
			t.Fatalf("end of key %v: got %d (known: %v), want %d", old, k.Until(have), ok, end)
		}
		if k.At(have, end-1) != keyring.InGrace || k.At(have, end) != keyring.Ended {
			t.Fatalf("key %v must be accepted until just before %d", old, end)
		}
	}
}

// TestSubsetRevivesNothing: who has seen only some of the events accepts no key longer than who has seen all,
// unless the event that ends it is the one that is missing.
func TestSubsetRevivesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		list := history(t)
		all := fold(list)
		missing := rapid.IntRange(0, len(list)-1).Draw(t, "missing")
		some := fold(slices.Delete(slices.Clone(list), missing, missing+1))
		for _, key := range some.Keys {
			if key.PublicKey == list[missing].OldKey || list[missing].EndsEarlierKeys() {
				continue
			}
			full, _ := all.Find(key.PublicKey)
			if some.Until(key) > all.Until(full) {
				t.Fatalf("without event %d key %v is accepted until %d instead of %d", missing+1, key.PublicKey, some.Until(key), all.Until(full))
			}
		}
	})
}

// TestRecent: a pruned keyring answers "now" as the whole one does.
func TestRecent(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		list := history(t)
		all := fold(list)
		now := rapid.SampledFrom(list).Draw(t, "at").Timestamp + rapid.Int64Range(0, 300).Draw(t, "after")
		before := slices.Clone(all.Keys)
		recent := all.Recent(now, 1)
		for _, key := range all.Keys {
			kept, ok := recent.Find(key.PublicKey)
			if state := all.At(key, now); state != keyring.Ended && (!ok || recent.At(kept, now) != state) {
				t.Fatalf("key %v is %v, but not in the pruned keyring", key.PublicKey, state)
			}
		}
		for ended := range 4 {
			room := ended
			want := slices.DeleteFunc(slices.Clone(all.Keys), func(key keyring.Key) bool {
				if all.At(key, now) == keyring.Ended {
					room--
				}
				return all.At(key, now) == keyring.Ended && room < 0
			})
			if diff := cmp.Diff(want, all.Recent(now, ended).Keys, opts) + cmp.Diff(before, all.Keys, opts); diff != "" {
				t.Fatalf("%d ended ones may be kept:\n%s", ended, diff)
			}
		}
	})
}

// TestRecentGoesOn: events in any order, each of them joined to what is left after the one before it, as Auth does it. Whoever
// has all of them whole accepts the same keys, from then on.
func TestRecentGoesOn(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.Permutation(history(t)).Draw(t, "order")
		now := int64(1_705_412_600)
		var whole, recent keyring.Keyring
		for i := range list {
			whole = whole.Apply(&list[i])
			now += rapid.Int64Range(0, 600).Draw(t, "pause")
			recent = recent.Apply(&list[i]).Recent(now, 1)
		}
		for _, at := range []int64{now, now + rapid.Int64Range(0, 3000).Draw(t, "after")} {
			for _, key := range whole.Keys {
				state := whole.At(key, at)
				if accepted := state == keyring.Current || state == keyring.InGrace; !accepted {
					continue
				}
				if kept, ok := recent.Find(key.PublicKey); !ok || recent.At(kept, at) != state || recent.Until(kept) != whole.Until(key) {
					t.Fatalf("key %v is %v until %d, and in the pruned keyring %v until %d", key, state, whole.Until(key), kept, recent.Until(kept))
				}
			}
			for _, key := range recent.Keys {
				same, _ := whole.Find(key.PublicKey)
				if state, want := recent.At(key, at), whole.At(same, at); state != want && state != keyring.Replaced {
					t.Fatalf("key %v is %v in the pruned keyring, and %v in the whole one", key, state, want)
				}
			}
		}
	})
}

// TestRecentForgetsCutoffs: nothing limits how often a developer may reset a service.
func TestRecentForgetsCutoffs(t *testing.T) {
	t.Parallel()
	var k keyring.Keyring
	for i := int64(1); i <= 1000; i++ {
		e := events.Invalidation{Event: events.MasterReset, OldKey: key(int(i)), NewKey: key(int(i) + 1), Timestamp: i, GracePeriodExpiry: i, Sequence: i}
		k = k.Apply(&e).Recent(i-10, 8) // ten of them are still to come
	}
	if len(k.Cutoffs) != 11 || len(k.Keys) != 11+8 {
		t.Errorf("%d cutoffs and %d keys are kept", len(k.Cutoffs), len(k.Keys))
	}
	for _, old := range k.Keys[1:] {
		if state := k.At(old, 1000); state != keyring.Ended {
			t.Errorf("%v is %v", old, state)
		}
	}
	k = k.Recent(2000, 8)
	late := events.Invalidation{Event: events.ServiceBinding, NewKey: key(2000), Timestamp: 400, GracePeriodExpiry: 400, Sequence: 999}
	k = k.Apply(&late)
	for _, at := range []int64{2000, 500} { // a clock that is set back
		if found, _ := k.Find(key(2000)); k.At(found, at) != keyring.Ended || len(k.Cutoffs) != 1 {
			t.Errorf("at %d, a key of before the last reset is %v; %d cutoffs", at, k.At(found, at), len(k.Cutoffs))
		}
	}
}

// TestSort: very many keys, given in any order, are what they are joined.
func TestSort(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := fold(history(t))
		got := keyring.Keyring{
			Head: want.Head, Keys: rapid.Permutation(want.Keys).Draw(t, "keys"), Cutoffs: rapid.Permutation(want.Cutoffs).Draw(t, "cutoffs"),
		}
		got.Sort()
		if diff := cmp.Diff(want, got, opts); diff != "" {
			t.Error(diff)
		}
	})
}

func TestHistoryFillsAGap(t *testing.T) {
	t.Parallel()
	list := []events.Invalidation{
		{Event: events.ServiceBinding, NewKey: key(1), Timestamp: 100, GracePeriodExpiry: 100, Sequence: 1},
		{Event: events.KeyRotation, OldKey: key(1), NewKey: key(2), Timestamp: 200, GracePeriodExpiry: 500, Sequence: 2},
		{Event: events.KeyRotation, OldKey: key(2), NewKey: key(3), Timestamp: 300, GracePeriodExpiry: 600, Sequence: 3},
	}
	gap := fold([]events.Invalidation{list[0], list[2]})
	first, _ := gap.Find(key(1))
	if state := gap.At(first, 400); state != keyring.Replaced {
		t.Fatalf("a key whose end is missing is %v, want Replaced", state)
	}
	end1, end2 := int64(500), int64(600)
	filled := gap.Join(keyring.OfHistory(&events.ServiceHistory{Sequence: 3, Keys: []events.HistoryKey{
		{PublicKey: key(1), Event: events.ServiceBinding, Sequence: 1, From: 100, Until: &end1},
		{PublicKey: key(2), Event: events.KeyRotation, Sequence: 2, From: 200, Until: &end2},
		{PublicKey: key(3), Event: events.KeyRotation, Sequence: 3, From: 300},
	}}))
	if diff := cmp.Diff(fold(list), filled, opts); diff != "" {
		t.Fatalf("the history does not fill the gap:\n%s", diff)
	}
}
