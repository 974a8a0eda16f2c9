package subscriber

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/keyring"
)

// writeEvents writes what events that were not applied before say of their services, and returns what else they say, and the
// services' ids.
func (s *Store) writeEvents(ctx context.Context, tx *sqldb.Tx, fresh []events.Invalidation) (*rows, map[string]int64, error) {
	if len(fresh) == 0 {
		return &rows{}, nil, nil
	}
	effects, rounds := effectsOf(fresh)
	ids, err := s.writeServices(ctx, tx, rounds[0], joinRuns) // it has every service
	if err != nil {
		return nil, nil, err
	}
	for _, runs := range rounds[1:] {
		if _, err := s.writeServices(ctx, tx, runs, joinRuns); err != nil {
			return nil, nil, err
		}
	}
	return effects, ids, nil
}

// named is an event and the text of its target.
type named struct {
	target string
	*events.Invalidation
}

// effectsOf takes events apart into rows of keys and cutoffs, and into runs. One statement may not touch a row twice, so the
// second run of a service is in a second round, and so on: nearly always there is one.
func effectsOf(fresh []events.Invalidation) (*rows, [][]service) {
	order := make([]named, len(fresh))
	for i := range fresh {
		order[i] = named{fresh[i].Target.String(), &fresh[i]}
	}
	slices.SortFunc(order, func(a, b named) int {
		return cmp.Or(strings.Compare(a.target, b.target), cmp.Compare(a.Sequence, b.Sequence))
	})
	effects := &rows{keys: make([]keyRow, 0, 2*len(fresh))}
	var rounds [][]service
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
			rounds = append(rounds, make([]service, 0, len(fresh)))
		}
		one := service{target: e.target}
		one.extend(e.Invalidation)
		rounds[round] = append(rounds[round], one)
	}
	return effects, rounds
}

// extend adds an event to a run, if it follows: events of one service whose sequences follow each other without a gap, or that
// have none. A row of services takes them at once: the number of those beyond any sequence is known from the last and the number
// of all.
func (s *service) extend(e *events.Invalidation) bool {
	if e.Sequence > 0 && s.sequenced > 0 && e.Sequence != s.maxSequence+1 {
		return false
	}
	s.head = max(s.head, keyring.Order(e))
	if e.Sequence > 0 {
		s.maxSequence, s.sequenced = e.Sequence, s.sequenced+1
	}
	return true
}

// joinRuns joins runs to the rows of their services. An event that the registry's history already stands in for is not
// counted: see services in the schema.
const joinRuns = `head = CASE WHEN excluded.head > services.head THEN excluded.head ELSE services.head END,
	max_sequence = CASE WHEN excluded.max_sequence > services.max_sequence
		THEN excluded.max_sequence ELSE services.max_sequence END,
	sequenced = services.sequenced + CASE
		WHEN excluded.max_sequence - excluded.sequenced >= services.filled THEN excluded.sequenced
		WHEN excluded.max_sequence > services.filled THEN excluded.max_sequence - services.filled
		ELSE 0 END`
