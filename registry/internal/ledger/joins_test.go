package ledger

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/schema"
)

// joined is a query that joins a list with tables.
type joined struct {
	query     func(sqldb.Engine) string
	types     []sqldb.Type
	plain     string // its text
	cockroach string // the same there; "": plain, with other words for its joins
}

func joins() []joined {
	text, integer, bytes := sqldb.Text, sqldb.Int, sqldb.Bytes
	return []joined{
		{
			query: servicesNamed, types: []sqldb.Type{text},
			plain: `SELECT target, ` + serviceColumns + ` FROM (%s) AS v JOIN services ON target = v.column1`,
		},
		{
			query: boundOf, types: []sqldb.Type{text},
			plain: `SELECT target FROM (%s) AS v JOIN services ON target = v.column1`,
		},
		{
			query: takenOf, types: []sqldb.Type{bytes},
			plain: `SELECT public_key FROM (%[1]s) AS v JOIN history ON public_key = v.column1
		UNION ALL SELECT master_public_key FROM (%[1]s) AS v JOIN apps ON master_public_key = v.column1
		UNION ALL SELECT public_key FROM (%[1]s) AS v JOIN reserved_keys ON public_key = v.column1`,
		},
		{
			query: priorOf, types: []sqldb.Type{integer, text},
			plain: `SELECT service, request_nonce, request_digest, receipt_nonce, receipt, event, public_key
		FROM (%s) AS v JOIN history ON service = v.column1 AND request_nonce = v.column2`,
		},
		{
			query: earlierOf, types: []sqldb.Type{text, integer},
			plain: `SELECT s.target, h.public_key, h.sequence FROM services s JOIN (%s) AS v ON s.target = v.column1
		JOIN history h ON h.service = s.id AND h.sequence < s.sequence AND h.sequence >= s.sequence - v.column2
		WHERE h.public_key IS NOT NULL ORDER BY h.sequence DESC`,
			cockroach: `SELECT s.target, h.public_key, h.sequence FROM (%s) AS v INNER LOOKUP JOIN services s ON s.target = v.column1
		INNER LOOKUP JOIN history h ON h.service = s.id AND h.sequence < s.sequence AND h.sequence >= s.sequence - v.column2
		WHERE h.public_key IS NOT NULL ORDER BY h.sequence DESC`,
		},
		{
			query: noncesOf, types: []sqldb.Type{text, integer},
			plain: `SELECT s.target, h.sequence, h.event_nonce FROM (%s) AS v JOIN services s ON s.target = v.column1
		JOIN history h ON h.service = s.id AND h.sequence = v.column2`,
		},
		{
			query: claimedOf, types: []sqldb.Type{integer, integer},
			plain: `SELECT h.service, h.sequence, s.target, h.event_nonce, h.receipt_nonce, h.receipt FROM (%s) AS v
		JOIN history h ON h.service = v.column1 AND h.sequence = v.column2 JOIN services s ON s.id = h.service`,
		},
	}
}

// TestJoinTexts: a query that joins a list with tables says only on CockroachDB how.
func TestJoinTexts(t *testing.T) {
	t.Parallel()
	for _, j := range joins() {
		if j.cockroach == "" {
			j.cockroach = strings.ReplaceAll(j.plain, "JOIN", "INNER LOOKUP JOIN")
		}
		for engine, want := range map[sqldb.Engine]string{sqldb.SQLite: j.plain, sqldb.Postgres: j.plain, sqldb.Cockroach: j.cockroach} {
			if got := j.query(engine); got != want {
				t.Errorf("on %s:\n%s\nwant\n%s", engine, got, want)
			}
		}
	}
}

// TestJoinPlans: on CockroachDB, without statistics no table is read whole: neither for a list of 900
// rows, nor for one of a single row, which is planned in a way of its own.
func TestJoinPlans(t *testing.T) {
	t.Parallel()
	db := openDB(t, testenv.Database(t, testenv.Cockroach))
	for _, j := range joins() {
		for part := range sqldb.Cockroach.Rows(1, j.types, someOf(j.types, 901)) { // 900 and 1
			query := fmt.Sprintf(j.query(sqldb.Cockroach), part.Query)
			plan := explain(t, db, "EXPLAIN "+query, part.Args)
			if strings.Contains(plan, "FULL SCAN") || part.Len > 1 && !strings.Contains(plan, "lookup join") {
				t.Errorf("%s\nwith %d rows:\n%s", j.query(sqldb.Cockroach), part.Len, plan)
			}
		}
	}
}

// someOf returns the values of n rows.
func someOf(types []sqldb.Type, n int) []any {
	var values []any
	for i := range n {
		for _, one := range types {
			switch one {
			case sqldb.Text:
				values = append(values, fmt.Sprintf("org.omiappreg.alice.s%d", i))
			case sqldb.Int:
				values = append(values, int64(i))
			default:
				values = append(values, fmt.Appendf(nil, "%032d", i))
			}
		}
	}
	return values
}

// planOf returns what the database says when it is asked to explain a query.
func explain(t *testing.T, db *sqldb.DB, query string, args []any) string {
	t.Helper()
	var plan strings.Builder
	rows, err := db.Reader().QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s\n%v", query, err)
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	for err == nil && rows.Next() {
		line := make([]any, len(columns))
		for i := range line {
			line[i] = new(any)
		}
		err = rows.Scan(line...)
		fmt.Fprintln(&plan, *line[len(line)-1].(*any))
	}
	if err := errors.Join(err, rows.Err()); err != nil {
		t.Fatalf("%s\n%v", query, err)
	}
	return plan.String()
}

// openDB opens a database with the registry's tables.
func openDB(t *testing.T, url string) *sqldb.DB {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	db, err := sqldb.Open(t.Context(), url, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Migrate(t.Context(), sqldb.Registry, schema.Registry()); err != nil {
		t.Fatal(err)
	}
	return db
}
