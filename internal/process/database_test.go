package process_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestServerWithoutTLS: if a URL asks for TLS and the server has none, the person must change it.
// This holds even for a command that would otherwise say that no server answers.
func TestServerWithoutTLS(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	url := "postgres://omi@" + testenv.NewServerWithoutTLS(t) + "/registry?sslmode=require"
	_, err := process.OpenExisting(ctx, url, func(ctx context.Context) (*sqldb.DB, error) {
		return sqldb.Open(ctx, url, slog.New(slog.DiscardHandler))
	})
	if process.ExitCode(err) != process.ExitUsage || !strings.Contains(err.Error(), "--database-url: ") || !strings.Contains(err.Error(), "sslmode=disable") {
		t.Errorf("code %d: %v", process.ExitCode(err), err)
	}
}
