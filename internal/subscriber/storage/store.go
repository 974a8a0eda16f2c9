// Package storage is the database of Auth and of Billing: which events were applied, the keys that
// they left, up to which place of the stream that goes, and the messages that were set aside.
//
// The database itself joins rows as [keyring.Keyring.Join] does, so no key is read before it is
// written, and a batch of any size costs a handful of statements.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"

	lru "github.com/hashicorp/golang-lru/v2"

	"omiappreg.org/keyrotation/events"
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

// Apply writes the ids and the effects of a batch of events, and the messages set aside, in one
// transaction. It returns the events that were not applied earlier, each once.
//
// After an error the batch must be applied again. If the error is [sqldb.ErrUnknownOutcome], the
// batch may turn out to have been applied, and none of its events are returned as new. So a caller
// that also keeps the state in memory must join every event of the batch to it, not only the new
// ones.
func (s *Store) Apply(ctx context.Context, batch []events.Invalidation, setAside []SetAside) ([]events.Invalidation, error) {
	return s.ApplyUpTo(ctx, Place{}, Place{}, batch, setAside)
}

// ApplyUpTo is [Store.Apply] for a batch from the stream. to is the place of its last message, and
// written is that of the batch that this process applied before, or zero. The same transaction
// moves the position in the stream. If the database lacks what was written, nothing is applied, and
// the error is [ErrRestored].
func (s *Store) ApplyUpTo(ctx context.Context, to, written Place, batch []events.Invalidation, setAside []SetAside) ([]events.Invalidation, error) {
	if len(batch) == 0 && len(setAside) == 0 && to == (Place{}) {
		return nil, nil
	}
	fresh, err := s.applyKnown(ctx, to, written, batch, setAside)
	if errors.Is(err, errUnusual) {
		err = s.db.InTx(ctx, func(tx *sqldb.Tx) (err error) {
			fresh, err = s.apply(ctx, tx, to, written, batch, setAside)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("apply a batch of events: %w", err)
	}
	return fresh, nil
}

// apply is ApplyUpTo in a transaction.
func (s *Store) apply(
	ctx context.Context, tx *sqldb.Tx, to, written Place, batch []events.Invalidation, setAside []SetAside,
) ([]events.Invalidation, error) {
	fresh, err := s.writeNewIDs(ctx, tx, batch)
	if err != nil {
		return nil, err
	}
	effects, ids, err := s.writeEvents(ctx, tx, fresh)
	if err != nil {
		return nil, err
	}
	var p sqldb.Pipeline
	s.writeSetAside(&p, setAside)
	s.movePosition(&p, to, written)
	if err := tx.Run(ctx, &p); err != nil {
		return nil, err
	}
	return fresh, s.writeKeyrings(ctx, tx, ids, effects)
}

// insert adds statements that write rows, given as their columns one after the other, in as few
// statements as the engine allows.
func (s *Store) insert(p *sqldb.Pipeline, what, into, merge string, values []any, columns ...sqldb.Type) {
	for rows := range s.db.Engine().Rows(1, columns, values) {
		p.Exec("write the "+what, s.db.Engine().Insert()+into+rows.Query+merge, rows.Args, nil)
	}
}
