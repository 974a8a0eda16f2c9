package storage

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"

	"omiappreg.org/keyrotation/internal/sqldb"
)

// rememberedMost is how many services' ids are remembered: those with the latest events. They take
// some 10 MB.
const rememberedMost = 1 << 16

// service is a row of services to be joined to the row in the database.
type service struct {
	target                               string
	head, maxSequence, filled, sequenced int64
}

// serviceValues returns rows of services, with the ids of those that have one.
func serviceValues(list []service, ids map[string]int64) []any {
	values := make([]any, 0, 6*len(list))
	for i := range list {
		one := &list[i]
		values = append(values, ids[one.target], one.target, one.head, one.maxSequence, one.filled, one.sequenced)
	}
	return values
}

func serviceColumns() []sqldb.Type {
	return []sqldb.Type{sqldb.Int, sqldb.Text, sqldb.Int, sqldb.Int, sqldb.Int, sqldb.Int}
}

// writeServices joins rows of services to those in the database, as merge says, and returns the ids
// of all of them. The rows come in the order of their targets, each once: all writers lock services
// in one order, and everything else of a service after it.
//
// A remembered id is a guess: the row must have the name too. So an id from a transaction that was
// rolled back, or from a database that was replaced, does no harm.
func (s *Store) writeServices(ctx context.Context, tx *sqldb.Tx, list []service, merge string) (map[string]int64, error) {
	ids := s.remembered(list)
	rest, err := s.writeKnown(ctx, tx, list, merge, ids)
	if err == nil && len(rest) > 0 {
		err = s.writeNamed(ctx, tx, rest, merge, ids)
	}
	if err != nil {
		return nil, fmt.Errorf("write the services: %w", err)
	}
	for i := range rest {
		s.known.Add(rest[i].target, ids[rest[i].target])
	}
	return ids, nil
}

// remembered returns the ids that are remembered.
func (s *Store) remembered(list []service) map[string]int64 {
	ids := make(map[string]int64, len(list))
	for i := range list {
		if id, ok := s.known.Get(list[i].target); ok {
			ids[list[i].target] = id
		}
	}
	return ids
}

// writeKnown writes the services that have an id, and returns the others. It removes an id that
// belongs to another service.
func (s *Store) writeKnown(ctx context.Context, tx *sqldb.Tx, list []service, merge string, ids map[string]int64) ([]service, error) {
	var rest []service
	known := make([]service, 0, len(list))
	for i := range list {
		if _, ok := ids[list[i].target]; ok {
			known = append(known, list[i])
		} else {
			rest = append(rest, list[i])
		}
	}
	var p sqldb.Pipeline
	missing := int64(len(known))
	for update := range s.updates(known, merge, ids) {
		p.Exec("", update.Query, update.Args, func(n int64) error {
			missing -= n
			return nil
		})
	}
	if err := tx.Run(ctx, &p); err != nil {
		return nil, err
	}
	if missing == 0 {
		return rest, nil
	}
	there := make(map[string]int64, len(known))
	for part := range s.db.Engine().Rows(1, serviceColumns(), serviceValues(known, ids)) {
		if err := eachID(ctx, tx, knownOf(s.db.Engine(), part.Query), part.Args, there); err != nil {
			return nil, err
		}
	}
	for i := range known {
		if _, ok := there[known[i].target]; !ok {
			delete(ids, known[i].target)
			rest = append(rest, known[i])
		}
	}
	slices.SortFunc(rest, func(a, b service) int { return cmp.Compare(a.target, b.target) })
	return rest, nil
}

// knownOf finds services by id, the primary key of services. Their names must be right, too.
func knownOf(e sqldb.Engine, list string) string {
	return `SELECT s.id, s.target FROM (` + list + `) AS v ` + e.LookupJoin() + ` services AS s ON s.id = v.column1 AND s.target = v.column2`
}

// updates yields the statements that join rows of services to the rows with their ids and names.
func (s *Store) updates(list []service, merge string, ids map[string]int64) iter.Seq[sqldb.Rows] {
	return func(yield func(sqldb.Rows) bool) {
		for part := range s.db.Engine().Rows(1, serviceColumns(), serviceValues(list, ids)) {
			part.Query = s.db.Engine().Update() + ` services SET ` + merge + ` FROM (SELECT column1 AS id, column2 AS target, column3 AS head,
				column4 AS max_sequence, column5 AS filled, column6 AS sequenced FROM (` + part.Query + `) AS v) AS excluded
				WHERE services.id = excluded.id AND services.target = excluded.target`
			if !yield(part) {
				return
			}
		}
	}
}

// writeNamed writes services whose id is not known, and which may be new.
func (s *Store) writeNamed(ctx context.Context, tx *sqldb.Tx, list []service, merge string, ids map[string]int64) error {
	first, err := s.firstID(ctx, tx)
	if err != nil {
		return err
	}
	for i := range list {
		ids[list[i].target] = first + int64(i)
	}
	const into = ` INTO services (id, target, head, max_sequence, filled, sequenced) `
	for part := range s.db.Engine().Rows(1, serviceColumns(), serviceValues(list, ids)) {
		text := s.db.Engine().Insert() + into + part.Query + ` ON CONFLICT (target) DO UPDATE SET ` + merge + ` RETURNING id, target`
		if err := eachID(ctx, tx, text, part.Args, ids); err != nil {
			return err
		}
	}
	return nil
}

// firstID returns the first of the ids that new services get. SQLite has one writer at a time, and
// it appends them. On a server, a sequence would need a privilege of its own, and it would begin
// again on a standby that took over; a random number of 62 bits does not come twice.
func (s *Store) firstID(ctx context.Context, tx *sqldb.Tx) (first int64, err error) {
	if s.db.Engine() != sqldb.SQLite {
		return rand.Int64N(1 << 62), nil //nolint:gosec // it only tells services apart
	}
	err = tx.QueryRow(ctx, `SELECT COALESCE(max(id), 0) + 1 FROM services`).Scan(&first)
	return first, err
}

func eachID(ctx context.Context, tx *sqldb.Tx, text string, args []any, ids map[string]int64) error {
	var p sqldb.Pipeline
	p.Query("", text, args, func(row sqldb.Row) error {
		var id int64
		var target string
		err := row.Scan(&id, &target)
		ids[target] = id
		return err
	})
	return tx.Run(ctx, &p)
}
