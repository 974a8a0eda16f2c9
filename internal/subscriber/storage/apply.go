package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

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

// eventID identifies an event (docs/protocol.md §7.2). SQLite and PostgreSQL keep ids in the order
// of their timestamps, so that those of a batch lie together at the end of the index. CockroachDB
// keeps them in the order of their nonces, because ascending keys would all go to one node.
type eventID struct {
	timestamp int64
	nonce     string
}

func idOf(e *events.Invalidation) eventID { return eventID{e.Timestamp, e.Nonce.String()} }

// SameEvent returns whether two messages are one event (docs/protocol.md §7.2).
func SameEvent(a, b *events.Invalidation) bool {
	return a.Timestamp == b.Timestamp && a.Nonce == b.Nonce
}

// writeNewIDs writes the ids of a batch and returns the events whose id was not there, each once.
func (s *Store) writeNewIDs(ctx context.Context, tx *sqldb.Tx, batch []events.Invalidation) ([]events.Invalidation, error) {
	first := firstOf(batch)
	claimed := make(map[eventID]bool, len(first))
	var p sqldb.Pipeline
	s.writeIDs(&p, first, func(id eventID) { claimed[id] = true })
	if err := tx.Run(ctx, &p); err != nil {
		return nil, err
	}
	fresh := make([]events.Invalidation, 0, len(first))
	for _, e := range first {
		if claimed[idOf(e)] {
			fresh = append(fresh, *e)
		}
	}
	return fresh, nil
}

// writeIDs adds the statements that write the ids of events. They call claimed with each id that
// was not there.
func (s *Store) writeIDs(p *sqldb.Pipeline, list []*events.Invalidation, claimed func(eventID)) {
	for insert := range s.idInserts(list) {
		p.Query(claimEvents, insert.Query+` RETURNING timestamp, nonce`, insert.Args, func(row sqldb.Row) error {
			var id eventID
			if err := row.Scan(&id.timestamp, &id.nonce); err != nil {
				return err
			}
			claimed(id)
			return nil
		})
	}
}

// firstOf returns the first event of each id.
func firstOf(batch []events.Invalidation) []*events.Invalidation {
	first, seen := make([]*events.Invalidation, 0, len(batch)), make(map[eventID]bool, len(batch))
	for i := range batch {
		if id := idOf(&batch[i]); !seen[id] {
			seen[id] = true
			first = append(first, &batch[i])
		}
	}
	return first
}

// claimEvents is what the store is doing when a statement of [Store.idInserts] fails.
const claimEvents = "claim the events"

// idInserts yields the statements that write the ids of events that are not there. They are sorted,
// so that all writers lock rows in one order.
func (s *Store) idInserts(list []*events.Invalidation) iter.Seq[sqldb.Rows] {
	order := slices.Clone(list)
	slices.SortFunc(order, func(a, b *events.Invalidation) int {
		return cmp.Or(cmp.Compare(a.Timestamp, b.Timestamp), cmp.Compare(a.Nonce.String(), b.Nonce.String()))
	})
	values := make([]any, 0, 2*len(order))
	for _, e := range order {
		values = append(values, e.Timestamp, e.Nonce.String())
	}
	return func(yield func(sqldb.Rows) bool) {
		for part := range s.db.Engine().Rows(1, []sqldb.Type{sqldb.Int, sqldb.Text}, values) {
			part.Query = s.db.Engine().Insert() + ` INTO applied (timestamp, nonce) ` + part.Query + ` ON CONFLICT DO NOTHING`
			if !yield(part) {
				return
			}
		}
	}
}
