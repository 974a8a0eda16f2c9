package storage_test

import (
	"fmt"
	"slices"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestServicesByName: a process that remembers the ids of services and one that doesn't write to
// the same rows, and both find each service by its name and by its keys.
func TestServicesByName(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		services := make([]*subtest.Service, 300)
		for i := range services {
			services[i] = subtest.NewService(t, fmt.Sprintf("many-%d", i))
			services[i].Bind(start)
			services[i].Rotate(start+10, 300)
			services[i].Rotate(start+20, 300)
		}
		first := openStore(t, url)
		for _, number := range []int{1, 0, 2} { // a rotation before the binding
			later := openStore(t, url)
			for some := range slices.Chunk(services, 100) {
				var batch []events.Invalidation
				for _, s := range some {
					batch = append(batch, s.Events[number])
				}
				if fresh, again := apply(t, first, batch...), apply(t, later, batch...); len(fresh) != len(some) || len(again) != 0 {
					t.Fatalf("%d of %d events are new, and %d again", len(fresh), len(some), len(again))
				}
				first, later = later, first
			}
		}
		checkByName(t, openStore(t, url), services)
	})
}

func checkByName(t *testing.T, store *storage.Store, services []*subtest.Service) {
	t.Helper()
	for _, s := range services {
		got, found, err := store.KeyringOf(t.Context(), s.Target)
		if diff := diffKeyrings(s.Keyring(), got.Keyring); err != nil || !found || diff != "" {
			t.Fatalf("%s: found %t, %v\n%s", s.Target, found, err, diff)
		}
		if got, found, err := store.FindKey(t.Context(), s.Events[1].NewKey); err != nil || !found || got.Target != s.Target {
			t.Fatalf("the second key of %s: %+v, %t, %v", s.Target, got, found, err)
		}
	}
	if all := all(t, store); len(all) != len(services) {
		t.Errorf("%d services have %d rows", len(services), len(all))
	}
	if stranger, found, err := store.KeyringOf(t.Context(), subtest.NewService(t, "stranger").Target); err != nil || found {
		t.Errorf("a service that was never bound: %+v, %v", stranger, err)
	}
}

// TestRememberedIsAGuess: a store remembers another database, in which services had other ids or
// were missing. It writes what the events of the services say.
func TestRememberedIsAGuess(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		// In SQLite, they get other ids than in the first one.
		for round, again := range [][]int{{2, 1, 0}, {2, 0}} {
			store := openStore(t, url)
			var services []*subtest.Service
			for _, name := range []string{"a", "b", "c"} {
				s := subtest.NewService(t, fmt.Sprintf("%s%d", name, round))
				s.Bind(start)
				apply(t, store, s.Events...)
				services = append(services, s)
			}
			execute(t, url, "DELETE FROM applied", "DELETE FROM services", "DELETE FROM keys")
			for _, i := range again {
				apply(t, openStore(t, url), services[i].Events...)
			}
			var batch []events.Invalidation
			for _, s := range services {
				batch = append(batch, s.Rotate(start+10, 300))
			}
			apply(t, store, append(batch, services[1].Events[0])...)
			for _, s := range services {
				got := all(t, store)[s.Target]
				if diff := diffKeyrings(s.Keyring(), got.Keyring); diff != "" || got.Gap || got.Sequence != 2 {
					t.Errorf("%s: sequence %d, gap %t\n%s", s.Target, got.Sequence, got.Gap, diff)
				}
			}
		}
	})
}

// TestAuthsDatabase: an Auth Provider's database has no index of keys, so FindKey is slow there. It
// finds the key all the same.
func TestAuthsDatabase(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openAuthStore(t, url)
		s := subtest.NewService(t, "a")
		s.Bind(start)
		apply(t, store, s.Events...)
		key := s.Keyring().Keys[0].PublicKey
		if got, found, err := store.FindKey(t.Context(), key); err != nil || !found || got.Target != s.Target {
			t.Errorf("%+v, %t, %v", got, found, err)
		}
	})
}
