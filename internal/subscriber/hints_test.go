package subscriber_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestHints: with so many services that hints have been moved, and names and keys that have one hint, each is found, by a
// process that remembers it and by one that does not, and none has two rows.
func TestHints(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(context.Context, string, *slog.Logger) (*subscriber.Store, error){
		"billing": subscriber.OpenStore, "auth": subscriber.OpenAuthStore,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testenv.Database(t, testenv.SQLite)
			services := manyServices(t)
			fresh := func(number int) { // of the event of each
				t.Helper()
				store, err := open(t.Context(), url, discard())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = store.Close() })
				for from := 0; from < len(services); from += 1000 {
					var batch []events.Invalidation
					for _, s := range services[from:min(from+1000, len(services))] {
						batch = append(batch, s.Events[number])
					}
					if fresh := apply(t, store, batch...); len(fresh) != len(batch) {
						t.Fatalf("%d of %d events are new", len(fresh), len(batch))
					}
				}
				checkHints(t, store, services, number, name == "billing")
			}
			fresh(1) // a rotation before the binding
			fresh(0)
			fresh(2)
			checkHintTables(t, url, len(services), name == "billing")
		})
	}
}

// manyServices returns services, the last two with one hint to both names and one to their last keys. The last key of ten others
// is chosen to begin like that of the first of those.
func manyServices(t *testing.T) (services []*subtest.Service) {
	t.Helper()
	const alike, unlike = "s2255767", "s17594511"
	const keyAlike, keyUnlike = 10225078, 14410097
	for i := range 3000 {
		services = append(services, subtest.NewService(t, fmt.Sprintf("many-%d", i)))
	}
	services = append(services, subtest.NewService(t, alike), subtest.NewService(t, unlike))
	last := services[len(services)-2:]
	if !bytes.Equal(sqldb.Hint(last[0].Target.String()), sqldb.Hint(last[1].Target.String())) {
		t.Fatalf("%s and %s have not one hint", last[0].Target, last[1].Target)
	}
	for i, s := range services {
		s.Bind(start)
		s.Rotate(start+10, 300)
		s.Rotate(start+20, 300)
		switch left := len(services) - i; {
		case left == 1:
			s.Events[2].NewKey = keyOf(keyUnlike)
		case left == 2:
			s.Events[2].NewKey = keyOf(keyAlike)
		case left <= 12:
			s.Events[2].NewKey = keyOf(keyAlike ^ uint32(left))
		}
	}
	return services
}

// keyOf returns a key that ends with a number.
func keyOf(number uint32) events.PublicKey {
	key, _ := events.PublicKeyFromBytes(binary.BigEndian.AppendUint32(make([]byte, 28), number)) // it has 32 bytes
	return key
}

func checkHints(t *testing.T, store *subscriber.Store, services []*subtest.Service, number int, byKey bool) {
	t.Helper()
	for _, s := range services {
		if got, found, err := store.KeyringOf(t.Context(), s.Target); err != nil || !found || got.Target != s.Target {
			t.Fatalf("%s is not found: %+v, %t, %v", s.Target, got, found, err)
		}
		if !byKey {
			continue // it is slow
		}
		if got, found, err := store.FindKey(t.Context(), s.Events[number].NewKey); err != nil || !found || got.Target != s.Target {
			t.Fatalf("the last key of %s is not found: %+v, %t, %v", s.Target, got, found, err)
		}
	}
	if stranger, found, err := store.KeyringOf(t.Context(), subtest.NewService(t, "stranger").Target); err != nil || found {
		t.Errorf("a service that nobody bound: %+v, %v", stranger, err)
	}
}

func checkHintTables(t *testing.T, url string, services int, byKey bool) {
	t.Helper()
	db := openDB(t, url)
	count := func(query string) (n int) {
		t.Helper()
		if err := db.Reader().QueryRowContext(t.Context(), query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count("SELECT count(*) FROM services"); n != services {
		t.Errorf("%d services have %d rows", services, n)
	}
	tables := map[string]int{"service_hints": services}
	if byKey {
		// A key's bytes are its owner's choice.
		const most = `SELECT max(n) FROM (SELECT count(*) AS n FROM
			(SELECT hint FROM key_hints UNION ALL SELECT hint FROM new_key_hints) GROUP BY hint)`
		if n := count(most); n != 2 {
			t.Errorf("one hint leads to %d services", n)
		}
		tables["key_hints"] = count("SELECT count(*) FROM (SELECT DISTINCT service, omi_hint(public_key) FROM keys)")
	}
	for table, all := range tables {
		moved, still := count("SELECT count(*) FROM "+table), count("SELECT count(*) FROM new_"+table)
		if moved == 0 || still == 0 || moved+still != all {
			t.Errorf("%s: %d moved, %d not, of %d", table, moved, still, all)
		}
	}
}

// TestRememberedIsAGuess: of another database than it remembers, in which services have other ids or none, a store writes what
// their events say.
func TestRememberedIsAGuess(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		for round, again := range [][]int{{2, 1, 0}, {2, 0}} { // in SQLite, they get other ids than before
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

// TestAuthsDatabase: an Auth Provider's database has no index of keys. FindKey is slow there, and right.
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
