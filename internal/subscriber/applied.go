package subscriber

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"iter"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// An event counts once, by its nonce. Beside it the database has the event's timestamp, which the registry signed together
// with it: SQLite and PostgreSQL keep the nonces in that order, so that those of a batch lie side by side at the end and not each
// on a page of its own. So there a nonce is found beside its timestamp; beside another one, by what is remembered of the newest.
// On CockroachDB ascending ones would all go to one node.

// byTime says whether the nonces are in the order of their timestamps. Elsewhere a nonce conflicts whatever is beside it.
func (s *Store) byTime() bool { return s.db.Engine() != sqldb.Cockroach }

// claim writes the nonces of a batch, and returns the events whose nonce was not there, each once.
func (s *Store) claim(ctx context.Context, tx *sql.Tx, batch []events.Invalidation) ([]events.Invalidation, error) {
	claimed := make(map[string]bool, len(batch))
	first, err := s.notElsewhere(ctx, tx, firstOf(batch, claimed))
	if err != nil {
		return nil, fmt.Errorf("look for nonces beside another timestamp: %w", err)
	}
	var p sqldb.Pipeline
	s.writeNonces(&p, first, func(nonce string) { claimed[nonce] = true })
	if err := s.db.Run(ctx, tx, &p); err != nil {
		return nil, err
	}
	if s.untimed {
		if err := s.dropOld(ctx, tx, batch, claimed); err != nil {
			return nil, fmt.Errorf("look for nonces without a timestamp: %w", err)
		}
	}
	fresh := make([]events.Invalidation, 0, len(first))
	for _, e := range first {
		if claimed[e.Nonce.String()] {
			fresh = append(fresh, *e)
		}
	}
	return fresh, nil
}

// writeNonces has the nonces of events written, and each that was not there given to claimed.
func (s *Store) writeNonces(p *sqldb.Pipeline, list []*events.Invalidation, claimed func(nonce string)) {
	for insert := range s.claims(list) {
		p.Query(claim, insert.Query+` RETURNING nonce`, insert.Args, eachNonce(claimed))
	}
}

// eachNonce returns what reads a nonce from a row, and gives it to found.
func eachNonce(found func(nonce string)) func(sqldb.Row) error {
	return func(row sqldb.Row) error {
		var nonce string
		if err := row.Scan(&nonce); err != nil {
			return err
		}
		found(nonce)
		return nil
	}
}

// firstOf returns the first event of each nonce, and notes the nonces.
func firstOf(batch []events.Invalidation, nonces map[string]bool) []*events.Invalidation {
	first := make([]*events.Invalidation, 0, len(batch))
	for i := range batch {
		nonce := batch[i].Nonce.String()
		if _, twice := nonces[nonce]; !twice {
			nonces[nonce] = false
			first = append(first, &batch[i])
		}
	}
	return first
}

// claim is what is being done where [Store.claims] fails.
const claim = "claim the nonces"

// claims yields the statements that write the nonces of events which are not there. They come in order, as all rows here: two
// writers lock them in one order.
func (s *Store) claims(list []*events.Invalidation) iter.Seq[sqldb.Rows] {
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
			part.Query = `INSERT INTO applied (timestamp, nonce) ` + part.Query + ` ON CONFLICT DO NOTHING`
			if !yield(part) {
				return
			}
		}
	}
}

// lookForUntimed finds out whether there are rows with no timestamp, which have to be looked for by themselves.
func (s *Store) lookForUntimed(ctx context.Context) error {
	if !s.byTime() {
		return nil
	}
	const query = `SELECT EXISTS (SELECT 1 FROM applied WHERE timestamp = 0)`
	if err := s.db.Reader().QueryRowContext(ctx, query).Scan(&s.untimed); err != nil {
		return fmt.Errorf("look for nonces without a timestamp: %w", err)
	}
	return nil
}

// dropOld takes those out of claimed that were applied before there was a timestamp beside them.
func (s *Store) dropOld(ctx context.Context, tx *sql.Tx, batch []events.Invalidation, claimed map[string]bool) error {
	values := make([]any, 0, len(batch))
	for i := range batch {
		if batch[i].Timestamp != 0 { // that one is its own row
			values = append(values, batch[i].Nonce.String())
		}
	}
	var p sqldb.Pipeline
	for rows := range s.db.Engine().Rows(1, []sqldb.Type{sqldb.Text}, values) {
		text := `SELECT nonce FROM applied WHERE timestamp = 0 AND nonce IN (` + rows.Query + `)`
		p.Query("", text, rows.Args, eachNonce(func(nonce string) { claimed[nonce] = false }))
	}
	return s.db.Run(ctx, tx, &p)
}

// HasApplied says whether an event has taken effect.
func (s *Store) HasApplied(ctx context.Context, e *events.Invalidation) (applied bool, err error) {
	const query = `SELECT count(*) > 0 FROM applied WHERE nonce = $1 AND timestamp IN (0, $2)`
	if err := s.db.Reader().QueryRowContext(ctx, query, e.Nonce.String(), e.Timestamp).Scan(&applied); err != nil {
		return false, fmt.Errorf("look for the nonce of an event: %w", err)
	}
	return applied, nil
}
