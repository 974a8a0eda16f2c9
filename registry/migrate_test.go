package registry

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/schema"
)

// TestMigrateHistoryByID: a database of the release that had the target's name in every row comes up with all that it had:
// services, histories, used nonces and keys, and what waits to be published.
func TestMigrateHistoryByID(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		old := openTestDB(t, url)
		if err := old.Migrate(t.Context(), sqldb.Registry, firstMigrations(t, oldSchema)); err != nil {
			t.Fatal(err)
		}
		keys := fillOldSchema(t, old)
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		checkAllMigrated(t, openStore(t, url), keys)
	})
}

// TestMigrationKilledBetween: who migrates can be killed between any statement and the note that it was run. Whoever comes next
// runs it again. Meanwhile a release of before is told nothing of services that is not so: it finds them all, or gets an error.
func TestMigrationKilledBetween(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.Postgres) // with SQLite, all of it is one transaction
	db := openTestDB(t, url)
	if err := db.Migrate(t.Context(), sqldb.Registry, firstMigrations(t, oldSchema)); err != nil {
		t.Fatal(err)
	}
	keys := fillOldSchema(t, db)
	all, err := fs.Glob(schema.Registry(), "postgres/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for n := oldSchema + 1; n <= len(all); n++ {
		for range 2 {
			if err := db.Migrate(t.Context(), sqldb.Registry, firstMigrations(t, n)); err != nil {
				t.Fatalf("%s: %v", all[n-1], err)
			}
			var found int
			err := db.Reader().QueryRowContext(t.Context(), "SELECT COUNT(*) FROM services").Scan(&found)
			if err == nil && found != len(keys) {
				t.Errorf("after %s, %d services are found", all[n-1], found)
			}
			if _, err := db.Writer().ExecContext(t.Context(), "DELETE FROM goose_db_version WHERE version_id = $1", versionOf(t, all[n-1])); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Migrate(t.Context(), sqldb.Registry, firstMigrations(t, n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	checkAllMigrated(t, openStore(t, url), keys)
}

// versionOf is the number at the beginning of a migration's name.
func versionOf(t *testing.T, name string) int {
	t.Helper()
	number, _, _ := strings.Cut(path.Base(name), "_")
	version, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	return version
}

// oldSchema is how many migrations the release had that kept the target's name in every row.
const oldSchema = 7

func openTestDB(t *testing.T, url string) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), url, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// firstMigrations are the first n.
func firstMigrations(t *testing.T, n int) fs.FS {
	t.Helper()
	files := fstest.MapFS{}
	for _, engine := range []string{"sqlite", "postgres"} {
		names, err := fs.Glob(schema.Registry(), engine+"/*.sql")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names[:min(n, len(names))] { // SQLite may have fewer
			content, err := fs.ReadFile(schema.Registry(), name)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = &fstest.MapFile{Data: content}
		}
	}
	return files
}

// fillOldSchema returns the keys of the services that it makes, by their names.
func fillOldSchema(t *testing.T, old *sqldb.DB) map[string][]events.PublicKey {
	t.Helper()
	exec := func(query string, args ...any) {
		if _, err := old.Writer().ExecContext(t.Context(), query, args...); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	names := []string{"org.omiappreg.alice.one", "org.omiappreg.alice.two", "org.omiappreg.alice.three"}
	keys := map[string][]events.PublicKey{}
	for _, name := range names {
		var before any
		for sequence := range 3 {
			key := events.GenerateSigningKey().Public()
			keys[name] = append(keys[name], key)
			id := fmt.Sprintf("%s-%d", name[len("org.omiappreg.alice."):], sequence+1)
			exec("INSERT INTO history VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)", name, sequence+1,
				string(events.MasterReset), before, key.Bytes(), 7, 7, "event-"+id, "request-"+id, make([]byte, 32), "receipt-"+id, []byte("receipt of "+id))
			before = key.Bytes()
		}
		exec("INSERT INTO services VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", name, "active", 3, before, 7, 5, "6 7 ", "cms", "https://x", "")
	}
	// Of one change both messages wait, of another the receipt, of a third the event.
	const insert = "INSERT INTO outbox (nonce, subject, payload, position, lease_until) VALUES ($1, $2, $3, $4, $5)"
	exec(insert, "event-two-3", events.InvalidationSubject+names[1], []byte("event of two-3"), 100, 1)
	exec(insert, "receipt-two-3", events.ReceiptSubject+names[1], []byte("receipt of two-3"), 101, 1)
	exec(insert, "receipt-one-2", events.ReceiptSubject+names[0], []byte("receipt of one-2"), 99, 1)
	exec(insert, "event-three-1", events.InvalidationSubject+names[2], []byte("event of three-1"), 100, 1)
	return keys
}

func checkAllMigrated(t *testing.T, store *Store, keys map[string][]events.PublicKey) {
	t.Helper()
	for name, list := range keys {
		checkMigrated(t, store, name, list)
	}
	checkWaiting(t, store)
}

func checkMigrated(t *testing.T, store *Store, name string, keys []events.PublicKey) {
	t.Helper()
	target, err := events.ParseTarget(name)
	if err != nil {
		t.Fatal(err)
	}
	one, err := store.service(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	want := toldService{
		service{id: one.id, status: events.Active, sequence: 3, key: keys[2], changedAt: 7, recent: []int64{6, 7}},
		details{boundAt: 5, serviceType: "cms", endpointURL: "https://x"},
	}
	if fmt.Sprint(*one) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", *one, want)
	}
	history, err := store.history(t.Context(), target)
	if err != nil || len(history) != 3 {
		t.Fatalf("%d changes: %v", len(history), err)
	}
	for i, e := range history {
		if e.Sequence != int64(i+1) || e.NewKey != keys[i] || e.Event != events.MasterReset {
			t.Errorf("%s: change %d is %+v", name, i+1, e)
		}
	}
	// What was used stays used.
	short := name[len("org.omiappreg.alice."):]
	nonce, err := events.ParseNonce("request-" + short + "-1")
	if err != nil {
		t.Fatal(err)
	}
	request := &events.Request{Kind: events.Reset, Target: target, Nonce: nonce, NewKey: keys[0]}
	st := loadAll(t, store, []incoming{{request: request}})
	prior, ok := st.committed[requestID{target, nonce}]
	if !ok || !st.takenKeys[keys[0]] || string(prior.receipt) != "receipt of "+short+"-1" {
		t.Errorf("%s: the first request is %v, its key is taken: %t", name, prior, st.takenKeys[keys[0]])
	}
}

// checkWaiting claims what the test left in the outbox. An event brings its receipt with it, and is sent before it.
func checkWaiting(t *testing.T, store *Store) {
	t.Helper()
	claimed, err := store.claimOutbox(t.Context(), 10, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range claimed {
		got = append(got, m.nonce.String()+" "+m.subject+" "+string(m.payload))
	}
	want := []string{
		"receipt-one-2 omi.v1.receipts.org.omiappreg.alice.one receipt of one-2",
		"event-two-3 omi.v1.invalidations.org.omiappreg.alice.two event of two-3",
		"receipt-two-3 omi.v1.receipts.org.omiappreg.alice.two receipt of two-3",
		"event-three-1 omi.v1.invalidations.org.omiappreg.alice.three event of three-1",
		"receipt-three-1 omi.v1.receipts.org.omiappreg.alice.three receipt of three-1",
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("it waits:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, err := store.deleteOutbox(t.Context(), claimed, position{}, 0); err != nil {
		t.Error(err)
	}
	if stale, err := store.outboxStale(t.Context(), time.Now().Add(time.Hour)); err != nil || stale {
		t.Errorf("something still waits: %t, %v", stale, err)
	}
}
