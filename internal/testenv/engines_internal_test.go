package testenv

import (
	"net/url"
	"testing"
)

// TestSettingsRefused: PostgreSQL knows none of CockroachDB's settings, and a server that refuses
// one gets the others.
func TestSettingsRefused(t *testing.T) {
	t.Parallel()
	database, err := url.Parse(Database(t, Postgres))
	if err != nil {
		t.Fatal(err)
	}
	set(database, append(cockroachSettings(), "CREATE TABLE given (n INT)"))
	if err := execute(database, "SELECT n FROM given"); err != nil {
		t.Error(err)
	}
}
