package testenv

import (
	"net/url"
	"testing"

	"omiappreg.org/keyrotation/internal/localserver"
)

// PostgresServer is a PostgreSQL server of one test, which can stop it and start it again. What it has said to be committed
// survives every such stop; it would not survive a power cut, as nothing is synced.
type PostgresServer struct {
	*localserver.Postgres
	t testing.TB
}

// NewPostgresServer starts a server that ends with the test, and skips the test where there is no PostgreSQL.
func NewPostgresServer(t testing.TB) *PostgresServer {
	t.Helper()
	p, err := localserver.NewPostgres(localserver.PostgresConfig{Restarts: true})
	if err != nil {
		Missing(t, Postgres, err)
	}
	return started(t, p)
}

func started(t testing.TB, p *localserver.Postgres) *PostgresServer {
	t.Helper()
	t.Cleanup(func() {
		if p.Server != nil {
			p.Stop()
		}
		_ = p.Remove() // its guard has, unless it was halted
	})
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return &PostgresServer{p, t}
}

// NewStandby starts a standby of the server.
func (p *PostgresServer) NewStandby() *PostgresServer {
	p.t.Helper()
	standby, err := p.Postgres.NewStandby()
	if err != nil {
		p.t.Fatal(err)
	}
	return started(p.t, standby)
}

// SwitchTo stops the server, has its standby take over, and starts it again as a standby of that one.
func (p *PostgresServer) SwitchTo(standby *PostgresServer) {
	p.t.Helper()
	if err := p.Halt(); err != nil {
		p.t.Fatal(err)
	}
	standby.Execute("SELECT pg_promote()")
	if err := p.Follow(standby.Postgres); err != nil {
		p.t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// Execute runs a statement as the one who owns the server.
func (p *PostgresServer) Execute(statement string) {
	p.t.Helper()
	if err := execute(p.URL(), statement); err != nil {
		p.t.Fatal(err)
	}
}

// Addr is where the server listens now: on another port after each start, since its old one may be taken by then. A [Proxy]
// gives it an address that stays.
func (p *PostgresServer) Addr() string { return p.URL().Host }

// CreateDatabase makes an empty database, and returns its URL, with addr in place of the server's own address.
func (p *PostgresServer) CreateDatabase(name, addr string) string {
	p.t.Helper()
	if err := execute(p.URL(), "CREATE DATABASE "+name); err != nil {
		p.t.Fatalf("create a database: %v", err)
	}
	return (&url.URL{Scheme: "postgres", User: p.URL().User, Host: addr, Path: "/" + name}).String()
}
