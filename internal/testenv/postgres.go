package testenv

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"omiappreg.org/keyrotation/internal/localserver"
)

// PostgresServer is a PostgreSQL server of one test, which can stop it and start it again. Commits
// survive that. They would not survive a power cut, because nothing is synced.
type PostgresServer struct {
	*localserver.Postgres
	t testing.TB
}

// NewPostgresServer starts a server that ends with the test. It skips the test if PostgreSQL is not
// installed.
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
		_ = p.Remove() // its guard has removed the files, unless the server was halted
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

// SwitchTo stops the server, has its standby take over, and starts it again as a standby of that
// one.
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

// Execute runs a statement as the superuser of the server.
func (p *PostgresServer) Execute(statement string) {
	p.t.Helper()
	if err := execute(p.URL(), statement); err != nil {
		p.t.Fatal(err)
	}
}

// Addr is where the server listens now. After each start it is another port, because the old one
// may be taken. A [Proxy] gives the server an address that stays.
func (p *PostgresServer) Addr() string { return p.URL().Host }

// CreateDatabase creates an empty database, and returns its URL, with addr instead of the server's
// own address.
func (p *PostgresServer) CreateDatabase(name, addr string) string {
	p.t.Helper()
	if err := execute(p.URL(), "CREATE DATABASE "+name); err != nil {
		p.t.Fatalf("create a database: %v", err)
	}
	return (&url.URL{Scheme: "postgres", User: p.URL().User, Host: addr, Path: "/" + name}).String()
}

// Lock keeps all other sessions from reading or writing a PostgreSQL table until unlock is called.
// They wait and get no error, as with a range of CockroachDB that has lost its quorum.
func Lock(t testing.TB, url, table string) (unlock func()) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatalf("connect for a lock: %v", err)
	}
	unlock = sync.OnceFunc(func() { _ = conn.Close(ctx) }) // which ends the transaction
	t.Cleanup(unlock)
	if _, err := conn.Exec(ctx, "BEGIN; LOCK TABLE "+table+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatalf("lock %s: %v", table, err)
	}
	return unlock
}

// ReadsTables checks that ping reads from each of these tables: it waits for one that is locked.
func ReadsTables(t testing.TB, url string, ping func(context.Context) error, tables ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	for _, table := range tables {
		unlock := Lock(t, url, table)
		answer := make(chan error, 1)
		go func() { answer <- ping(t.Context()) }()
		Eventually(t, time.Minute, "it waits for "+table, func() error {
			var waits bool
			const query = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass"
			if err := conn.QueryRow(t.Context(), query, table).Scan(&waits); err != nil || waits {
				return err
			}
			return fmt.Errorf("it does not; %d answers", len(answer))
		})
		unlock()
		if err := <-answer; err != nil {
			t.Errorf("after the lock on %s: %v", table, err)
		}
	}
}
