package sqldb_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

const (
	gatheredRows = 60
	// foldedLog leaves the log empty: a transaction that is rolled back then reads nothing there, not even the first page.
	foldedLog = "PRAGMA wal_checkpoint(TRUNCATE)"
)

// writers returns two databases of one file. The page cache of those that write is so small that most of what a transaction changes
// goes to the log long before it ends; SQLite lends one connection what others don't use, so no other test may run beside.
func writers(t *testing.T) (dbs [2]*sqldb.DB, path string) {
	t.Helper()
	url := testenv.Database(t, testenv.SQLite)
	dbs = [2]*sqldb.DB{open(t, url), open(t, url)}
	for _, db := range dbs {
		exec(t, db, "PRAGMA cache_size = 10")
		var synchronous int
		if err := db.Writer().QueryRowContext(t.Context(), "PRAGMA synchronous").Scan(&synchronous); err != nil || synchronous != 2 {
			t.Fatalf("synchronous is %d (error %v): SQLite would tell of a commit before it is in the log", synchronous, err)
		}
	}
	exec(t, dbs[0], "CREATE TABLE t (n INTEGER PRIMARY KEY, value INTEGER NOT NULL, filling BLOB NOT NULL)")
	return dbs, strings.TrimPrefix(url, "sqlite:")
}

// script runs statements on the connection of a database that writes.
func script(t *testing.T, db *sqldb.DB, statements ...string) {
	t.Helper()
	conn, err := db.Writer().Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range statements {
		if _, err := conn.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
}

// set gives some rows a value, and a page each. New ones at the end are written to the log without anything being read there.
func set(value, from, count int) string {
	return fmt.Sprintf(`REPLACE INTO t WITH RECURSIVE c(n) AS (SELECT %d UNION ALL SELECT n + 1 FROM c WHERE n + 1 < %d)
		SELECT n, %d, randomblob(3000) FROM c`, from, from+count, value)
}

// hold fails the test where a database is damaged, or its values add up to something else.
func hold(t *testing.T, db *sqldb.DB, want int64) {
	t.Helper()
	var found string
	if err := db.Reader().QueryRowContext(t.Context(), "PRAGMA integrity_check(1)").Scan(&found); err != nil || found != "ok" {
		t.Fatalf("the database is damaged: %s (error %v)", found, err)
	}
	if sum := number(t, db, "SELECT COALESCE(sum(value), 0) FROM t"); sum != want {
		t.Fatalf("the values add up to %d, want %d", sum, want)
	}
}

// TestGatheredByARollback: what a transaction wrote to the log and did not commit is not written later, over what another process has
// committed in its place.
func TestGatheredByARollback(t *testing.T) {
	dbs, path := writers(t)
	script(t, dbs[0], foldedLog, "BEGIN IMMEDIATE", set(7, 0, 40))
	if log, err := os.Stat(path + "-wal"); err != nil || log.Size() == 0 {
		t.Fatalf("nothing of a long transaction is in the log yet (error %v): this test shows nothing", err)
	}
	script(t, dbs[0], "ROLLBACK")
	script(t, dbs[1], "BEGIN IMMEDIATE", set(1, 0, 50), "COMMIT")
	script(t, dbs[0], "BEGIN IMMEDIATE", set(2, 56, 2), "COMMIT")
	for _, db := range dbs {
		hold(t, db, 50+4)
	}
}

// TestGatheredIsRead: a transaction finds what it wrote to the log a moment ago.
func TestGatheredIsRead(t *testing.T) {
	dbs, _ := writers(t)
	script(t, dbs[0], foldedLog, "BEGIN IMMEDIATE", set(7, 0, 60), set(1, 40, 1), "COMMIT")
	hold(t, dbs[1], 59*7+1)
}

// TestGathered: two processes that write to one file by turns, and commit or don't, have the file that anybody would expect.
func TestGathered(t *testing.T) {
	dbs, _ := writers(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("the seed is %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	var values [gatheredRows]int64
	for range 40 {
		var statements []string
		if draw.IntN(3) == 0 {
			statements = append(statements, foldedLog)
		}
		statements, next := append(statements, "BEGIN IMMEDIATE"), values
		for range 1 + draw.IntN(3) {
			value, from := draw.IntN(10), draw.IntN(gatheredRows)
			count := 1 + draw.IntN(gatheredRows-from)
			switch draw.IntN(4) {
			case 0:
				statements = append(statements, "SAVEPOINT s", set(value, from, count), "ROLLBACK TO s", "RELEASE s")
			case 1:
				statements = append(statements, fmt.Sprintf("DELETE FROM t WHERE n >= %d", from))
				clear(next[from:])
			default:
				statements = append(statements, set(value, from, count))
				for i := range count {
					next[from+i] = int64(value)
				}
			}
		}
		if draw.IntN(2) == 0 {
			statements, values = append(statements, "COMMIT"), next
		} else {
			statements = append(statements, "ROLLBACK")
		}
		script(t, dbs[draw.IntN(2)], statements...)
		hold(t, dbs[draw.IntN(2)], sum(values))
	}
	for n, want := range values {
		if got := number(t, dbs[0], "SELECT COALESCE(sum(value), 0) FROM t WHERE n = $1", n); got != want {
			t.Errorf("row %d has %d, want %d", n, got, want)
		}
	}
}

func sum(values [gatheredRows]int64) (sum int64) {
	for _, value := range values {
		sum += value
	}
	return sum
}
