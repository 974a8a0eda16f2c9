package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
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
