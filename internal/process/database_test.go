package process_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// TestServerWithoutTLS: a URL that asks for TLS where the server has none is the person's to change,
// also for a command that would otherwise say that no server answers.
func TestServerWithoutTLS(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, 8))
			_, _ = io.WriteString(conn, "N")
			_ = conn.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	url := "postgres://omi@" + listener.Addr().String() + "/registry?sslmode=require"
	_, err = process.OpenExisting(ctx, url, func(ctx context.Context) (*sqldb.DB, error) {
		return sqldb.Open(ctx, url, slog.New(slog.DiscardHandler))
	})
	if process.ExitCode(err) != process.ExitUsage || !strings.Contains(err.Error(), "--database-url: ") || !strings.Contains(err.Error(), "sslmode=disable") {
		t.Errorf("code %d: %v", process.ExitCode(err), err)
	}
}
