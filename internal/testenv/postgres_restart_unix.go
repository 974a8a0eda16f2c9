//go:build unix

package testenv

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// PostgresServer is a PostgreSQL server of one test, which can stop it and start it again. What it has said to be committed
// survives every such stop; it would not survive a power cut, as nothing is synced.
type PostgresServer struct {
	t        testing.TB
	bin      string
	folder   string
	password string
	as       *syscall.Credential
	server   *localServer // nil while stopped
}

// NewPostgresServer starts a server that ends with the test, and skips the test where there is no PostgreSQL.
func NewPostgresServer(t testing.TB) *PostgresServer {
	t.Helper()
	p := &PostgresServer{t: t, password: rand.Text()}
	var err error
	if p.bin, err = postgresPrograms(); err != nil {
		missing(t, Postgres, err)
	}
	if p.as, err = unprivileged(); err != nil {
		missing(t, Postgres, err)
	}
	if p.folder, err = ownFolder("omi-test-postgres-", p.as); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.server != nil {
			p.server.stop()
		}
		_ = os.RemoveAll(p.folder) // its guard has, unless it was stopped
	})
	if err := initPostgres(p.bin, p.folder, p.password, p.as); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// Start starts the server after a stop, on another port: its old one may be taken by now. A [Proxy] gives it an address
// that stays.
func (p *PostgresServer) Start() (err error) {
	p.server, err = launchPostgres(p.bin, p.folder, p.password, p.as)
	return err
}

// Addr is where the server listens now.
func (p *PostgresServer) Addr() string { return p.server.url.Host }

// CreateDatabase makes an empty database, and returns its URL, with addr in place of the server's own address.
func (p *PostgresServer) CreateDatabase(name, addr string) string {
	p.t.Helper()
	if err := execute(p.server.url, "CREATE DATABASE "+name); err != nil {
		p.t.Fatalf("create a database: %v", err)
	}
	return (&url.URL{Scheme: "postgres", User: p.server.url.User, Host: addr, Path: "/" + name}).String()
}

// Stop stops the server as an operator does: connections are dropped, and what they were about is rolled back.
func (p *PostgresServer) Stop() error { return p.end(syscall.SIGINT) }

// Crash stops it at once, wherever it is: it starts with the recovery of its log.
func (p *PostgresServer) Crash() error { return p.end(syscall.SIGQUIT) }

const postgresStopTimeout = time.Minute

// end signals the server and not its guard, which would remove the data.
func (p *PostgresServer) end(signal syscall.Signal) error {
	text, err := os.ReadFile(filepath.Join(postgresData(p.folder), "postmaster.pid"))
	if err != nil {
		return fmt.Errorf("find the server's process: %w", err)
	}
	first, _, _ := bytes.Cut(text, []byte("\n"))
	pid, err := strconv.Atoi(string(first))
	if err != nil {
		return fmt.Errorf("find the server's process: %w", err)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("signal the server: %w", err)
	}
	select {
	case <-p.server.done:
	case <-time.After(postgresStopTimeout):
		return fmt.Errorf("the server has not stopped %v after %s", postgresStopTimeout, signal)
	}
	_ = p.server.life.Close()
	p.server = nil
	return nil
}
