package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"omiappreg.org/keyrotation/internal/bench"
	"omiappreg.org/keyrotation/internal/localserver"
	"omiappreg.org/keyrotation/internal/process"
)

// The databases, as --store and the result name them.
const (
	benchSQLite    = "sqlite"
	benchPostgres  = "postgres"
	benchCockroach = "cockroach"
)

// Timeouts of statements on a server: those that create and drop databases, and those that clean up
// after some million new rows.
const (
	benchStatement = time.Minute
	benchVacuum    = 10 * time.Minute
)

// benchServer is the part of the CPU that a database server used, if this process started it.
const benchServer = "database_server"

// openDatabases gives each part a database of its own. The returned function removes them.
func (b *benchRun) openDatabases(ctx context.Context) (closes func(), err error) {
	if b.cmd.Store != benchPostgres {
		return func() {}, nil // files in the folder
	}
	if b.cmd.DatabaseURL != "" {
		return b.createDatabases(ctx, b.cmd.DatabaseURL)
	}
	b.progress.phase("starting PostgreSQL", -1)
	server, err := localserver.StartPostgres(localserver.PostgresConfig{Durable: true, Parent: b.cmd.Data})
	if err != nil {
		return nil, process.Usagef("--store postgres: no PostgreSQL can be started (%w): name a server with --database-url", err)
	}
	b.server = server
	if _, err := b.createDatabases(ctx, server.URL().String()); err != nil {
		server.Stop()
		return nil, err
	}
	return server.Stop, nil // the databases go with the server
}

// createDatabases makes a database for each part.
func (b *benchRun) createDatabases(ctx context.Context, text string) (drops func(), err error) {
	whole, err := url.Parse(text)
	if err != nil {
		// The error would quote a password.
		return nil, process.Usagef("--database-url is not a URL")
	}
	prefix := "omi_bench_" + strings.ToLower(rand.Text()) + "_"
	b.cfg.Database = func(part string) string {
		one := *whole
		one.Path = "/" + prefix + part
		return one.String()
	}
	var version string
	how := " WITH (FORCE)" // also if connections are still being closed
	drops = func() {
		ctx := context.WithoutCancel(ctx)
		for _, part := range benchDatabases() {
			drop := "DROP DATABASE IF EXISTS " + prefix + part + how
			if err := runOn(ctx, text, benchStatement, drop); err != nil {
				b.log.Error("the benchmark could not drop a database", "database", prefix+part, "error", err)
			}
		}
	}
	err = onServer(ctx, text, benchStatement, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT version()").Scan(&version)
	})
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(version, "CockroachDB") {
		b.store, how = benchCockroach, " CASCADE"
	}
	for _, part := range benchDatabases() {
		create := "CREATE DATABASE " + prefix + part
		if err := runOn(ctx, text, benchStatement, create); err != nil {
			drops()
			return nil, err
		}
	}
	return drops, nil
}

// benchDatabases are the databases, named as in the stack.
func benchDatabases() []string { return []string{"registry", "authsub", "billingsub"} }

// settleDatabases lets PostgreSQL vacuum and analyze now. Otherwise it would do so during the
// measurement, as a consequence of the new services. A database that has existed for a while is
// past that.
func (b *benchRun) settleDatabases(ctx context.Context) error {
	if b.store != benchPostgres {
		return nil
	}
	for _, part := range benchDatabases() {
		if err := runOn(ctx, b.cfg.Database(part), benchVacuum, "VACUUM (ANALYZE)"); err != nil {
			return err
		}
	}
	err := runOn(ctx, b.cfg.Database(benchDatabases()[0]), benchVacuum, "CHECKPOINT")
	if refused := (*pgconn.PgError)(nil); errors.As(err, &refused) && refused.Code == insufficientPrivilege {
		return nil // the server does it in its own time
	}
	return err
}

// insufficientPrivilege is a SQLSTATE.
const insufficientPrivilege = "42501"

// runOn runs a statement on a database server.
func runOn(ctx context.Context, text string, within time.Duration, statement string) error {
	return onServer(ctx, text, within, func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
		return nil
	})
}

// onServer connects to a database server for a few statements, within this time.
func onServer(ctx context.Context, text string, within time.Duration, do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := pgx.Connect(ctx, text)
	if err == nil {
		err = do(ctx, conn)
		_ = conn.Close(ctx)
	}
	switch refused := (*pgconn.PgError)(nil); {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return process.Usagef("--database-url: %w", err)
	default:
		return process.Unreachable(fmt.Errorf("--database-url: %w", err))
	}
}

// serverCPU returns the CPU time of a database server that this process started.
func (b *benchRun) serverCPU() time.Duration {
	if b.server == nil {
		return 0
	}
	return bench.TreeCPU(b.server.PID())
}
