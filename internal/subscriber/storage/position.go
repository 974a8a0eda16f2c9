package storage

import (
	"context"
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
