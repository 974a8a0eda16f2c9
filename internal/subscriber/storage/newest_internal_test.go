package storage

import (
	"crypto/rand"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestNewestPlan: to find the newest keys of a service that has had very many, the database reads a
// bounded number of rows.
func TestNewestPlan(t *testing.T) {
	t.Parallel()
	const many, most = 5000, 320
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store, id := storeOfMany(t, url, many)
		for query, by := range map[string]string{newestOf: "keys_newest", replacedOf: "keys_newest", newestCutoffsOf: "cutoffs"} {
			after := int64(many - 2*most)
			if query == replacedOf {
				after = -after
			}
			plan := planOf(t, store.db, query, id, after, int64(most))
			if !strings.Contains(plan, by) || strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "FULL SCAN") {
				t.Errorf("%s\n%s", query, plan)
			}
			// PostgreSQL counts them.
			for _, read := range regexp.MustCompile(`actual.* rows=(\d+)`).FindAllStringSubmatch(plan, -1) {
				if n, err := strconv.Atoi(read[1]); err != nil || n > 2*most+1 {
					t.Errorf("%s\n%s rows are read:\n%s", query, read[1], plan)
				}
			}
		}
	})
}

// planOf returns how the database answers a query.
func planOf(t *testing.T, db *sqldb.DB, query string, args ...any) string {
	t.Helper()
	explain := map[sqldb.Engine]string{sqldb.SQLite: "EXPLAIN QUERY PLAN ", sqldb.Postgres: "EXPLAIN ANALYZE ", sqldb.Cockroach: "EXPLAIN "}[db.Engine()]
	rows, err := db.Reader().QueryContext(t.Context(), explain+query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var plan strings.Builder
	for rows.Next() {
		line, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range line {
			into[i] = &line[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		if text, ok := line[len(line)-1].(string); ok {
			plan.WriteString(text + "\n")
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return plan.String()
}

// storeOfMany returns an Auth Provider's database with one service that has had that many keys, all
// of which were reset, and the service's id.
func storeOfMany(t testing.TB, url string, keys int) (*Store, int64) {
	t.Helper()
	store, err := Open(t.Context(), url, sqldb.Auth, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	s := subtest.NewService(t, "many")
	first := s.Bind(1)
	if _, err := store.Apply(t.Context(), []events.Invalidation{first}, nil); err != nil {
		t.Fatal(err)
	}
	id, _, err := store.idOf(t.Context(), s.Target)
	if err != nil || id == 0 {
		t.Fatal(id, err)
	}
	rows, cuts := make([]any, 0, 5*keys), make([]any, 0, 3*keys)
	for i := range keys {
		key := make([]byte, 32)
		_, _ = rand.Read(key)
		position := int64(i) + 2
		rows = append(rows, id, key, position, position, position+1)
		cuts = append(cuts, id, position, position)
	}
	insert := func(into string, values []any, columns ...sqldb.Type) {
		for part := range store.db.Engine().Rows(1, columns, values) {
			if _, err := store.db.Exec(t.Context(), into+part.Query, part.Args...); err != nil {
				t.Fatal(err)
			}
		}
	}
	insert("INSERT INTO keys (service, public_key, position, from_time, end_time) ", rows,
		sqldb.Int, sqldb.Bytes, sqldb.Int, sqldb.Int, sqldb.Int)
	insert("INSERT INTO cutoffs (service, position, cut_time) ", cuts, sqldb.Int, sqldb.Int, sqldb.Int)
	_, err = store.db.Exec(t.Context(), "UPDATE services SET head = $1, max_sequence = $1, filled = $1, sequenced = 0", int64(keys)+1)
	if err != nil {
		t.Fatal(err)
	}
	return store, id
}

// BenchmarkNewestKeys is what one read of the newest keys of a service with 100,000 keys costs.
func BenchmarkNewestKeys(b *testing.B) {
	for _, engine := range []string{testenv.SQLite, testenv.Postgres} {
		b.Run(engine, func(b *testing.B) {
			store, _ := storeOfMany(b, testenv.Database(b, engine), 100_000)
			target := subtest.NewService(b, "many").Target
			for b.Loop() {
				if ring, err := store.NewestKeys(b.Context(), target, 256); err != nil || len(ring.Keys) < 256 {
					b.Fatal(len(ring.Keys), err)
				}
			}
		})
	}
}
