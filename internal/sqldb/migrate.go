package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// Migrate applies the migrations that the database doesn't have yet. fsys holds goose's SQL files in two folders,
// "sqlite" and "postgres"; the latter is for CockroachDB too, but for files whose names end in [PostgresOnly].
//
// Another's database than the owner's gets [ErrURL], and nothing is changed in it. So does a role that may not change the schema,
// where that is not complete.
//
// Any number of processes may do this at once, and each returns when the schema is complete. A file says
// "-- +goose NO TRANSACTION" and has one statement that does no harm when it is run twice, because a server's process
// can die between the statement and the note that it was run. With SQLite all of it is one transaction.
func (db *DB) Migrate(ctx context.Context, owner Owner, fsys fs.FS) error {
	files, want, err := db.migrations(fsys)
	if err != nil {
		return fmt.Errorf("migrate the schema: %w", err)
	}
	have, err := db.contents(ctx, db.reader)
	if err == nil {
		err = have.mustBe(owner)
	}
	if err != nil {
		return fmt.Errorf("migrate the schema: %w", err)
	}
	// A start then takes no lock, and does not wait out the lease of a process that was killed while it held it.
	if len(want) > 0 && slices.Equal(have.applied, want) {
		return nil
	}
	migrate := db.migrateServer
	if db.engine == SQLite {
		migrate = db.migrateFile
	}
	applied, err := migrate(ctx, owner, files)
	if answer := (*pgconn.PgError)(nil); errors.As(err, &answer) && answer.Code == insufficientPrivilege {
		return fmt.Errorf("%w: its role may not bring the schema up to date: first do that as the role that owns it: %w", ErrURL, answer)
	}
	if err != nil {
		return fmt.Errorf("migrate the schema: %w", err)
	}
	if len(applied) > 0 {
		last := applied[len(applied)-1].Source
		db.log.InfoContext(ctx, "migrated the schema", slog.Int64("version", last.Version), slog.Int("applied", len(applied)))
	}
	return nil
}

// PostgresOnly is how the name of a migration ends that is for PostgreSQL and not for CockroachDB: what it says is about how rows
// lie on the disk, where the two have nothing in common.
const PostgresOnly = "_on_postgresql.sql"

// withoutPostgresOnly is a folder without the migrations that are for PostgreSQL alone.
type withoutPostgresOnly struct{ fs.FS }

// ReadDir implements [fs.ReadDirFS].
func (w withoutPostgresOnly) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(w.FS, name)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return strings.HasSuffix(e.Name(), PostgresOnly) }), err
}

// insufficientPrivilege is a SQLSTATE.
const insufficientPrivilege = "42501"

// migrateFile keeps other processes out by the file's own write lock, held over goose's whole work by the one connection
// of a pool made for it. If that connection is lost on the way, the pool's next one has no transaction, and COMMIT fails.
func (db *DB) migrateFile(ctx context.Context, owner Owner, files fs.FS) (_ []*goose.MigrationResult, err error) {
	pool, err := openFileWriter(ctx, db.fault)
	if err != nil {
		return nil, err
	}
	// Closing rolls back what isn't committed.
	defer func() { err = errors.Join(err, pool.Close()) }()

	begin := func() error { return run(ctx, pool, "BEGIN IMMEDIATE") }
	if err := again(ctx, begin); err != nil {
		return nil, fmt.Errorf("wait for another process: %w", err)
	}
	if err := db.stillOf(ctx, owner, pool); err != nil {
		return nil, err
	}
	applied, err := up(ctx, goose.DialectSQLite3, pool, files)
	if err != nil {
		return nil, err
	}
	if err := run(ctx, pool, "COMMIT"); err != nil {
		return nil, err
	}
	return applied, nil
}

// migrateServer takes a lock that is a row with a lease, for CockroachDB has no advisory locks. It is taken around the
// provider and not by it, because goose makes its table of versions before it locks.
func (db *DB) migrateServer(ctx context.Context, owner Owner, files fs.FS) (_ []*goose.MigrationResult, err error) {
	pool := db.Unhurried().writer
	locker, err := db.migrationLock()
	if err != nil {
		return nil, err
	}
	// CockroachDB may answer 40001 to the rival of two that create the lock's table.
	if err := again(ctx, func() error { return locker.Lock(ctx, pool) }); err != nil {
		return nil, fmt.Errorf("wait for another process: %w", err)
	}
	defer func() { err = errors.Join(err, locker.Unlock(ctx, pool)) }()

	if err := db.stillOf(ctx, owner, pool); err != nil {
		return nil, err
	}
	for _, statement := range versionTable() {
		if err := again(ctx, func() error { return run(ctx, pool, statement) }); err != nil {
			return nil, err
		}
	}
	return up(ctx, goose.DialectPostgres, pool, files)
}

// stillOf looks again under the lock: two processes that got the same new database by mistake may have found nobody's at once.
func (db *DB) stillOf(ctx context.Context, owner Owner, q querier) error {
	have, err := db.contents(ctx, q)
	if err != nil {
		return err
	}
	return have.mustBe(owner)
}

// versionTable makes goose's own table as goose does, but so that it can be repeated. Goose does it in one transaction,
// which CockroachDB (from v25.1, autocommit_before_ddl) takes apart; a table without its first row, left by a process
// that died there, would make goose fail for ever.
func versionTable() []string {
	return []string{
		`CREATE TABLE IF NOT EXISTS ` + goose.DefaultTablename + ` (
			id integer PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
			version_id bigint NOT NULL,
			is_applied boolean NOT NULL,
			tstamp timestamp NOT NULL DEFAULT now()
		)`,
		`INSERT INTO ` + goose.DefaultTablename + ` (version_id, is_applied)
			SELECT 0, true WHERE NOT EXISTS (SELECT 1 FROM ` + goose.DefaultTablename + `)`,
	}
}

func (db *DB) migrationLock() (lock.Locker, error) {
	locker, err := lock.NewPostgresTableLocker(
		lock.WithTableLogger(db.log),
		// For so long the others wait for a process that was killed here; a living one renews its lease.
		lock.WithTableLeaseDuration(15*time.Second),
		lock.WithTableHeartbeatInterval(3*time.Second),
		lock.WithTableLockTimeout(250*time.Millisecond, 1200), // 5 minutes
		lock.WithTableUnlockTimeout(250*time.Millisecond, 20),
		lock.WithTableRetryPolicy(func(err error) bool {
			// A held lock is an error without a type; what the server says is final unless it passes by itself.
			var answer *pgconn.PgError
			return !errors.As(err, &answer) || Transient(err)
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("make the lock: %w", err)
	}
	return locker, nil
}

// up applies what is missing, also what is older than the newest: the two folders of Auth's schema are numbered as one, and either
// can get a file. Isolated DDL keeps goose from beginning a transaction: with SQLite it runs in one.
func up(ctx context.Context, dialect goose.Dialect, pool *sql.DB, files fs.FS) ([]*goose.MigrationResult, error) {
	provider, err := goose.NewProvider(dialect, pool, files,
		goose.WithIsolateDDL(true), goose.WithAllowOutofOrder(true), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return nil, fmt.Errorf("read the migrations: %w", err)
	}
	applied, err := provider.Up(ctx)
	if err != nil {
		return nil, fmt.Errorf("apply the migrations: %w", err)
	}
	return applied, nil
}

func run(ctx context.Context, pool *sql.DB, statement string) error {
	if _, err := pool.ExecContext(ctx, statement); err != nil {
		return fmt.Errorf("%.40s: %w", statement, err)
	}
	return nil
}
