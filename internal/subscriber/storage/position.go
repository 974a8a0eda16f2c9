package storage

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/streams"
)

// ErrRestored means that the database lacks what this process has written: it was restored from a
// backup, or replaced.
var ErrRestored = errors.New("the database lacks what this process has written to it")

// positionParts is how many rows the processes on one database spread over. If two wrote one row at
// the same time, one of them would begin its transaction again.
const positionParts = 64

// Place is a place in a stream. The zero value is none.
type Place struct {
	Created  int64  // of the stream, nanoseconds since the Unix epoch
	Sequence uint64 // in the stream
}

// Position returns up to which place of the stream that was created then this database has applied
// messages, or false if it has applied none.
func (s *Store) Position(ctx context.Context, created int64) (sequence uint64, known bool, err error) {
	const query = `SELECT max(position) FROM stream_positions WHERE stream = $1 AND created_at = $2`
	var highest sql.NullInt64
	if err := s.db.QueryRow(ctx, query, streams.Invalidations, created).Scan(&highest); err != nil {
		return 0, false, fmt.Errorf("read the position in the stream: %w", err)
	}
	return uint64(highest.Int64), highest.Valid, nil
}

// movePosition adds the statement that moves the position to a place, unless the place is zero.
// written is what this process wrote last; if the database has less, the error is [ErrRestored].
func (s *Store) movePosition(p *sqldb.Pipeline, to, written Place) {
	if to == (Place{}) {
		return
	}
	args := []any{streams.Invalidations, s.part, to.Created, int64(to.Sequence)}
	if written.Created != to.Created {
		const insert = `INSERT INTO stream_positions (stream, part, created_at, position) VALUES ($1, $2, $3, $4)
			ON CONFLICT (stream, part) DO UPDATE SET created_at = excluded.created_at,
				position = CASE WHEN stream_positions.created_at = excluded.created_at AND stream_positions.position > excluded.position
					THEN stream_positions.position ELSE excluded.position END`
		p.Exec("write the position in the stream", insert, args, nil)
		return
	}
	const update = `UPDATE stream_positions
		SET position = CASE WHEN position < CAST($4 AS BIGINT) THEN CAST($4 AS BIGINT) ELSE position END
		WHERE stream = $1 AND part = $2 AND created_at = $3 AND position >= $5`
	p.Must("move the position in the stream", update, append(args, int64(written.Sequence)), 1, ErrRestored)
}

// ID returns the random id of this database. The first process that asks for it writes it. A copy
// of the database has the same id.
func (s *Store) ID(ctx context.Context) (id string, err error) {
	const insert = `INSERT INTO identity (name, value) VALUES ('database', $1) ON CONFLICT (name) DO NOTHING`
	const query = `SELECT value FROM identity WHERE name = 'database'`
	err = s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		if _, err := tx.Exec(ctx, insert, rand.Text()); err != nil {
			return err
		}
		return tx.QueryRow(ctx, query).Scan(&id)
	})
	if err != nil {
		return "", fmt.Errorf("read the id of the database: %w", err)
	}
	return id, nil
}

// Mark leaves a mark for other processes on this database. wipe removes it.
func (s *Store) Mark(ctx context.Context, name string) (wipe func(), err error) {
	err = s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO identity (name, value) VALUES ($1, '') ON CONFLICT (name) DO NOTHING`, markPrefix+name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mark the database: %w", err)
	}
	return func() {
		ctx := context.WithoutCancel(ctx)
		_ = s.db.InTx(ctx, func(tx *sqldb.Tx) error { // a mark that stays does no harm
			_, err := tx.Exec(ctx, `DELETE FROM identity WHERE name = $1`, markPrefix+name)
			return err
		})
	}, nil
}

// HasMark says whether another process on this very database has left this mark.
func (s *Store) HasMark(ctx context.Context, name string) (has bool, err error) {
	const query = `SELECT count(*) > 0 FROM identity WHERE name = $1`
	if err := s.db.QueryRow(ctx, query, markPrefix+name).Scan(&has); err != nil {
		return false, fmt.Errorf("look for a mark in the database: %w", err)
	}
	return has, nil
}

const markPrefix = "mark:"
