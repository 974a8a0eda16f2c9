package sqldb_test

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestPlace: the log can name a database without a password.
func TestPlace(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "x.db")
	for url, want := range map[string]string{
		"sqlite:" + file:                      "sqlite " + file,
		testenv.Database(t, testenv.Postgres): "postgres ",
	} {
		db, err := sqldb.Open(t.Context(), url, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		if got := db.Place(); !strings.HasPrefix(got, want) || strings.ContainsAny(got, "@?") {
			t.Errorf("%q, want %q", got, want)
		}
		t.Log(db.Place())
	}
}
