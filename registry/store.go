package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/schema"
	"omiappreg.org/keyrotation/streams"
)

// Store is the registry's database: SQLite, PostgreSQL or CockroachDB, with one set of statements.
type Store struct {
	db      *sqldb.DB
	ledger  *ledger.Ledger
	outbox  *ledger.Outbox
	letters *ledger.Letters
	admin   *ledger.Admin
}

// ErrURL means that a database URL can't be used, or that the database belongs to another process.
var ErrURL = sqldb.ErrURL

// OpenStore opens the database that url names and brings its schema up to date. It waits for a
// server that is not up yet. An unusable URL, or a database that belongs to another process, is
// [ErrURL].
func OpenStore(ctx context.Context, url string, log *slog.Logger) (*Store, error) {
	return prepared(ctx, url, log, (*sqldb.DB).Migrate)
}

// OpenExisting is [OpenStore] for tools that look into the database of a registry, which may be
// running and of another version. It doesn't change the schema. A schema of another version is
// [ErrURL].
func OpenExisting(ctx context.Context, url string, log *slog.Logger) (*Store, error) {
	return prepared(ctx, url, log, (*sqldb.DB).Check)
}

func prepared(
	ctx context.Context, url string, log *slog.Logger, prepare func(*sqldb.DB, context.Context, sqldb.Owner, fs.FS) error,
) (*Store, error) {
	db, err := sqldb.Open(ctx, url, log)
	if err != nil {
		return nil, fmt.Errorf("open the registry's database: %w", err)
	}
	if err := sqldb.Await(ctx, log, func() error { return prepare(db, ctx, sqldb.Registry, schema.Registry()) }); err != nil {
		return nil, errors.Join(fmt.Errorf("open the registry's database: %w", err), db.Close())
	}
	return newStore(db), nil
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// Ping reports whether the database can be used now: it reads from each table that every request
// needs.
func (s *Store) Ping(ctx context.Context) error {
	return s.db.Ping(ctx, "apps WHERE app_id = ''", "services WHERE id = 0", "history WHERE service = 0 AND sequence = 0",
		"outbox WHERE batch = 0 AND position = 0", "stream_positions WHERE stream = '"+streams.Invalidations+"'")
}

func newStore(db *sqldb.DB) *Store {
	s := &Store{db: db}
	s.ledger, s.outbox, s.letters, s.admin = ledger.New(db)
	return s
}
