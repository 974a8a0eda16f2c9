package storage

import (
	"cmp"
	"context"
	"iter"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

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
