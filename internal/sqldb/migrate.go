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

// Migrate applies the migrations that the database doesn't have yet. fsys holds goose's SQL files
// in two folders, "sqlite" and "postgres". The latter is for PostgreSQL and CockroachDB, except for
// files whose names end in "_on_postgresql.sql" or "_on_cockroachdb.sql", which are for one of
// them.
//
// If the database is not the owner's, Migrate returns [ErrURL] and changes nothing in it. It also
// returns [ErrURL] if the schema is not complete and the role may not change it.
//
// Any number of processes may do this at once, and each returns when the schema is complete. A file
// says "-- +goose NO TRANSACTION" and has one statement, which can be repeated, because a process
// can die between the statement and the note that it was run. With SQLite all of it is one
// transaction.
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
		return fmt.Errorf("migrate the schema: %w", db.judged(ctx, err))
	}
	// A start with a complete schema takes no lock: it doesn't wait for the lease of a killed
	// process.
	if len(want) > 0 && slices.Equal(have.applied, want) {
		complete, err := db.canCheckRows(ctx)
		if err != nil {
			return fmt.Errorf("migrate the schema: %w", err)
		}
		if complete {
			return nil
		}
	}
	migrate := db.migrateServer
	if db.engine == SQLite {
		migrate = db.migrateFile
	}
	applied, err := migrate(ctx, owner, files)
	err = db.judged(ctx, err)
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

// forEngine is a folder without the files that are for another server.
type forEngine struct {
	fs.FS
	engine Engine
}

// ReadDir implements [fs.ReadDirFS].
func (f forEngine) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(f.FS, name)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return f.engine != Postgres && strings.HasSuffix(e.Name(), "_on_postgresql.sql") ||
			f.engine != Cockroach && strings.HasSuffix(e.Name(), "_on_cockroachdb.sql")
	}), err
}

// migrations returns the engine's files and their versions, in ascending order.
func (db *DB) migrations(fsys fs.FS) (files fs.FS, versions []int64, err error) {
	folder := "postgres"
	if db.engine == SQLite {
		folder = "sqlite"
	}
	if files, err = fs.Sub(fsys, folder); err != nil {
		return nil, nil, err
	}
	files = forEngine{files, db.engine}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		versions = append(versions, version)
	}
	slices.Sort(versions)
	return files, versions, nil
}

// insufficientPrivilege is a SQLSTATE.
const insufficientPrivilege = "42501"

// migrateFile keeps other processes out by the file's own write lock. The one connection of a pool
// made for this holds it during goose's whole work. If that connection is lost, the pool's next one
// has no transaction, and COMMIT fails.
func (db *DB) migrateFile(ctx context.Context, owner Owner, files fs.FS) (_ []*goose.MigrationResult, err error) {
	pool := openFileWriter(db.fault)
	// Closing rolls back what isn't committed.
	defer func() { err = errors.Join(err, pool.Close()) }()

	begin := func() error { return run(ctx, pool, "BEGIN IMMEDIATE") }
	if err := again(ctx, begin); err != nil {
		return nil, fmt.Errorf("wait for another process: %w", err)
	}
	if err := db.claim(ctx, owner, pool); err != nil {
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

// migrateServer takes a lock that is a row with a lease, because CockroachDB has no advisory locks.
// It takes the lock around goose's provider, which makes its table of versions before it locks.
func (db *DB) migrateServer(ctx context.Context, owner Owner, files fs.FS) (_ []*goose.MigrationResult, err error) {
	pool := db.Unhurried().writer
	locker, err := db.migrationLock()
	if err != nil {
		return nil, err
	}
	// If two processes create the lock's table at once, CockroachDB may answer 40001 to one of
	// them.
	if err := again(ctx, func() error { return locker.Lock(ctx, pool) }); err != nil {
		return nil, fmt.Errorf("wait for another process: %w", err)
	}
	defer func() { err = errors.Join(err, locker.Unlock(ctx, pool)) }()

	if err := db.claim(ctx, owner, pool); err != nil {
		return nil, err
	}
	own := versionTable()
	if db.engine == Postgres {
		own = append(own, mustChange)
	}
	for _, statement := range own {
		if err := again(ctx, func() error { return run(ctx, pool, statement) }); err != nil {
			return nil, err
		}
	}
	return up(ctx, goose.DialectPostgres, pool, files)
}

// claim gives a new database its owner, under the lock. It looks again before it changes anything
// and after that: several processes may have got the same new database by mistake.
func (db *DB) claim(ctx context.Context, owner Owner, pool *sql.DB) error {
	if err := db.stillOf(ctx, owner, pool); err != nil {
		return err
	}
	for _, statement := range ownerRow(owner) {
		if err := again(ctx, func() error { return run(ctx, pool, statement) }); err != nil {
			return err
		}
	}
	return db.stillOf(ctx, owner, pool)
}

func (db *DB) stillOf(ctx context.Context, owner Owner, q querier) error {
	have, err := db.contents(ctx, q)
	if err != nil {
		return err
	}
	return have.mustBe(owner)
}

// versionTable makes goose's own table as goose does, in statements that can be repeated. Goose
// does it in one transaction, which CockroachDB takes apart (from v25.1, autocommit_before_ddl). A
// process that dies there leaves a table without its first row, with which goose would fail for
// ever.
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
		// The others wait this long for a process that was killed here. A living one renews its
		// lease.
		lock.WithTableLeaseDuration(15*time.Second),
		lock.WithTableHeartbeatInterval(3*time.Second),
		lock.WithTableLockTimeout(250*time.Millisecond, 1200), // 5 minutes
		lock.WithTableUnlockTimeout(250*time.Millisecond, 20),
		lock.WithTableRetryPolicy(func(err error) bool {
			// A held lock is an error without a type. A server's own error is final, unless it is
			// transient.
			var answer *pgconn.PgError
			return !errors.As(err, &answer) || Transient(err)
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("make the lock: %w", err)
	}
	return locker, nil
}

// up applies what is missing, in any order: subscribers have migrations from two folders with one
// numbering, and either folder can get the next one. Isolated DDL keeps goose from beginning a
// transaction: with SQLite it runs in one already.
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
