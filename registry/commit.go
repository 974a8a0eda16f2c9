package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
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

func serviceRow(name string, s *service) []any {
	return []any{name, string(s.status), s.sequence, keyBytes(s.key), s.changedAt, s.boundAt,
		formatTimes(s.recent), s.serviceType, s.endpointURL, s.providerReceipt}
}

// moveServices brings each service to its new state, if it is still as it was read, and takes it off the lost ones.
// The name and the sequence are compared: they name a state of the service for ever. Its id is taken from the row, since in a
// database that was restored meanwhile it may be another's.
func (w writer) moveServices(groups []*group, lost map[events.Target]bool) error {
	var known, born []any
	byName := make(map[string]*group, len(groups))
	for _, g := range groups {
		name := g.target.String()
		byName[name] = g
		if g.existed {
			known = append(append(known, serviceRow(name, &g.service)...), g.base)
		} else {
			born = append(born, serviceRow(name, &g.service)...)
		}
	}
	moved := func(rows *sql.Rows) error {
		var id int64
		var name string
		if err := rows.Scan(&id, &name); err != nil {
			return err
		}
		g := byName[name]
		g.service.id = id
		delete(lost, g.target)
		return nil
	}
	const update = `UPDATE services SET status = v.column2, sequence = v.column3, public_key = v.column4,
		changed_at = v.column5, bound_at = v.column6, recent_rotations = v.column7,
		service_type = v.column8, endpoint_url = v.column9, provider_receipt = v.column10 FROM (%s) AS v
		WHERE services.target = v.column1 AND services.sequence = v.column11 RETURNING services.id, services.target`
	if err := w.each(update, append(serviceTypes(), sqldb.Int), known, moved); err != nil {
		return fmt.Errorf("update services: %w", err)
	}
	// A conflict may be about the id too: a server that took over by logical replication begins to count anew. Who is decided
	// again gets another.
	const insert = `INSERT INTO services (target, status, sequence, public_key, changed_at, bound_at, recent_rotations,
		service_type, endpoint_url, provider_receipt) %s ON CONFLICT DO NOTHING RETURNING id, target`
	if err := w.each(insert, serviceTypes(), born, moved); err != nil {
		return fmt.Errorf("insert services: %w", err)
	}
	return nil
}

// each runs a statement over rows of these columns, which stand where it has a %s, and reads what it returns.
func (w writer) each(statement string, types []sqldb.Type, values []any, row func(*sql.Rows) error) error {
	for part := range w.engine.Rows(1, types, values) {
		if err := eachRow(w.ctx, w.tx, fmt.Sprintf(statement, part.Query), part.Args, row); err != nil {
			return err
		}
	}
	return nil
}

// historyRow is what is kept of a change for ever.
type historyRow struct {
	service      int64 // its id
	event        events.Invalidation
	requestNonce events.Nonce
	digest       [sha256.Size]byte // of the request; unknownDigest where it can't be known
	receiptNonce events.Nonce
	receipt      []byte
}

// historyOf returns the rows of the groups' changes.
func historyOf(groups []*group) []historyRow {
	var rows []historyRow
	for g, o := range changes(groups) {
		r := o.in.request
		rows = append(rows, historyRow{g.service.id, o.event, r.Nonce, r.Digest(), o.receiptNonce, o.receiptBytes})
	}
	return rows
}

// appendHistory writes a row for each change. Its unique keys are the last word on keys and nonces.
func (w writer) appendHistory(rows []historyRow) error {
	args := make([]any, 0, 12*len(rows))
	for _, r := range rows {
		e := &r.event
		args = append(args,
			r.service, e.Sequence, string(e.Event), keyBytes(e.OldKey), keyBytes(e.NewKey),
			e.GracePeriodExpiry, e.Timestamp, e.Nonce.String(),
			r.requestNonce.String(), r.digest[:], r.receiptNonce.String(), r.receipt)
	}
	const into = `INSERT INTO history (service, sequence, event, old_public_key, public_key, grace_period_expiry,
		committed_at, event_nonce, request_nonce, request_digest, receipt_nonce, receipt) `
	return w.insert(into, []sqldb.Type{
		sqldb.Int, sqldb.Int, sqldb.Text, sqldb.Bytes, sqldb.Bytes, sqldb.Int, sqldb.Int,
		sqldb.Text, sqldb.Text, sqldb.Bytes, sqldb.Text, sqldb.Bytes,
	}, args)
}

// fillOutbox keeps each change's messages until their streams have them, in the order in which they are to be published.
func (w writer) fillOutbox(groups []*group, now time.Time) error {
	var args []any
	place, lease := outboxPlace{rand.Int64(), now.UnixNano()}, now.Add(leaseFor).UnixMilli() //nolint:gosec // it only tells commits apart
	for g, o := range changes(groups) {
		o.place = place
		args = append(args, place.batch, place.position, g.service.id, o.event.Sequence, o.eventBytes, lease)
		place = place.next()
	}
	const into = "INSERT INTO outbox (batch, position, service, sequence, event, lease_until) "
	return w.insert(into, []sqldb.Type{sqldb.Int, sqldb.Int, sqldb.Int, sqldb.Int, sqldb.Bytes, sqldb.Int}, args)
}

// insert writes all rows, or returns [errTaken].
func (w writer) insert(into string, types []sqldb.Type, values []any) error {
	for part := range w.engine.Rows(1, types, values) {
		_, err := w.tx.ExecContext(w.ctx, into+part.Query, part.Args...)
		if sqldb.Duplicate(err) {
			return errTaken
		}
		if err != nil {
			return fmt.Errorf("%.24s…: %w", into, err)
		}
	}
	return nil
}

// changes yields the committed outcomes of the groups.
func changes(groups []*group) iter.Seq2[*group, *outcome] {
	return func(yield func(*group, *outcome) bool) {
		for _, g := range groups {
			for i := range g.outcomes {
				if g.outcomes[i].verdict == committed && !yield(g, &g.outcomes[i]) {
					return
				}
			}
		}
	}
}
