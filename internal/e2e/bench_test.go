package e2e_test

import (
	"bytes"
	"context"
	"database/sql"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/go-json-experiment/json"
	_ "github.com/jackc/pgx/v5/stdlib" // for what is left on the server

	"omiappreg.org/keyrotation/internal/localserver"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestBenchOnPostgres measures on a server that is there, and on one that `omi bench` starts.
func TestBenchOnPostgres(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	useSources(t)
	const itsOwn = "one of its own"
	server := testenv.Database(t, testenv.Postgres)
	for name, flags := range map[string][]string{
		"one that is there": {"--database-url", server, "--sync-always"},
		itsOwn:              {"--store", "postgres"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := localserver.PostgresPrograms(); err != nil && name == itsOwn {
				testenv.Missing(t, testenv.Postgres, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			args := append([]string{"bench", "--services", "20", "--rotations", "100", "--json"}, flags...)
			var stderr bytes.Buffer
			command := exec.CommandContext(ctx, filepath.Join(binaries, "omi"), args...)
			command.Stderr = &stderr
			out, err := command.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, &stderr)
			}
			var result struct {
				Store     string `json:"store"`
				Rotations int    `json:"rotations"`
				Lost      int    `json:"lost"`
				Doubled   int    `json:"doubled"`
			}
			if err := json.Unmarshal(out, &result); err != nil {
				t.Fatal(err)
			}
			if result.Store != "postgres" || result.Rotations != 100 || result.Lost+result.Doubled != 0 {
				t.Errorf("%s", out)
			}
		})
	}
	t.Cleanup(func() { nothingLeft(t, server) })
}

// nothingLeft looks for databases of omi bench on a server.
func nothingLeft(t *testing.T, server string) {
	t.Helper()
	db, err := sql.Open("pgx", server)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var left int
	if err := db.QueryRow(`SELECT count(*) FROM pg_database WHERE datname LIKE 'omi_bench_%'`).Scan(&left); err != nil || left > 0 {
		t.Errorf("%d databases are left: %v", left, err)
	}
}
