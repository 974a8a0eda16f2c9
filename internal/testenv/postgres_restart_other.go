//go:build !unix

package testenv

import "testing"

// PostgresServer is never made here, see localServer.
type PostgresServer struct{}

// NewPostgresServer skips the test.
func NewPostgresServer(t testing.TB) *PostgresServer {
	t.Helper()
	missing(t, Postgres, errNoLocal())
	return nil
}

// Addr, and all others, are never called.
func (*PostgresServer) Addr() string                      { return "" }
func (*PostgresServer) CreateDatabase(_, _ string) string { return "" }
func (*PostgresServer) Start() error                      { return errNoLocal() }
func (*PostgresServer) Stop() error                       { return errNoLocal() }
func (*PostgresServer) Crash() error                      { return errNoLocal() }
