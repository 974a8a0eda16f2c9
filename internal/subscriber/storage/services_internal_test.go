package storage

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestKnownText: the query for known services names its join only on CockroachDB.
func TestKnownText(t *testing.T) {
	t.Parallel()
	const plain = `SELECT s.id, s.target FROM (VALUES) AS v JOIN services AS s ON s.id = v.column1 AND s.target = v.column2`
	hinted := strings.Replace(plain, "JOIN", "INNER LOOKUP JOIN", 1)
	for engine, want := range map[sqldb.Engine]string{sqldb.SQLite: plain, sqldb.Postgres: plain, sqldb.Cockroach: hinted} {
		if got := knownOf(engine, "VALUES"); got != want {
			t.Errorf("on %s:\n%s\nwant\n%s", engine, got, want)
		}
	}
}

// TestKnownPlan: on CockroachDB, without statistics, the table services is not read whole: neither
// for a list of 900 rows, nor for a single row, which is planned in another way.
func TestKnownPlan(t *testing.T) {
	t.Parallel()
	store, err := Open(t.Context(), testenv.Database(t, testenv.Cockroach), sqldb.Auth, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	list, ids := make([]service, 901), map[string]int64{}
	for i := range list {
		list[i].target = fmt.Sprintf("org.omiappreg.alice.s%d", i)
		ids[list[i].target] = int64(i)
	}
	for part := range sqldb.Cockroach.Rows(1, serviceColumns(), serviceValues(list, ids)) {
		plan := planOf(t, store.db, knownOf(sqldb.Cockroach, part.Query), part.Args...)
		if strings.Contains(plan, "FULL SCAN") || part.Len > 1 && !strings.Contains(plan, "lookup join") {
			t.Errorf("with %d rows:\n%s", part.Len, plan)
		}
	}
}
