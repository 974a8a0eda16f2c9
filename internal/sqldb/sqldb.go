package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Engine names a database system.
type Engine string

// The engines that this package knows.
const (
	SQLite    Engine = "sqlite"
	Postgres  Engine = "postgres"
	Cockroach Engine = "cockroach"
)

// DB is an open database. It is safe for concurrent use.
type DB struct {
	engine Engine
	reader *sql.DB
	writer *sql.DB
	log    *slog.Logger
	wrap   func(Engine, Session) Session // see Wrap; nil: there is none

	// Servers only.
	unhurried *sql.DB
	sessions  *sessions // of both pools
	servers   string    // where they are

	// SQLite only.
	file         string // the database file
	fault        *fault
	checkpointer *checkpointer
}

// Open opens the database that url names: sqlite:PATH (it creates the file and its folder), or a
// postgres:// or postgresql:// URL of PostgreSQL or CockroachDB.
//
// It waits for a server that can't be reached until ctx ends, with a warning now and then
// ([Await]), because processes start in any order. It does not wait if that can't help: a URL of
// another form, refused credentials and a missing database satisfy errors.Is(err, ErrURL). No error
// quotes a password.
func Open(ctx context.Context, url string, log *slog.Logger) (db *DB, err error) {
	url = strings.TrimSpace(url)
	scheme, rest, _ := strings.Cut(url, ":")
	switch {
	case scheme == "sqlite":
		db, err = openFile(ctx, rest, log)
	case (scheme == "postgres" || scheme == "postgresql") && strings.HasPrefix(rest, "//"):
		db, err = openServer(ctx, url, log)
	default:
		return nil, urlError("want " + accepted)
	}
	if err != nil {
		return nil, err
	}
	db.wrap, _ = ctx.Value(wrapKey{}).(func(Engine, Session) Session)
	return db, nil
}

// CheckURL returns [ErrURL] for a URL that Open would always refuse, so that a process can report
// it before it starts anything.
func CheckURL(url string) error {
	url = strings.TrimSpace(url)
	scheme, rest, _ := strings.Cut(url, ":")
	if scheme == "sqlite" {
		_, err := sqlitePath(rest)
		return err
	}
	if scheme != "postgres" && scheme != "postgresql" || !strings.HasPrefix(rest, "//") {
		return urlError("want " + accepted)
	}
	_, err := parseServer(url)
	return err
}

// Engine returns the database system.
func (db *DB) Engine() Engine { return db.engine }

// Reader returns the pool of database/sql, for a scan that needs a snapshot of several tables and
// for tests. Its statements don't go through a [Session]. With SQLite its connections refuse to
// write, and they and the writer never wait for each other. With a server it is the same pool as
// Writer.
func (db *DB) Reader() *sql.DB { return db.reader }

// Writer returns the pool of database/sql for writing, for tests. With SQLite it is one connection:
// while it is in use, for example by unread rows, every other writer waits.
func (db *DB) Writer() *sql.DB { return db.writer }

// Unhurried returns the same database for work that may take long, such as reading a whole table or
// changing the schema: its statements have no time limit on a server. It must not be closed.
func (db *DB) Unhurried() *DB {
	if db.engine == SQLite {
		return db
	}
	return &DB{engine: db.engine, reader: db.unhurried, writer: db.unhurried, unhurried: db.unhurried, sessions: db.sessions, log: db.log, wrap: db.wrap}
}

// Close closes all connections. SQLite's writer is the last, so that it can checkpoint the
// write-ahead log.
func (db *DB) Close() error {
	var errs []error
	if db.checkpointer != nil {
		errs = append(errs, db.checkpointer.close())
	}
	if db.reader != db.writer {
		errs = append(errs, db.reader.Close())
	}
	errs = append(errs, db.writer.Close())
	if db.unhurried != nil {
		errs = append(errs, db.unhurried.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close the database: %w", err)
	}
	return nil
}

// Ping says whether the database can be worked with now: it answers, takes writes, and has no
// lasting fault. If a server answers and still can't be worked with, the error says why.
//
// needs are rows that the process can't work without, such as "t WHERE id = 0". A server reads each
// of them, and the owner's row. A row of needs may be missing, but its table may not. Only reading
// shows that a table is locked, or that a range of CockroachDB has lost its quorum. Name rows by
// their primary key, so that no size of the table makes this slow.
func (db *DB) Ping(ctx context.Context, needs ...string) error {
	if db.engine == SQLite {
		return db.pingFile(ctx)
	}
	if err := db.pingServer(ctx, needs); err != nil {
		return fmt.Errorf("ping the database: %w", err)
	}
	return nil
}

// pingServer asks whether the session may write, and reads what is needed. A gateway of
// CockroachDB, or a pooler, can answer without any table.
func (db *DB) pingServer(ctx context.Context, needs []string) error {
	standby := "false"
	if db.engine == Postgres {
		standby = "pg_is_in_recovery()"
	}
	owned, rows := "true", "0"
	if len(needs) > 0 {
		owned = "EXISTS (SELECT 1 FROM " + ownerTable + ")"
		rows = "(SELECT count(*) FROM (SELECT 1 FROM " + strings.Join(needs, " UNION ALL SELECT 1 FROM ") + ") AS needed)"
	}
	era := db.sessions.era.Load()
	var readOnly string
	var recovering, found bool
	query := "SELECT current_setting('transaction_read_only'), " + standby + ", " + owned + ", " + rows
	err := db.QueryRow(ctx, query).Scan(&readOnly, &recovering, &found, new(int))
	switch {
	case err != nil && errors.Is(err, context.DeadlineExceeded) && db.writer.Stats().InUse >= maxConns:
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case undefined(err):
		return fmt.Errorf("%w: %w", ErrNoTables, err)
	case err != nil:
		return err
	case readOnly != "on" && found:
		return nil
	case readOnly != "on":
		return ErrNoTables
	}
	db.sessions.end(era)
	if recovering {
		return fmt.Errorf("it is a standby, which has not been promoted: %w", ErrReadOnly)
	}
	return ErrReadOnly
}

// undefined says whether err means that a table is missing, or hidden from this role.
func undefined(err error) bool {
	var answer *pgconn.PgError
	return errors.As(err, &answer) && (answer.Code == "42P01" || answer.Code == insufficientPrivilege)
}

// pingFile is Ping for SQLite. It writes only after a write has failed, for instance on a full
// disk: whether that has passed.
func (db *DB) pingFile(ctx context.Context) error {
	if err := db.fault.look(ctx); err != nil {
		return err
	}
	if _, err := db.Exec(ctx, "SELECT 1"); err != nil {
		return fmt.Errorf("ping the database: %w", err)
	}
	if db.fault.failed.Load() == nil {
		return nil
	}
	err := db.plainTx(ctx, func(tx *Tx) error {
		var version int
		// No SELECT: so the commit gets a stamp.
		return tx.QueryRow(ctx, "PRAGMA user_version").Scan(&version)
	})
	if err != nil {
		return fmt.Errorf("write to the database: %w", err)
	}
	return nil
}
