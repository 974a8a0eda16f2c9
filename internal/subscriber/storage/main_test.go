package storage_test

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/keyring"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// openDB opens a database as it is, without a migration.
func openDB(t testing.TB, url string) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), url, discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func openStore(t testing.TB, url string) *storage.Store {
	t.Helper()
	return opened(t, url, sqldb.Billing)
}

func openAuthStore(t testing.TB, url string) *storage.Store {
	t.Helper()
	return opened(t, url, sqldb.Auth)
}

func opened(t testing.TB, url string, owner sqldb.Owner) *storage.Store {
	t.Helper()
	store, err := storage.Open(t.Context(), url, owner, discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

func apply(t testing.TB, store *storage.Store, batch ...events.Invalidation) []events.Invalidation {
	t.Helper()
	fresh, err := store.Apply(t.Context(), batch, nil)
	if err != nil {
		t.Fatal(err)
	}
	return fresh
}

// all returns every service of the store, by its target.
func all(t testing.TB, store *storage.Store) map[events.Target]storage.Service {
	t.Helper()
	services := make(map[events.Target]storage.Service)
	for service, err := range store.Keyrings(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := services[service.Target]; twice {
			t.Fatalf("%s comes twice", service.Target)
		}
		services[service.Target] = service
	}
	return services
}

func diffKeyrings(want, got keyring.Keyring) string {
	if want.Head == got.Head && slices.Equal(want.Keys, got.Keys) && slices.Equal(want.Cutoffs, got.Cutoffs) {
		return "" // cmp is slow, above all with the race detector
	}
	return cmp.Diff(want, got, cmp.AllowUnexported(events.PublicKey{}), cmpopts.EquateEmpty())
}

func execute(t *testing.T, url string, statements ...string) {
	t.Helper()
	db, err := sqldb.Open(t.Context(), url, discard())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	for _, statement := range statements {
		if _, err := db.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
}
