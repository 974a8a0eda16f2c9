package subscriber

import (
	"context"
	"database/sql"
	"hash/maphash"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// recently is how many of the newest nonces are remembered at least, twice as many at most. They take some 4 MB.
const recently = 1 << 16

// recent is beside which timestamps the newest nonces stand in SQLite's table, which is not in the order of nonces: an event
// that has a known nonce, and another timestamp, is found by it. It is a hint; the database has the last word. So it does no
// harm when a transaction that noted something in it is rolled back, or when the database is replaced.
//
// A registry makes no such event: it draws 128 bits for a nonce, and signs them once. The one rule of docs/protocol.md §7.2 is
// held as far back as it costs next to nothing; beyond, a nonce is one beside its timestamp.
type recent struct {
	seed       maphash.Seed
	young, old map[uint64]int64 // timestamps, by the hashes of nonces
}

func newRecent() *recent {
	return &recent{seed: maphash.MakeSeed(), young: make(map[uint64]int64)}
}

// find returns the timestamp that a nonce had; false: it is not remembered.
func (r *recent) find(nonce string) (timestamp int64, known bool) {
	hash := maphash.String(r.seed, nonce)
	if timestamp, known = r.young[hash]; !known {
		timestamp, known = r.old[hash]
	}
	return timestamp, known
}

func (r *recent) note(nonce string, timestamp int64) {
	if len(r.young) >= recently {
		r.old, r.young = r.young, make(map[uint64]int64, recently)
	}
	r.young[maphash.String(r.seed, nonce)] = timestamp
}

// readRecent reads the newest nonces. Elsewhere than in SQLite a nonce conflicts whatever is beside it.
func (s *Store) readRecent(ctx context.Context) error {
	if s.db.Engine() != sqldb.SQLite {
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
		s.recent.note(nonce, timestamp)
		return nil
	})
	return s.db.Run(ctx, s.db.Reader(), &p)
}

// notElsewhere returns the events without those whose nonce is known beside another timestamp. It runs in the transaction that
// holds SQLite's one write lock, and so never beside itself.
func (s *Store) notElsewhere(ctx context.Context, tx *sql.Tx, list []*events.Invalidation) ([]*events.Invalidation, error) {
	if s.recent == nil {
		return list, nil
	}
	kept := list[:0]
	for _, e := range list {
		nonce := e.Nonce.String()
		before, known := s.recent.find(nonce)
		if known && before != e.Timestamp {
			const query = `SELECT EXISTS (SELECT 1 FROM applied WHERE timestamp = $1 AND nonce = $2)`
			var there bool
			if err := tx.QueryRowContext(ctx, query, before, nonce).Scan(&there); err != nil {
				return nil, err
			}
			if there {
				continue
			}
		}
		if !known || before != e.Timestamp {
			s.recent.note(nonce, e.Timestamp)
		}
		kept = append(kept, e)
	}
	return kept, nil
}
