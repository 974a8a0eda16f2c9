package sqldb

import (
	"io/fs"
	"slices"
	"testing"
	"testing/fstest"
)

// TestWithoutPostgresOnly: CockroachDB, which is not on every machine that runs the tests, gets all migrations but those for
// PostgreSQL alone.
func TestWithoutPostgresOnly(t *testing.T) {
	t.Parallel()
	names, err := fs.Glob(withoutPostgresOnly{fstest.MapFS{
		"00001_a.sql": {}, "00002_b" + PostgresOnly: {}, "00003_on_postgresql_c.sql": {},
	}}, "*.sql")
	if want := []string{"00001_a.sql", "00003_on_postgresql_c.sql"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%v, %v; want %v", names, err, want)
	}
}
