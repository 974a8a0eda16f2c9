package sqldb_test

import (
	"testing"

	"omiappreg.org/keyrotation/internal/testenv"
)

// BenchmarkCommit measures a commit of 1,000 pages, all over a file of 80 MB, and its part of the checkpoints: what a batch of rotations
// costs SQLite among very many services.
func BenchmarkCommit(b *testing.B) {
	db := open(b, testenv.Database(b, testenv.SQLite))
	exec(b, db, "CREATE TABLE t (n INTEGER PRIMARY KEY, value INTEGER NOT NULL, filling BLOB NOT NULL)")
	exec(b, db, `WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n < 19999)
		INSERT INTO t SELECT n, 0, zeroblob(3000) FROM c`)
	round := 0
	for b.Loop() {
		round++
		exec(b, db, `WITH RECURSIVE c(n) AS (SELECT $1 UNION ALL SELECT n + 20 FROM c WHERE n + 20 < 20000)
			UPDATE t SET value = value + 1 WHERE n IN (SELECT n FROM c)`, round%20)
	}
}
