package storage

import (
	"context"
	"errors"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// errUnusual means that a batch is not the usual case that applyKnown is for.
var errUnusual = errors.New("some event of the batch is not new, or its service not where it was")

// knownAtOnce is the largest batch that applyKnown takes. Round trips are a small part of the cost
// of a larger one.
const knownAtOnce = 64

// applyKnown is [Store.ApplyUpTo] in one round trip to PostgreSQL, or two to CockroachDB, for the
// usual case: a few new events of known services. If the server finds that this is not the case,
// the transaction is rolled back, and the error is errOtherwise.
func (s *Store) applyKnown(ctx context.Context, to, written Place, batch []events.Invalidation, setAside []SetAside) ([]events.Invalidation, error) {
	if s.db.Engine() == sqldb.SQLite || len(batch) == 0 || len(batch) > knownAtOnce || len(setAside) > 0 {
		return nil, errUnusual
	}
	first := firstOf(batch)
	effects, rounds := effectsOf(batch)
	ids := s.remembered(rounds[0])
	if len(first) < len(batch) || len(rounds) > 1 || len(ids) < len(rounds[0]) {
		return nil, errUnusual
	}
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		var p sqldb.Pipeline
		for insert := range s.idInserts(first) {
			p.Must(claimEvents, insert.Query, insert.Args, int64(insert.Len), errUnusual)
		}
		for update := range s.updates(rounds[0], joinRuns, ids) {
			p.Must("update the services", update.Query, update.Args, int64(update.Len), errUnusual)
		}
		s.movePosition(&p, to, written)
		if err := tx.RunAtCommit(ctx, &p); err != nil {
			return err
		}
		return s.writeKeyrings(ctx, tx, ids, effects)
	})
	if err != nil {
		return nil, err
	}
	return batch, nil
}
