package storage_test

import (
	"slices"
	"testing"

	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/keyring"
)

// TestNewestKeys: for a service with any number of keys, a bounded number is read. They are the
// newest ones, with the ends that all events of the service say.
func TestNewestKeys(t *testing.T) {
	t.Parallel()
	const want = 256
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openAuthStore(t, url)
		s := subtest.NewService(t, "long")
		s.Bind(start)
		check := func() {
			t.Helper()
			all := keyring.Collect(s.Events)
			got, err := store.NewestKeys(t.Context(), s.Target, want)
			if err != nil {
				t.Fatal(err)
			}
			if least := min(len(all.Keys), want); len(got.Keys) < least || len(got.Keys) > 1024 {
				t.Fatalf("%d keys of %d are read", len(got.Keys), len(all.Keys))
			}
			for i, key := range got.Keys {
				if all.Keys[i] != key || all.Until(key) != got.Until(key) {
					t.Fatalf("key %d of %d: %+v until %d, want %+v until %d", i, len(all.Keys), key, got.Until(key), all.Keys[i], all.Until(all.Keys[i]))
				}
			}
		}
		// The index has those beyond 256, and is used beyond 1,024.
		for _, events := range []int{1, 30, 1024, 1500} {
			for i := len(s.Events); i < events; i++ {
				if at := start + int64(i); i%5 == 4 {
					s.Reset(at)
				} else {
					s.Rotate(at, 300)
				}
			}
			for batch := range slices.Chunk(s.Events, 500) {
				apply(t, store, batch...)
			}
			check()
		}
		if unknown, err := store.NewestKeys(t.Context(), subtest.NewService(t, "nobody").Target, want); err != nil || len(unknown.Keys) != 0 {
			t.Errorf("of a service that nobody knows: %+v, %v", unknown, err)
		}
		// Only the newest events of this service came, so one of its keys is known only by its end.
		late := subtest.NewService(t, "late")
		late.Bind(start)
		for i := range int64(1400) {
			late.Rotate(start+i, 0)
		}
		apply(t, store, late.Events[1100:]...)
		got, err := store.NewestKeys(t.Context(), late.Target, want)
		if replaced := late.Events[1100].OldKey; err != nil || !slices.ContainsFunc(got.Keys, func(k keyring.Key) bool { return k.PublicKey == replaced }) {
			t.Errorf("a key that was only replaced is not among %d, %v", len(got.Keys), err)
		}
	})
}
