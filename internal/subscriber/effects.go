package subscriber

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// run is events of one service whose sequences follow each other without a gap, or that have none: what a row of services
// takes at once. The number of those beyond any sequence is then known from the last and the number of all.
type run struct {
	target   string
	head     int64
	sequence int64 // the last
	count    int64 // of events with a sequence
}

// writeEvents writes the effects of events that were not applied before.
func (s *Store) writeEvents(ctx context.Context, tx *sql.Tx, fresh []events.Invalidation) error {
	if len(fresh) == 0 {
		return nil
	}
	effects, rounds := effectsOf(fresh)
	ids, err := s.writeRuns(ctx, tx, rounds[0]) // it has every service
	if err != nil {
		return err
	}
	for _, runs := range rounds[1:] {
		if _, err := s.writeRuns(ctx, tx, runs); err != nil {
			return err
		}
	}
	return s.writeKeyrings(ctx, tx, ids, effects)
}

// named is an event and the text of its target.
type named struct {
	target string
	*events.Invalidation
}

// effectsOf takes events apart into rows of keys and cutoffs, and into runs. One statement may not touch a row twice, so the
// second run of a service is in a second round, and so on: nearly always there is one.
func effectsOf(fresh []events.Invalidation) (*rows, [][]run) {
	order := make([]named, len(fresh))
	for i := range fresh {
		order[i] = named{fresh[i].Target.String(), &fresh[i]}
	}
	slices.SortFunc(order, func(a, b named) int {
		return cmp.Or(strings.Compare(a.target, b.target), cmp.Compare(a.Sequence, b.Sequence))
	})
	effects := &rows{keys: make([]keyRow, 0, 2*len(fresh))}
	var rounds [][]run
	round := 0
	for i, e := range order {
		effects.add(e.target, keyring.Of(e.Invalidation))
		switch {
		case i == 0 || order[i-1].target != e.target:
			round = 0
		case rounds[round][len(rounds[round])-1].extend(e.Invalidation):
			continue
		default:
			round++
		}
		if round == len(rounds) {
			rounds = append(rounds, make([]run, 0, len(fresh)))
		}
		one := run{target: e.target}
		one.extend(e.Invalidation)
		rounds[round] = append(rounds[round], one)
	}
	return effects, rounds
}

// extend adds an event to the run, if it follows.
func (r *run) extend(e *events.Invalidation) bool {
	if e.Sequence > 0 && r.count > 0 && e.Sequence != r.sequence+1 {
		return false
	}
	r.head = max(r.head, keyring.Order(e))
	if e.Sequence > 0 {
		r.sequence, r.count = e.Sequence, r.count+1
	}
	return true
}

// writeRuns writes what runs, one for each service, say of their services, and returns the ids of those.
func (s *Store) writeRuns(ctx context.Context, tx *sql.Tx, runs []run) (map[string]int64, error) {
	list := make([]service, len(runs))
	for i, r := range runs {
		list[i] = service{target: r.target, head: r.head, maxSequence: r.sequence, sequenced: r.count}
	}
	// An event that the registry's history already stands in for is not counted: see services in the schema.
	const merge = `
			head = CASE WHEN excluded.head > services.head THEN excluded.head ELSE services.head END,
			max_sequence = CASE WHEN excluded.max_sequence > services.max_sequence
				THEN excluded.max_sequence ELSE services.max_sequence END,
			sequenced = services.sequenced + CASE
				WHEN excluded.max_sequence - excluded.sequenced >= services.filled THEN excluded.sequenced
				WHEN excluded.max_sequence > services.filled THEN excluded.max_sequence - services.filled
				ELSE 0 END`
	return s.writeServices(ctx, tx, list, merge)
}
