package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// leaseFor is how long the process that committed an outbox row has to publish it before another may.
const leaseFor = 5 * time.Second

// errTaken means that another replica registered one of the batch's keys or nonces in between.
var errTaken = errors.New("a key or nonce was registered by another replica")

// commit writes the groups that changed in one transaction. It returns the services that another replica moved in
// between; nothing of theirs is written, and their requests must be decided again. The other groups stand.
func (s *Store) commit(ctx context.Context, groups []*group, now time.Time) (lost map[events.Target]bool, err error) {
	changed := slices.DeleteFunc(slices.Clone(groups), func(g *group) bool { return !g.changed() })
	if len(changed) == 0 {
		return nil, nil
	}
	// One order of locks for all replicas.
	slices.SortFunc(changed, func(a, b *group) int { return cmp.Compare(a.target.String(), b.target.String()) })
	err = s.db.InTx(ctx, func(tx *sql.Tx) error {
		lost = map[events.Target]bool{}
		for _, g := range changed {
			lost[g.target] = true
		}
		w := writer{ctx, tx, s.db.Engine()}
		if err := w.moveServices(changed, lost); err != nil {
			return err
		}
		won := slices.DeleteFunc(slices.Clone(changed), func(g *group) bool { return lost[g.target] })
		if err := w.appendHistory(historyOf(won)); err != nil {
			return err
		}
		return w.fillOutbox(won, now)
	})
	if errors.Is(err, errTaken) {
		for _, g := range changed {
			lost[g.target] = true
		}
		return lost, nil
	}
	if err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	return lost, nil
}

// writer writes a batch with a handful of statements.
type writer struct {
	ctx    context.Context
	tx     *sql.Tx
	engine sqldb.Engine
}

// serviceTypes are the columns of a service's row, as serviceRow gives them.
func serviceTypes() []sqldb.Type {
	return []sqldb.Type{
		sqldb.Text, sqldb.Text, sqldb.Int, sqldb.Bytes, sqldb.Int, sqldb.Int, sqldb.Text, sqldb.Text, sqldb.Text, sqldb.Text,
	}
}

func serviceRow(g *group) []any {
	s := &g.service
	return []any{
		g.target.String(), string(s.status), s.sequence, keyBytes(s.key), s.changedAt, s.boundAt,
		formatTimes(s.recent), s.serviceType, s.endpointURL, s.providerReceipt,
	}
}

// moveServices brings each service to its new state, if it is still as it was read, and takes it off the lost ones.
// The sequence alone is compared: it names a state of the service for ever.
func (w writer) moveServices(groups []*group, lost map[events.Target]bool) error {
	var known, born []any
	for _, g := range groups {
		if g.existed {
			known = append(append(known, serviceRow(g)...), g.base)
		} else {
			born = append(born, serviceRow(g)...)
		}
	}
	err := w.eachPart(append(serviceTypes(), sqldb.Int), known, func(values string, part []any) error {
		return w.moved(`UPDATE services SET status = v.column2, sequence = v.column3, public_key = v.column4,
			changed_at = v.column5, bound_at = v.column6, recent_rotations = v.column7,
			service_type = v.column8, endpoint_url = v.column9, provider_receipt = v.column10
			FROM (VALUES `+values+`) AS v
			WHERE services.target = v.column1 AND services.sequence = v.column11
			RETURNING services.target`, part, lost)
	})
	if err != nil {
		return fmt.Errorf("update services: %w", err)
	}
	err = w.eachPart(serviceTypes(), born, func(values string, part []any) error {
		return w.moved(`INSERT INTO services (target, status, sequence, public_key, changed_at, bound_at, recent_rotations,
			service_type, endpoint_url, provider_receipt) VALUES `+values+`
			ON CONFLICT (target) DO NOTHING RETURNING target`, part, lost)
	})
	if err != nil {
		return fmt.Errorf("insert services: %w", err)
	}
	return nil
}

// eachPart runs a statement over rows of these columns, as often as the limits of one statement make it.
func (w writer) eachPart(types []sqldb.Type, args []any, run func(values string, part []any) error) error {
	rows := min(sqldb.MaxRows, sqldb.MaxParams/len(types))
	for part := range slices.Chunk(args, rows*len(types)) {
		if err := run(w.engine.Values(1, len(part)/len(types), types...), part); err != nil {
			return err
		}
	}
	return nil
}

func (w writer) moved(query string, args []any, lost map[events.Target]bool) (err error) {
	rows, err := w.tx.QueryContext(w.ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var t events.Target
		if err := rows.Scan(target(&t)); err != nil {
			return err
		}
		delete(lost, t)
	}
	return rows.Err()
}

// historyRow is what is kept of a change for ever.
type historyRow struct {
	event        events.Invalidation
	requestNonce events.Nonce
	digest       [sha256.Size]byte // of the request; unknownDigest where it can't be known
	receiptNonce events.Nonce
	receipt      []byte
}

// historyOf returns the rows of the groups' changes.
func historyOf(groups []*group) []historyRow {
	var rows []historyRow
	for o := range changes(groups) {
		r := o.in.request
		rows = append(rows, historyRow{o.event, r.Nonce, r.Digest(), o.receiptNonce, o.receiptBytes})
	}
	return rows
}

// appendHistory writes a row for each change. Its unique keys are the last word on keys and nonces.
func (w writer) appendHistory(rows []historyRow) error {
	args := make([]any, 0, 12*len(rows))
	for _, r := range rows {
		e := &r.event
		args = append(args,
			e.Target.String(), e.Sequence, string(e.Event), keyBytes(e.OldKey), keyBytes(e.NewKey),
			e.GracePeriodExpiry, e.Timestamp, e.Nonce.String(),
			r.requestNonce.String(), r.digest[:], r.receiptNonce.String(), r.receipt)
	}
	const into = `INSERT INTO history (target, sequence, event, old_public_key, public_key, grace_period_expiry,
		committed_at, event_nonce, request_nonce, request_digest, receipt_nonce, receipt) VALUES `
	return w.insert(into, []sqldb.Type{
		sqldb.Text, sqldb.Int, sqldb.Text, sqldb.Bytes, sqldb.Bytes, sqldb.Int, sqldb.Int,
		sqldb.Text, sqldb.Text, sqldb.Bytes, sqldb.Text, sqldb.Bytes,
	}, args)
}

// fillOutbox keeps each signed message until its stream has it, in the order in which they are to be published.
func (w writer) fillOutbox(groups []*group, now time.Time) error {
	var args []any
	position, lease := now.UnixNano(), now.Add(leaseFor).UnixMilli()
	for o := range changes(groups) {
		for _, m := range o.messages() {
			args = append(args, m.nonce.String(), m.subject, m.payload, position, lease)
			position++
		}
	}
	const into = "INSERT INTO outbox (nonce, subject, payload, position, lease_until) VALUES "
	return w.insert(into, []sqldb.Type{sqldb.Text, sqldb.Text, sqldb.Bytes, sqldb.Int, sqldb.Int}, args)
}

// insert writes all rows, or returns [errTaken].
func (w writer) insert(into string, types []sqldb.Type, args []any) error {
	return w.eachPart(types, args, func(values string, part []any) error {
		result, err := w.tx.ExecContext(w.ctx, into+values+" ON CONFLICT DO NOTHING", part...)
		if err != nil {
			return fmt.Errorf("%.24s…: %w", into, err)
		}
		if inserted, err := result.RowsAffected(); err != nil || inserted != int64(len(part)/len(types)) {
			return errors.Join(errTaken, err)
		}
		return nil
	})
}

// changes yields the committed outcomes of the groups.
func changes(groups []*group) func(yield func(*outcome) bool) {
	return func(yield func(*outcome) bool) {
		for _, g := range groups {
			for i := range g.outcomes {
				if g.outcomes[i].verdict == committed && !yield(&g.outcomes[i]) {
					return
				}
			}
		}
	}
}
