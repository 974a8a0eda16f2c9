package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/streams"
)

// Position is how much of the stream of invalidations the database is known to have: every event up
// to it. Each event is committed before it is published, and the row is written after that, so a
// position that holds for the database also holds for every consistent backup of it.
type Position struct {
	// Created: when the stream was created, nanoseconds since the Unix epoch; another stream counts
	// from 1 again.
	Created int64
	Place   uint64 // every event up to this sequence of the stream is in the history
	Writes  int64  // how often the row has been written
}

// OlderThan reports whether a database at p can't be the one that was at seen before. A replica
// that finds missing events also moves the place back, so that all other replicas compare too.
func (p Position) OlderThan(seen Position) bool {
	return p.Created != seen.Created || p.Place < seen.Place || p.Writes < seen.Writes
}

const selectPosition = "SELECT created_at, position, writes FROM stream_positions WHERE stream = $1"

// position reads the row; false: there is no row.
func (s *Ledger) Position(ctx context.Context) (Position, bool, error) {
	return scanPosition(s.db.QueryRow(ctx, selectPosition, streams.Invalidations))
}

func scanPosition(row sqldb.Row) (p Position, exists bool, err error) {
	var place int64
	err = row.Scan(&p.Created, &place, &p.Writes)
	if errors.Is(err, sql.ErrNoRows) {
		return p, false, nil
	}
	if err != nil {
		return p, false, fmt.Errorf("read the position in the stream: %w", err)
	}
	p.Place = uint64(place)
	return p, true, nil
}

// ErrMoved means that a comparison is void: the row is older than it was when the comparison began,
// or belongs to another stream, or the connection to the database was lost meanwhile.
var ErrMoved = errors.New("the database was away or restored, or the stream was created again, during the comparison")

// setPosition writes the result of a comparison that began at this row (zero: there was none): up
// to which place of which stream nothing is missing. It moves the row back only if back is set.
func (s *Ledger) SetPosition(ctx context.Context, began, found Position, back bool) (Position, error) {
	var next Position
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		now, exists, err := scanPosition(tx.QueryRow(ctx, selectPosition, streams.Invalidations))
		if err != nil {
			return err
		}
		if began != (Position{}) && (!exists || now.OlderThan(began)) {
			return ErrMoved
		}
		next = found
		next.Writes = now.Writes + 1
		if exists && now.Created == found.Created && !back {
			next.Place = max(next.Place, now.Place)
		}
		_, err = tx.Exec(ctx, `INSERT INTO stream_positions (stream, created_at, position, writes) VALUES ($1, $2, $3, $4)
			ON CONFLICT (stream) DO UPDATE SET created_at = excluded.created_at, position = excluded.position, writes = excluded.writes`,
			streams.Invalidations, next.Created, int64(next.Place), next.Writes)
		return err
	})
	if err != nil {
		return next, fmt.Errorf("write the position in the stream: %w", err)
	}
	return next, nil
}

// move moves the row forward to place, in the transaction that deletes what was published. It
// returns the new row, or false if this is not the database that was at p.
func (p Position) move(ctx context.Context, tx *sqldb.Tx, place uint64) (Position, bool, error) {
	next := Position{Created: p.Created}
	var at int64
	err := tx.QueryRow(ctx, `UPDATE stream_positions SET writes = writes + 1,
		position = CASE WHEN position < CAST($1 AS BIGINT) THEN CAST($1 AS BIGINT) ELSE position END
		WHERE stream = $2 AND created_at = $3 AND position >= $4 AND writes >= $5 RETURNING position, writes`,
		int64(place), streams.Invalidations, p.Created, int64(p.Place), p.Writes).Scan(&at, &next.Writes)
	if errors.Is(err, sql.ErrNoRows) {
		return next, false, nil
	}
	next.Place = uint64(at)
	return next, err == nil, err
}
