// Package sqldb opens a database by its URL, brings its schema up to date, and runs transactions with the retry that
// the engine behind the URL needs.
//
// Three engines speak through the same database/sql: SQLite in the process, PostgreSQL, and CockroachDB, which answers
// on PostgreSQL's protocol but wants its transactions retried differently. Which of the last two it is, the server
// says; the URL does not.
package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// Engine names the database system that answers.
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

	// Servers only:
	unhurried *sql.DB
	sessions  *sessions // of both pools
	servers   string    // where they are

	// SQLite only:
	file         string // the database file
	fault        *fault
	checkpointer *checkpointer
}

// Open opens the database that url names: sqlite:PATH (the file and its folder are created), or a postgres:// or
// postgresql:// URL of PostgreSQL or CockroachDB.
//
// A server that can't be reached is waited for until ctx ends, with a warning now and then ([Await]): processes start in any
// order. What can't pass ends at once: a URL of another form, refused credentials and a missing database
// satisfy errors.Is(err, ErrURL). No error quotes a password.
func Open(ctx context.Context, url string, log *slog.Logger) (*DB, error) {
	url = strings.TrimSpace(url)
	scheme, rest, _ := strings.Cut(url, ":")
	switch {
	case scheme == "sqlite":
		return openFile(ctx, rest, log)
	case (scheme == "postgres" || scheme == "postgresql") && strings.HasPrefix(rest, "//"):
		db, err := openServer(ctx, url, log)
		if err == nil {
			db.servers = serversOf(url)
		}
		return db, err
	default:
		return nil, urlError("want " + accepted)
	}
}

// CheckURL returns [ErrURL] for a URL that Open will refuse whatever it finds there, so that a process can say so before
// it starts anything.
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

// Engine says which database system this is.
func (db *DB) Engine() Engine { return db.engine }

// Reader is the pool for reading outside a transaction. With SQLite its connections refuse to write, and never wait
// for the writer nor hold it up; with a server it is the same pool as Writer.
func (db *DB) Reader() *sql.DB { return db.reader }

// Writer is the pool for single statements that write, outside of [DB.InTx], and that may be run twice: when a
// connection breaks, database/sql repeats what pgx believes was not sent, which is not always so.
//
// With SQLite it is one connection: whoever holds it, for instance by unread rows, keeps every other writer waiting.
func (db *DB) Writer() *sql.DB { return db.writer }

// Unhurried is the same database for work that may take long, as to read a whole table or to change the schema: none of its
// statements has a limit on a server. It is not closed by itself.
func (db *DB) Unhurried() *DB {
	if db.engine == SQLite {
		return db
	}
	return &DB{engine: db.engine, reader: db.unhurried, writer: db.unhurried, unhurried: db.unhurried, sessions: db.sessions, log: db.log}
}

// Close closes all connections. The others go first, so that SQLite's last one, a writer, can fold the write-ahead log
// into the file.
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
