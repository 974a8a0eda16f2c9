package subscriber

import (
	"context"
	"database/sql"
	"errors"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// errOtherwise means that a batch is not what settleKnown took it for.
var errOtherwise = errors.New("some event of the batch is not new, or its service not where it was")

// knownAtOnce is the largest batch that settleKnown takes: of a larger one, the ways to the server and back are a small part.
const knownAtOnce = 64

// settleKnown is [Store.Settle] in two round trips to PostgreSQL, for what a subscriber does nearly always: a few events that are
// new, of services that it knows. They are all written before it is known whether that is so; what is otherwise is rolled back,
// and errOtherwise.
func (s *Store) settleKnown(ctx context.Context, to, written Place, batch []events.Invalidation, aside []SetAside) ([]events.Invalidation, error) {
	if s.db.Engine() != sqldb.Postgres || len(batch) == 0 || len(batch) > knownAtOnce || len(aside) > 0 {
		return nil, errOtherwise
	}
	first := firstOf(batch, make(map[string]bool, len(batch)))
	effects, rounds := effectsOf(batch)
	ids := s.remembered(rounds[0])
	if len(first) < len(batch) || len(rounds) > 1 || len(ids) < len(rounds[0]) {
		return nil, errOtherwise
	}
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		var p sqldb.Pipeline
		claimed := 0
		s.writeNonces(&p, first, func(string) { claimed++ })
		missing := s.update(&p, rounds[0], joinRuns, ids)
		s.movePosition(&p, to, written)
		if err := s.db.Run(ctx, tx, &p); err != nil {
			return err
		}
		if claimed < len(batch) || *missing > 0 {
			return errOtherwise
		}
		return s.writeKeyrings(ctx, tx, ids, effects)
	})
	if err != nil {
		return nil, err
	}
	return batch, nil
}
