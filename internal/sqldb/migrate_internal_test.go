package sqldb

import (
	"slices"
	"testing"
	"testing/fstest"
)

// TestMigrationsOfEngine: each server gets the files for both and those for itself. CockroachDB is not
// on every machine that runs the tests.
func TestMigrationsOfEngine(t *testing.T) {
	t.Parallel()
	fsys := fstest.MapFS{
		"sqlite/00001_a.sql": {}, "sqlite/00007_f.sql": {},
		"postgres/00001_a.sql":               {},
		"postgres/00002_b_on_postgresql.sql": {}, "postgres/00002_b_on_cockroachdb.sql": {},
		"postgres/00003_on_postgresql_c.sql": {}, "postgres/00004_d_on_postgresql.sql": {}, "postgres/00005_e_on_cockroachdb.sql": {},
	}
	for engine, want := range map[Engine][]int64{SQLite: {1, 7}, Postgres: {1, 2, 3, 4}, Cockroach: {1, 2, 3, 5}} {
		_, versions, err := (&DB{engine: engine}).migrations(fsys)
		if err != nil || !slices.Equal(versions, want) {
			t.Errorf("%s: %v, %v; want %v", engine, versions, err, want)
		}
	}
}
