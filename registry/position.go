package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/streams"
)

// position is how much of the stream of invalidations the database is known to have: every event up
// to it. Each event is committed before it is published, and the row is written after that, so a
// position that holds for the database also holds for every consistent backup of it.
type position struct {
	// created: when the stream was created, nanoseconds since the Unix epoch; another stream counts
	// from 1 again.
	created int64
	place   uint64 // every event up to this sequence of the stream is in the history
	writes  int64  // how often the row has been written
}

// olderThan reports whether a database at p can't be the one that was at seen before. A replica
// that finds missing events also moves the place back, so that all other replicas compare too.
func (p position) olderThan(seen position) bool {
	return p.created != seen.created || p.place < seen.place || p.writes < seen.writes
}

const selectPosition = "SELECT created_at, position, writes FROM stream_positions WHERE stream = $1"

// position reads the row; false: there is no row.
func (s *Store) position(ctx context.Context) (position, bool, error) {
	return scanPosition(s.db.QueryRow(ctx, selectPosition, streams.Invalidations))
}

func scanPosition(row sqldb.Row) (p position, exists bool, err error) {
	var place int64
	err = row.Scan(&p.created, &place, &p.writes)
	if errors.Is(err, sql.ErrNoRows) {
		return p, false, nil
	}
	if err != nil {
		return p, false, fmt.Errorf("read the position in the stream: %w", err)
	}
	p.place = uint64(place)
	return p, true, nil
}

// errMoved means that a comparison is void: the row is older than it was when the comparison began,
// or belongs to another stream, or the connection to the database was lost meanwhile.
var errMoved = errors.New("the database was away or restored, or the stream was created again, during the comparison")

// setPosition writes the result of a comparison that began at this row (zero: there was none): up
// to which place of which stream nothing is missing. It moves the row back only if back is set.
func (s *Store) setPosition(ctx context.Context, began, found position, back bool) (position, error) {
	var next position
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		now, exists, err := scanPosition(tx.QueryRow(ctx, selectPosition, streams.Invalidations))
		if err != nil {
			return err
		}
		if began != (position{}) && (!exists || now.olderThan(began)) {
			return errMoved
		}
		next = found
		next.writes = now.writes + 1
		if exists && now.created == found.created && !back {
			next.place = max(next.place, now.place)
		}
		_, err = tx.Exec(ctx, `INSERT INTO stream_positions (stream, created_at, position, writes) VALUES ($1, $2, $3, $4)
			ON CONFLICT (stream) DO UPDATE SET created_at = excluded.created_at, position = excluded.position, writes = excluded.writes`,
			streams.Invalidations, next.created, int64(next.place), next.writes)
		return err
	})
	if err != nil {
		return next, fmt.Errorf("write the position in the stream: %w", err)
	}
	return next, nil
}

// move moves the row forward to place, in the transaction that deletes what was published. It
// returns the new row, or false if this is not the database that was at p.
func (p position) move(ctx context.Context, tx *sqldb.Tx, place uint64) (position, bool, error) {
	next := position{created: p.created}
	var at int64
	err := tx.QueryRow(ctx, `UPDATE stream_positions SET writes = writes + 1,
		position = CASE WHEN position < CAST($1 AS BIGINT) THEN CAST($1 AS BIGINT) ELSE position END
		WHERE stream = $2 AND created_at = $3 AND position >= $4 AND writes >= $5 RETURNING position, writes`,
		int64(place), streams.Invalidations, p.created, int64(p.place), p.writes).Scan(&at, &next.writes)
	if errors.Is(err, sql.ErrNoRows) {
		return next, false, nil
	}
	next.place = uint64(at)
	return next, err == nil, err
}
