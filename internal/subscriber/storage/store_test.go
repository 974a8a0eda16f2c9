package storage_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/keyring"
)

const start = int64(1_705_412_600)

// TestStoreIsTheKeyring: the events of some services are applied in any order, repeatedly and in
// any batches. The database ends with what package keyring makes of them.
func TestStoreIsTheKeyring(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		round := 0
		rapid.Check(t, func(rt *rapid.T) {
			round++
			var services []*subtest.Service
			var list []events.Invalidation
			for i := range rapid.IntRange(1, 3).Draw(rt, "services") {
				s := subtest.NewService(t, fmt.Sprintf("s%d-%d", round, i))
				drawHistory(rt, s)
				services, list = append(services, s), append(list, s.Events...)
			}
			list = rapid.Permutation(list).Draw(rt, "order")
			list = slices.Concat(list, rapid.SliceOf(rapid.SampledFrom(list)).Draw(rt, "again"))
			fresh := 0
			for len(list) > 0 {
				n := rapid.IntRange(1, len(list)).Draw(rt, "batch")
				fresh += len(apply(t, store, list[:n]...))
				list = list[n:]
			}
			for _, s := range services {
				checkService(rt, store, s)
				fresh -= len(s.Events)
			}
			if fresh != 0 {
				rt.Errorf("%+d events counted as new than there are", fresh)
			}
		})
	})
}

// TestPing: it reads from each table that every event needs.
func TestPing(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.Postgres)
	store := openStore(t, url)
	testenv.ReadsTables(t, url, store.Ping, "services", "keys", "cutoffs", "applied", "stream_positions")
}

// drawHistory gives a service a history that a registry could have committed.
func drawHistory(t *rapid.T, s *subtest.Service) {
	now := start
	s.Bind(now)
	revoked := false
	for range rapid.IntRange(0, 8).Draw(t, "events") {
		now += rapid.Int64Range(0, 400).Draw(t, "pause")
		kind := rapid.IntRange(0, 6).Draw(t, "kind")
		switch {
		case revoked:
			s.Bind(now)
		case kind == 0:
			s.Reset(now)
		case kind == 1:
			s.Revoke(now)
		case kind == 2:
			s.EndEarlier(now)
		default:
			s.Rotate(now, rapid.Int64Range(0, 300).Draw(t, "grace"))
		}
		revoked = !revoked && kind == 1
	}
}

func checkService(t *rapid.T, store *storage.Store, s *subtest.Service) {
	want := s.Keyring()
	got, found, err := store.KeyringOf(t.Context(), s.Target)
	if err != nil || !found || got.Gap || got.Target != s.Target || got.Sequence != want.Head {
		t.Fatalf("service %s: %+v, %v, %v", s.Target, got, found, err)
	}
	if diff := diffKeyrings(want, got.Keyring); diff != "" {
		t.Fatalf("the database is not what the events say:\n%s", diff)
	}
	for _, key := range want.Keys {
		owner, found, err := store.FindKey(t.Context(), key.PublicKey)
		if err != nil || !found || owner.Target != s.Target || len(owner.Keyring.Keys) != 1 {
			t.Fatalf("find a key: %+v, %v, %v", owner, found, err)
		}
		if have := owner.Keyring.Keys[0]; have != key || owner.Keyring.Until(have) != want.Until(key) {
			t.Fatalf("find a key: got %+v until %d, want %+v until %d", have, owner.Keyring.Until(have), key, want.Until(key))
		}
	}
}

func TestApplyOnce(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		s := subtest.NewService(t, "once")
		one, two := s.Bind(start), s.Rotate(start+10, 300)

		if fresh := apply(t, store, one, two, one); len(fresh) != 2 || fresh[0].Nonce != one.Nonce || fresh[1].Nonce != two.Nonce {
			t.Errorf("new in the first batch: %d events, want the two in their order", len(fresh))
		}
		three := s.Rotate(start+20, 300)
		if fresh := apply(t, store, two, three, one); len(fresh) != 1 || fresh[0].Nonce != three.Nonce {
			t.Errorf("new in the second batch: %d events, want the third alone", len(fresh))
		}
		if diff := diffKeyrings(s.Keyring(), all(t, store)[s.Target].Keyring); diff != "" {
			t.Error(diff)
		}
		if fresh := apply(t, store); len(fresh) != 0 {
			t.Error("an empty batch has new events")
		}
	})
}

// TestIdentity: an event is known by its nonce and timestamp. Other contents make no other event of
// it: in one batch, in a later one, and after a restart. The same nonce at another timestamp does.
func TestIdentity(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store, s := openStore(t, url), subtest.NewService(t, "s")
		s.Bind(start)
		s.Rotate(start+10, 300)
		again := func(e events.Invalidation, sequence int64) events.Invalidation {
			e.Sequence, e.NewKey = sequence, events.GenerateSigningKey().Public()
			return e
		}
		if fresh := apply(t, store, s.Events[0], again(s.Events[0], 7)); len(fresh) != 1 || fresh[0].Sequence != 1 {
			t.Errorf("in one batch: %+v", fresh)
		}
		if fresh := apply(t, store, again(s.Events[0], 8), s.Events[1]); len(fresh) != 1 || fresh[0].Sequence != 2 {
			t.Errorf("in a later batch: %+v", fresh)
		}
		if fresh := apply(t, store, again(s.Events[1], 11)); len(fresh) != 0 {
			t.Errorf("alone, of a service that is remembered: %+v", fresh)
		}
		later := openStore(t, url)
		if fresh := apply(t, later, s.Events[1], again(s.Events[1], 9), again(s.Events[0], 10), s.Events[0]); len(fresh) != 0 {
			t.Errorf("after a restart: %+v", fresh)
		}
		got := all(t, later)[s.Target]
		if diff := diffKeyrings(s.Keyring(), got.Keyring); diff != "" || got.Gap || got.Sequence != 2 {
			t.Errorf("sequence %d, gap %t:\n%s", got.Sequence, got.Gap, diff)
		}
		s.Rotate(start+20, 300)
		third := &s.Events[2]
		third.Nonce = s.Events[1].Nonce
		if fresh := apply(t, later, s.Events[1], *third); len(fresh) != 1 || fresh[0].Sequence != 3 {
			t.Errorf("the nonce at another timestamp: %+v", fresh)
		}
		if fresh := apply(t, later, *third); len(fresh) != 0 {
			t.Errorf("the nonce at another timestamp, twice: %+v", fresh)
		}
		if diff := diffKeyrings(s.Keyring(), all(t, later)[s.Target].Keyring); diff != "" {
			t.Error(diff)
		}
	})
}

// TestManyCutoffs: services that were reset, very often or not at all, in an order that no two
// collations share.
func TestManyCutoffs(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		want := make(map[events.Target]keyring.Keyring)
		key := events.GenerateSigningKey()
		for i, name := range []string{"a", "a-b", "a_b", "ab", "a0", "b", "b0", "ba", "z"} {
			s := subtest.NewService(t, name)
			s.Bind(start)
			for j := range 1500 * (i % 3) {
				s.Events = append(s.Events, events.Invalidation{
					Origin: s.Events[0].Origin, Target: s.Target, Event: events.MasterReset, OldKey: key.Public(), NewKey: key.Public(),
					Timestamp: start + int64(j), GracePeriodExpiry: start + int64(j), Nonce: events.NewNonce(), Sequence: int64(j) + 2,
				})
			}
			apply(t, store, s.Events...)
			want[s.Target] = keyring.Collect(s.Events)
		}
		got := all(t, store)
		for target, keys := range want {
			if diff := diffKeyrings(keys, got[target].Keyring); diff != "" {
				t.Errorf("%s:\n%s", target, diff)
			}
		}
	})
}

// TestLargeBatch needs more than one statement for its rows.
func TestLargeBatch(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		const services, each = 3300, 2
		var batch []events.Invalidation
		want := make(map[events.Target]keyring.Keyring)
		for i := range services {
			s := subtest.NewService(t, fmt.Sprint("s", i))
			s.Bind(start)
			for j := range each - 1 {
				s.Rotate(start+int64(j), 300)
			}
			batch = append(batch, s.Events...)
			want[s.Target] = s.Keyring()
		}
		if fresh := apply(t, store, batch...); len(fresh) != len(batch) {
			t.Fatalf("%d of %d events are new", len(fresh), len(batch))
		}
		got := all(t, store)
		if len(got) != services {
			t.Fatalf("%d services, want %d", len(got), services)
		}
		for target, keys := range want {
			if diff := diffKeyrings(keys, got[target].Keyring); diff != "" || got[target].Gap {
				t.Fatalf("%s: gap: %v\n%s", target, got[target].Gap, diff)
			}
		}
	})
}

func TestGapsAndFilling(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		whole, s := subtest.NewService(t, "whole"), subtest.NewService(t, "torn")
		whole.Bind(start)
		apply(t, store, whole.Events...)
		gap := func(step string, want bool) {
			t.Helper()
			list, err := store.Gaps(t.Context(), events.Target{}, 10)
			if err != nil {
				t.Fatal(err)
			}
			has, err := store.HasGap(t.Context(), s.Target)
			if err != nil {
				t.Fatal(err)
			}
			service, _, err := store.KeyringOf(t.Context(), s.Target)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) > 0 != want || has != want || service.Gap != want {
				t.Errorf("%s: gaps %v, %v, %v; want %v", step, list, has, service.Gap, want)
			}
		}
		s.Bind(start)
		s.Rotate(start+10, 300)
		s.Reset(start + 20)
		old := s.History()
		s.Rotate(start+30, 300)
		s.Rotate(start+40, 300)
		apply(t, store, s.Events[0], s.Events[3])
		gap("without 2 and 3", true)
		if after, err := store.Gaps(t.Context(), s.Target, 10); err != nil || len(after) != 0 {
			t.Errorf("gaps after the only one: %v, %v", after, err)
		}
		if err := store.Fill(t.Context(), s.Target, keyring.OfHistory(&old)); err != nil {
			t.Fatal(err)
		}
		gap("filled up to 3, before the newest event: who knows what lies between", true)

		history := s.History()
		if err := store.Fill(t.Context(), s.Target, keyring.OfHistory(&history)); err != nil {
			t.Fatal(err)
		}
		gap("filled up to 5", false)
		apply(t, store, s.Events[1], s.Events[2], s.Events[4])
		gap("late events after the filling", false)
		s.Rotate(start+50, 300)
		s.Rotate(start+60, 300)
		apply(t, store, s.Events[6])
		gap("a late event does not stand in for the one that is missing now", true)
		apply(t, store, s.Events[5])
		gap("all are there", false)
		// The history names the ends as the reset changed them.
		want := s.Keyring().Join(keyring.OfHistory(&history))
		if diff := diffKeyrings(want, all(t, store)[s.Target].Keyring); diff != "" {
			t.Error(diff)
		}
	})
}

// TestGapIsWhatIsMissing: with any history filled in, and events in any batches, there is a gap as
// long as an event between that history and the newest event is missing.
func TestGapIsWhatIsMissing(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		round := 0
		rapid.Check(t, func(rt *rapid.T) {
			round++
			s := subtest.NewService(t, fmt.Sprint("s", round))
			s.Bind(start)
			filled := rapid.IntRange(0, 6).Draw(rt, "filled")
			for i := range int64(11) {
				if len(s.Events) == filled {
					history := s.History()
					if err := store.Fill(t.Context(), s.Target, keyring.OfHistory(&history)); err != nil {
						rt.Fatal(err)
					}
				}
				s.Rotate(start+i, 300)
			}
			list := rapid.Permutation(s.Events).Draw(rt, "order")
			seen, newest := make(map[int64]bool), int64(filled)
			for len(list) > 0 {
				n := rapid.IntRange(1, len(list)).Draw(rt, "batch")
				apply(t, store, list[:n]...)
				for i := range list[:n] {
					seen[list[i].Sequence], newest = true, max(newest, list[i].Sequence)
				}
				list = list[n:]
				missing := false
				for sequence := int64(filled) + 1; sequence <= newest; sequence++ {
					missing = missing || !seen[sequence]
				}
				if gap, err := store.HasGap(t.Context(), s.Target); err != nil || gap != missing {
					rt.Fatalf("gap %t, %v; want %t: filled up to %d, and there are %v", gap, err, missing, filled, seen)
				}
			}
		})
	})
}

// TestOldHistory: an account that is older than the newest event doesn't change which events are
// missing.
func TestOldHistory(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		s := subtest.NewService(t, "old")
		s.Bind(start)
		s.Rotate(start+10, 300)
		old := s.History()
		s.Rotate(start+20, 300)
		apply(t, store, s.Events[0], s.Events[2])
		if err := store.Fill(t.Context(), s.Target, keyring.OfHistory(&old)); err != nil {
			t.Fatal(err)
		}
		if gap, err := store.HasGap(t.Context(), s.Target); err != nil || !gap {
			t.Errorf("gap %v, %v; want one: the event after the history may be missing as well", gap, err)
		}
		apply(t, store, s.Events[1])
		if gap, err := store.HasGap(t.Context(), s.Target); err != nil || gap {
			t.Errorf("gap %v, %v; want none, all events are there", gap, err)
		}
	})
}

// TestWithoutSequence: the events of a registry that sends only the spec's members have no gaps,
// and are ordered by their timestamps.
func TestWithoutSequence(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		s := subtest.NewService(t, "plain")
		s.Bind(start)
		s.Rotate(start+10, 300)
		s.Rotate(start+20, 300)
		for i := range s.Events {
			s.Events[i].Sequence = 0
		}
		apply(t, store, s.Events[2], s.Events[0])
		service := all(t, store)[s.Target]
		if current, ok := service.Keyring.Current(); !ok || current.PublicKey != s.Current().Public() || service.Sequence != 0 || service.Gap {
			t.Errorf("got %+v", service)
		}
	})
}

func TestSetAside(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		add := func(from, to uint64) {
			t.Helper()
			var list []storage.SetAside
			for i := from; i <= to; i++ {
				list = append(list, storage.SetAside{
					StreamSequence: i, Subject: "omi.v1.invalidations.x", Reason: "wrong_origin", Detail: "d", Payload: []byte{0xff, 0}, At: start,
				})
			}
			// The same ones again do no harm.
			if _, err := store.Apply(t.Context(), nil, append(list, list...)); err != nil {
				t.Fatal(err)
			}
		}
		add(1, 600)
		add(500, 1100)
		list, err := store.ListSetAside(t.Context(), 5000)
		if err != nil || len(list) != 1000 || list[0].StreamSequence != 1100 || list[999].StreamSequence != 101 {
			t.Fatalf("%d messages, %v; want the newest 1,000", len(list), err)
		}

		// A text that PostgreSQL refuses must not hold up the stream.
		odd := storage.SetAside{StreamSequence: 3, Subject: "omi.v1.\xff\x00\x1b[2J", Reason: "panic", Detail: "a\x00b", At: start + 1}
		if _, err := store.Apply(t.Context(), nil, []storage.SetAside{odd}); err != nil {
			t.Fatal(err)
		}
		list, err = store.ListSetAside(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		odd.Subject, odd.Detail, odd.Payload = `omi.v1.\xff\x00\x1b[2J`, `a\x00b`, []byte{}
		if diff := cmp.Diff([]storage.SetAside{odd}, list, cmp.Comparer(bytes.Equal)); diff != "" {
			t.Error(diff)
		}
	})
}

// TestReopen: what was applied is there after a restart.
func TestReopen(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		s := subtest.NewService(t, "again")
		s.Bind(start)
		s.Rotate(start+10, 300)
		store, err := storage.Open(t.Context(), url, sqldb.Billing, discard())
		if err != nil {
			t.Fatal(err)
		}
		apply(t, store, s.Events...)
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		store = openStore(t, url)
		if fresh := apply(t, store, s.Events...); len(fresh) != 0 {
			t.Errorf("%d events count as new again", len(fresh))
		}
		if diff := diffKeyrings(s.Keyring(), all(t, store)[s.Target].Keyring); diff != "" {
			t.Error(diff)
		}
		if _, found, err := store.KeyringOf(t.Context(), subtest.NewService(t, "other").Target); found || err != nil {
			t.Errorf("a service that nobody named: %v, %v", found, err)
		}
		if _, found, err := store.FindKey(t.Context(), events.GenerateSigningKey().Public()); found || err != nil {
			t.Errorf("a key that nobody named: %v, %v", found, err)
		}
	})
}
