package sqldb_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestRefusedTLS: a host that refuses TLS may go on to do so, whether or not its name has another
// address, at which nothing listens. It is no refusal if the URL lets the next attempt go without TLS.
func TestRefusedTLS(t *testing.T) {
	t.Parallel()
	address := testenv.NewServerWithoutTLS(t)
	for parameters, want := range map[string]bool{
		"h:1/db?sslmode=require": true, "h:1/db?sslmode=verify-full": true, "h:1/db?sslmode=prefer": false, "h:1,g:1/db?sslmode=require": false,
	} {
		cfg, err := pgx.ParseConfig("postgres://u@" + parameters)
		if err != nil {
			t.Fatal(err)
		}
		cfg.LookupFunc = func(context.Context, string) ([]string, error) {
			return []string{"127.0.0.1:1", address}, nil
		}
		_, err = pgx.ConnectConfig(t.Context(), cfg)
		if !sqldb.Transient(err) || sqldb.Doubtful(err) != want {
			t.Errorf("%s: doubtful is %t, transient %t: %v", parameters, sqldb.Doubtful(err), sqldb.Transient(err), err)
		}
	}
}
