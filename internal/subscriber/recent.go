package subscriber

import (
	"context"
	"database/sql"
	"hash/maphash"
	"slices"
	"sync"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// recently is how many of the newest nonces are remembered at least, twice as many at most. They take some 4 MB.
const recently = 1 << 16

// recent is beside which timestamps the newest nonces stand in a table that is not in the order of nonces: an event
// that has a known nonce, and another timestamp, is found by it. It is a hint; the database has the last word. So it does no
// harm when a transaction that noted something in it is rolled back, or when the database is replaced.
//
// A registry makes no such event: it draws 128 bits for a nonce, and signs them once. The one rule of docs/protocol.md §7.2 is
// held as far back as it costs next to nothing; beyond, a nonce is one beside its timestamp.
type recent struct {
	seed maphash.Seed

	mu         sync.Mutex
	young, old map[uint64]int64 // timestamps, by the hashes of nonces
}

func newRecent() *recent {
	return &recent{seed: maphash.MakeSeed(), young: make(map[uint64]int64)}
}

// elsewhere returns beside which other timestamp than the event's own its nonce is remembered; false: beside none. What is not
// remembered at all is from now on.
func (r *recent) elsewhere(e *events.Invalidation) (timestamp int64, is bool) {
	hash := r.hash(e.Nonce.String())
	r.mu.Lock()
	defer r.mu.Unlock()
	timestamp, known := r.young[hash]
	if !known {
		timestamp, known = r.old[hash]
	}
	if !known {
		r.note(hash, e.Timestamp)
	}
	return timestamp, known && timestamp != e.Timestamp
}

// found has a nonce remembered beside the timestamp that the database has beside it.
func (r *recent) found(nonce string, timestamp int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note(r.hash(nonce), timestamp)
}

func (r *recent) hash(nonce string) uint64 { return maphash.String(r.seed, nonce) }

func (r *recent) note(hash uint64, timestamp int64) {
	if len(r.young) >= recently {
		r.old, r.young = r.young, make(map[uint64]int64, recently)
	}
	r.young[hash] = timestamp
}

// readRecent reads the newest nonces.
func (s *Store) readRecent(ctx context.Context) error {
	if !s.byTime() {
		return nil
	}
	s.recent = newRecent()
	const query = `SELECT timestamp, nonce FROM applied WHERE timestamp > 0 ORDER BY timestamp DESC, nonce DESC LIMIT $1`
	var p sqldb.Pipeline
	p.Query("read the newest nonces", query, []any{int64(recently)}, func(row sqldb.Row) error {
		var (
			timestamp int64
			nonce     string
		)
		if err := row.Scan(&timestamp, &nonce); err != nil {
			return err
		}
		s.recent.found(nonce, timestamp)
		return nil
	})
	return s.db.Run(ctx, s.db.Reader(), &p)
}

// notElsewhere returns the events without those whose nonce is known beside another timestamp.
func (s *Store) notElsewhere(ctx context.Context, tx *sql.Tx, list []*events.Invalidation) ([]*events.Invalidation, error) {
	if s.recent == nil {
		return list, nil
	}
	kept := list[:0]
	for _, e := range list {
		if before, is := s.recent.elsewhere(e); is {
			const query = `SELECT EXISTS (SELECT 1 FROM applied WHERE timestamp = $1 AND nonce = $2)`
			nonce, there := e.Nonce.String(), false
			if err := tx.QueryRowContext(ctx, query, before, nonce).Scan(&there); err != nil {
				return nil, err
			}
			if there {
				continue
			}
			s.recent.found(nonce, e.Timestamp)
		}
		kept = append(kept, e)
	}
	return kept, nil
}

// noneElsewhere says whether no event's nonce is remembered beside another timestamp.
func (s *Store) noneElsewhere(list []*events.Invalidation) bool {
	return !slices.ContainsFunc(list, func(e *events.Invalidation) bool {
		_, is := s.recent.elsewhere(e)
		return is
	})
}
