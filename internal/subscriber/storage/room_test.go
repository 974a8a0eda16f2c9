package storage_test

import (
	"fmt"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestRoomForVersions: on PostgreSQL the next version of a row has room next to the last one, and
// no index names a column that every event changes. Otherwise each rotation would be written into
// every index of both tables.
func TestRoomForVersions(t *testing.T) {
	t.Parallel()
	const rotations = 10
	// This test has its own server: while a transaction is open in another database, PostgreSQL
	// doesn't look for old row versions to remove, and leaves no room.
	server := testenv.NewPostgresServer(t)
	url := server.CreateDatabase("room", server.Addr())
	store, err := storage.Open(t.Context(), url, sqldb.Billing, discard())
	if err != nil {
		t.Fatal(err)
	}
	services := make([]*subtest.Service, 200)
	for i := range services {
		services[i] = subtest.NewService(t, fmt.Sprintf("s%d", i))
		services[i].Bind(start)
	}
	for round := range rotations + 1 {
		var batch []events.Invalidation
		for _, s := range services {
			batch = append(batch, s.Events[round])
			s.Rotate(start+int64(round), 300)
		}
		apply(t, store, batch...)
	}
	// The server counts a connection's work when it ends, or 10 s later.
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	db := openDB(t, url)
	const moved = `SELECT n_tup_upd, n_tup_upd - n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = $1`
	for _, table := range []string{"services", "keys"} {
		testenv.Eventually(t, time.Minute, "the rows are found beside their last versions: "+table, func() error {
			var updates, elsewhere int64
			if err := db.QueryRow(t.Context(), moved, table).Scan(&updates, &elsewhere); err != nil {
				return err
			}
			if want := int64(rotations * len(services)); updates < want || elsewhere > updates/4 {
				return fmt.Errorf("%d updates, want %d, and %d of them in another place", updates, want, elsewhere)
			}
			return nil
		})
	}
}
