package storage

import (
	"bytes"
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

// rows are keyrings split into the rows of their tables.
type rows struct {
	keys    []keyRow
	cutoffs []cutoffRow
}

type keyRow struct {
	target  string
	service int64 // its id
	keyring.Key
}

type cutoffRow struct {
	target  string
	service int64 // its id
	keyring.Cutoff
}

func (r *rows) add(target string, k keyring.Keyring) {
	for _, key := range k.Keys {
		r.keys = append(r.keys, keyRow{target: target, Key: key})
	}
	for _, c := range k.Cutoffs {
		r.cutoffs = append(r.cutoffs, cutoffRow{target: target, Cutoff: c})
	}
}

// identify gives the rows the ids of their services.
func (r *rows) identify(ids map[string]int64) {
	for i := range r.keys {
		r.keys[i].service = ids[r.keys[i].target]
	}
	for i := range r.cutoffs {
		r.cutoffs[i].service = ids[r.cutoffs[i].target]
	}
}

// keyValues returns the rows of keys in the order of their primary key, each once, because one
// statement may not touch a row twice.
func (r *rows) keyValues() []any {
	slices.SortFunc(r.keys, func(a, b keyRow) int {
		return cmp.Or(cmp.Compare(a.service, b.service), bytes.Compare(a.PublicKey.Bytes(), b.PublicKey.Bytes()))
	})
	values := make([]any, 0, 5*len(r.keys))
	for i := 0; i < len(r.keys); {
		one := r.keys[i]
		for i++; i < len(r.keys) && r.keys[i].service == one.service && r.keys[i].PublicKey == one.PublicKey; i++ {
			one.Key = one.Join(r.keys[i].Key)
		}
		values = append(values, one.service, one.PublicKey.Bytes(), one.Position, one.From, one.End)
	}
	return values
}

// cutoffValues returns the rows of cutoffs in the order of their primary key, each once.
func (r *rows) cutoffValues() []any {
	slices.SortFunc(r.cutoffs, func(a, b cutoffRow) int {
		return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.Order, b.Order), cmp.Compare(a.Time, b.Time))
	})
	values := make([]any, 0, 3*len(r.cutoffs))
	for _, row := range slices.Compact(r.cutoffs) {
		values = append(values, row.service, row.Order, row.Time)
	}
	return values
}

// writeKeyrings joins keyrings of services with these ids to those in the database, at the end of a
// transaction. The statements are [keyring.Key.Join] in SQL.
func (s *Store) writeKeyrings(ctx context.Context, tx *sqldb.Tx, ids map[string]int64, r *rows) error {
	r.identify(ids)
	const keysInto = ` INTO keys (service, public_key, position, from_time, end_time) `
	const keysJoin = ` ON CONFLICT (service, public_key) DO UPDATE SET
			position = CASE WHEN excluded.position > keys.position THEN excluded.position ELSE keys.position END,
			from_time = CASE WHEN excluded.position > keys.position OR excluded.position = keys.position
				AND excluded.from_time < keys.from_time THEN excluded.from_time ELSE keys.from_time END,
			end_time = CASE WHEN excluded.end_time < keys.end_time THEN excluded.end_time ELSE keys.end_time END`
	var p sqldb.Pipeline
	s.insert(&p, "keys", keysInto, keysJoin, r.keyValues(), sqldb.Int, sqldb.Bytes, sqldb.Int, sqldb.Int, sqldb.Int)
	const cutoffsInto = ` INTO cutoffs (service, position, cut_time) `
	const cutoffsJoin = ` ON CONFLICT (service, position, cut_time) DO NOTHING`
	s.insert(&p, "cutoffs", cutoffsInto, cutoffsJoin, r.cutoffValues(), sqldb.Int, sqldb.Int, sqldb.Int)
	return tx.RunAtCommit(ctx, &p)
}
