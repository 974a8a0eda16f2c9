// Package storage is the database of Auth and of Billing: which events were applied, the keys that
// they left, up to which place of the stream that goes, and the messages that were set aside.
//
// The database itself joins rows as [keyring.Keyring.Join] does, so no key is read before it is
// written, and a batch of any size costs a handful of statements.
//
// Events are written by [Store.Apply] (apply.go): their ids, then the rows of their services
// (services.go), keys and cutoffs (effects.go), messages set aside (setaside.go) and the position
// in the stream (position.go), in one transaction. One service is read by [Store.KeyringOf]
// (read.go), and all of them by [Store.Keyrings] (scan.go). A gap in the events of a service is
// filled by [Store.Fill] (gaps.go).
package storage

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"

	lru "github.com/hashicorp/golang-lru/v2"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/schema"
	"omiappreg.org/keyrotation/streams"
)

// Store is an open database. Its methods may be called concurrently, except for Close.
type Store struct {
	db   *sqldb.DB
	part int64 // which row of the position this process writes

	known *lru.Cache[string, int64] // the ids of services, by name
}

// Open opens the database that url names, see [sqldb.Open], and brings its schema up to date. Its
// owner is [sqldb.Billing] or [sqldb.Auth]. An Auth Provider is never asked whose key a key is:
// [Store.FindKey] is slow in its database, and everything else is faster. A database of another
// owner is [sqldb.ErrURL].
func Open(ctx context.Context, url string, owner sqldb.Owner, log *slog.Logger) (*Store, error) {
	return open(ctx, url, owner, log, (*sqldb.DB).Migrate)
}

// OpenExisting is Open for commands that read the database of a process, which may be running and
// of another version. It changes no schema, and returns [sqldb.ErrURL] for one of another version.
func OpenExisting(ctx context.Context, url string, owner sqldb.Owner, log *slog.Logger) (*Store, error) {
	return open(ctx, url, owner, log, (*sqldb.DB).Check)
}

func open(
	ctx context.Context, url string, owner sqldb.Owner, log *slog.Logger,
	prepare func(*sqldb.DB, context.Context, sqldb.Owner, fs.FS) error,
) (*Store, error) {
	db, err := sqldb.Open(ctx, url, log)
	if err != nil {
		return nil, fmt.Errorf("open the subscriber's database: %w", err)
	}
	migrations := schema.Billing()
	if owner == sqldb.Auth {
		migrations = schema.Auth()
	}
	s := &Store{db: db, part: rand.Int64N(positionParts)} //nolint:gosec // it only spreads writers
	s.known, err = lru.New[string, int64](rememberedMost)
	if err == nil {
		err = sqldb.Await(ctx, log, func() error { return prepare(db, ctx, owner, migrations) })
	}
	if err != nil {
		_ = db.Close() // the first error says more
		return nil, fmt.Errorf("open the subscriber's database: %w", err)
	}
	return s, nil
}

// Where names the database for a person, without a password.
func (s *Store) Where() string { return s.db.Place() }

// IsSQLite says whether the database is a file of SQLite.
func (s *Store) IsSQLite() bool { return s.db.Engine() == sqldb.SQLite }

// LogBytes is the size of SQLite's log.
func (s *Store) LogBytes() int64 { return s.db.LogBytes() }

// Ping reports whether the database can be worked with now: it reads from each table that every
// event needs.
func (s *Store) Ping(ctx context.Context) error {
	return s.db.Ping(ctx, "services WHERE id = 0", "keys WHERE service = 0 AND public_key = ''",
		"cutoffs WHERE service = 0 AND position = 0 AND cut_time = 0", "applied WHERE timestamp = 0 AND nonce = ''",
		"stream_positions WHERE stream = '"+streams.Invalidations+"' AND part = 0")
}

// Close closes the database.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close the subscriber's database: %w", err)
	}
	return nil
}

// insert adds statements that write rows, given as their columns one after the other, in as few
// statements as the engine allows.
func (s *Store) insert(p *sqldb.Pipeline, what, into, merge string, values []any, columns ...sqldb.Type) {
	for rows := range s.db.Engine().Rows(1, columns, values) {
		p.Exec("write the "+what, s.db.Engine().Insert()+into+rows.Query+merge, rows.Args, nil)
	}
}
