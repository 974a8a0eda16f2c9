package storage

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/keyring"
)

// writeEvents writes what new events say of their services. It returns the rest of what they say,
// and the services' ids.
func (s *Store) writeEvents(ctx context.Context, tx *sqldb.Tx, fresh []events.Invalidation) (*rows, map[string]int64, error) {
	if len(fresh) == 0 {
		return &rows{}, nil, nil
	}
	effects, rounds := effectsOf(fresh)
	ids, err := s.writeServices(ctx, tx, rounds[0], joinRuns) // the first round has every service
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

// effectsOf splits events into rows of keys and cutoffs, and into runs. One statement may not touch
// a row twice, so the second run of a service goes into a second round, and so on. Usually there is
// one.
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

// extend adds an event to a run if it follows: the events of a run are of one service, and their
// sequences have no gap between them, or they have no sequences. A row of services takes a run at
// once: the last sequence and the length of the run tell how many of its events are beyond any
// sequence.
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

// joinRuns joins runs to the rows of their services. It doesn't count an event that the registry's
// history already stands in for: see services in the schema.
const joinRuns = `head = CASE WHEN excluded.head > services.head THEN excluded.head ELSE services.head END,
	max_sequence = CASE WHEN excluded.max_sequence > services.max_sequence
		THEN excluded.max_sequence ELSE services.max_sequence END,
	sequenced = services.sequenced + CASE
		WHEN excluded.max_sequence - excluded.sequenced >= services.filled THEN excluded.sequenced
		WHEN excluded.max_sequence > services.filled THEN excluded.max_sequence - services.filled
		ELSE 0 END`
