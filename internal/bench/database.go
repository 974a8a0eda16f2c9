package bench

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

	"omiappreg.org/keyrotation/internal/localserver"
	"omiappreg.org/keyrotation/internal/process"
)

// The databases, as --store and the result name them.
const (
	storeSQLite    = "sqlite"
	storePostgres  = "postgres"
	storeCockroach = "cockroach"
)

// Timeouts of statements on a server: those that create and drop databases, and those that clean up
// after some million new rows.
const (
	statementTimeout = time.Minute
	vacuumTimeout    = 10 * time.Minute
)

// databaseServer is the part of the CPU that a database server used, if this process started it.
const databaseServer = "database_server"

// openDatabases gives each part a database of its own. The returned function removes them.
func (b *run) openDatabases(ctx context.Context) (closes func(), err error) {
	if b.flags.Store != storePostgres {
		return func() {}, nil // files in the folder
	}
	if b.flags.DatabaseURL != "" {
		return b.createDatabases(ctx, b.flags.DatabaseURL)
	}
	b.progress.phase("starting PostgreSQL", -1)
	server, err := localserver.StartPostgres(localserver.PostgresConfig{Durable: true, Parent: b.flags.Data})
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
func (b *run) createDatabases(ctx context.Context, text string) (drops func(), err error) {
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
		for _, part := range databases() {
			drop := "DROP DATABASE IF EXISTS " + prefix + part + how
			if err := runOn(ctx, text, statementTimeout, drop); err != nil {
				b.log.Error("the benchmark could not drop a database", "database", prefix+part, "error", err)
			}
		}
	}
	err = onServer(ctx, text, statementTimeout, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT version()").Scan(&version)
	})
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(version, "CockroachDB") {
		b.store, how = storeCockroach, " CASCADE"
	}
	for _, part := range databases() {
		create := "CREATE DATABASE " + prefix + part
		if err := runOn(ctx, text, statementTimeout, create); err != nil {
			drops()
			return nil, err
		}
	}
	return drops, nil
}

// databases are the databases, named as in the stack.
func databases() []string { return []string{"registry", "authsub", "billingsub"} }

// vacuumDatabases lets PostgreSQL vacuum and analyze now. Otherwise it would do so during the
// measurement, as a consequence of the new services. A database that has existed for a while is
// past that.
func (b *run) vacuumDatabases(ctx context.Context) error {
	if b.store != storePostgres {
		return nil
	}
	for _, part := range databases() {
		if err := runOn(ctx, b.cfg.Database(part), vacuumTimeout, "VACUUM (ANALYZE)"); err != nil {
			return err
		}
	}
	err := runOn(ctx, b.cfg.Database(databases()[0]), vacuumTimeout, "CHECKPOINT")
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
func (b *run) serverCPU() time.Duration {
	if b.server == nil {
		return 0
	}
	return TreeCPU(b.server.PID())
}
