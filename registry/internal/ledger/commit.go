package ledger

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// ErrTaken means that one of the batch's keys or nonces was used before, by another replica
// meanwhile or earlier.
var ErrTaken = errors.New("a key or nonce was used before")

// errConflict means that a service is no longer in the state that was read or remembered, or that
// an app has another Master Key.
var errConflict = errors.New("a service was moved by another replica")

// Conflicts are the conflicts of a commit: it has not written these services, and they must be
// decided again.
type Conflicts struct {
	Services map[events.Target]bool
	Taken    bool // a key, a nonce or a sequence was used before; the database doesn't tell whose
}

// Commit writes the groups that changed in one transaction. A service that is no longer in the
// state that was read or remembered is in conflict: nothing of it is written, and its requests must
// be decided again. The other groups stand. If a key or a nonce was used before, all groups that
// changed are in conflict.
func (s *Ledger) Commit(ctx context.Context, groups []*decision.Group, now time.Time) (Conflicts, error) {
	changed := slices.DeleteFunc(slices.Clone(groups), func(g *decision.Group) bool { return !g.Changed() })
	if len(changed) == 0 {
		return Conflicts{}, nil
	}
	sortForLocks(changed)
	lost := map[events.Target]bool{}
	err := s.commitAll(ctx, changed, now)
	if errors.Is(err, errConflict) {
		err = s.commitWhatStands(ctx, changed, now, lost)
	}
	if errors.Is(err, ErrTaken) {
		for _, g := range changed {
			lost[g.Target] = true
		}
		return Conflicts{lost, true}, nil
	}
	if err != nil {
		return Conflicts{}, fmt.Errorf("commit: %w", err)
	}
	return Conflicts{lost, false}, nil
}

// sortForLocks sorts groups in the one order in which all replicas write them.
func sortForLocks(groups []*decision.Group) {
	slices.SortFunc(groups, func(a, b *decision.Group) int {
		if a.Was.ID != 0 && b.Was.ID != 0 {
			return cmp.Compare(a.Was.ID, b.Was.ID)
		}
		return cmp.Or(cmp.Compare(b.Was.ID, a.Was.ID), cmp.Compare(a.Target.String(), b.Target.String()))
	})
}

// commitAll writes all groups, or returns [errConflict]. Each service must have an id.
func (s *Ledger) commitAll(ctx context.Context, groups []*decision.Group, now time.Time) error {
	for _, g := range groups {
		if !g.Existed {
			return errConflict // a new service: its id must be read
		}
		g.Service.ID = g.Was.ID
	}
	known, _ := rowsOfServices(groups)
	return s.write(ctx, func(tx *sqldb.Tx) error {
		if replaced, err := s.replacedMasters(ctx, tx, groups); err != nil || len(replaced) > 0 {
			return cmp.Or(err, errConflict)
		}
		var p sqldb.Pipeline
		s.all(&p, "update services", s.db.Engine().Update()+updateServices, updateTypes(), known, errConflict)
		s.appendHistory(&p, historyOf(groups), unlessReserved)
		s.fillOutbox(&p, groups, now)
		s.useApps(&p, groups)
		return tx.RunAtCommit(ctx, &p)
	})
}

// commitWhatStands writes the services that are in their expected state, and names the others.
func (s *Ledger) commitWhatStands(ctx context.Context, groups []*decision.Group, now time.Time, lost map[events.Target]bool) error {
	return s.write(ctx, func(tx *sqldb.Tx) error {
		clear(lost)
		replaced, err := s.replacedMasters(ctx, tx, groups)
		if err != nil {
			return err
		}
		left := slices.DeleteFunc(slices.Clone(groups), func(g *decision.Group) bool { return replaced[g.Target.App] && g.ByMaster() })
		if err := s.moveServices(ctx, tx, left, lost); err != nil {
			return err
		}
		for _, g := range groups {
			if replaced[g.Target.App] && g.ByMaster() {
				lost[g.Target] = true
			}
		}
		won := slices.DeleteFunc(slices.Clone(groups), func(g *decision.Group) bool { return lost[g.Target] })
		var p sqldb.Pipeline
		s.appendHistory(&p, historyOf(won), unlessReserved)
		s.fillOutbox(&p, won, now)
		s.useApps(&p, won)
		return tx.RunAtCommit(ctx, &p)
	})
}

// A service moves if it is in the state that was read or remembered. The statement compares
// everything that the decision rests on, except the times of the last minute and the place of the
// last change's request, which move with the sequence. It compares the name too, because the id may
// be another service's if the database was restored meanwhile. Details are written if the change
// sets them.
const updateServices = ` services SET status = v.column3, sequence = v.column4, public_key = v.column5,
	changed_at = v.column6, recent_rotations = v.column7, stream_created_at = v.column8, stream_sequence = v.column9,
	master_signed_at = v.column10, bound_at = COALESCE(v.column11, services.bound_at),
	service_type = COALESCE(v.column12, services.service_type), endpoint_url = COALESCE(v.column13, services.endpoint_url),
	provider_receipt = COALESCE(v.column14, services.provider_receipt) FROM (%s) AS v
	WHERE services.id = v.column1 AND services.target = v.column2 AND services.status = v.column15 AND services.sequence = v.column16
	AND services.public_key IS NOT DISTINCT FROM v.column17 AND services.changed_at = v.column18`

// updateTypes and insertTypes are the types of the columns of a service's row.
func updateTypes() []sqldb.Type {
	return slices.Concat([]sqldb.Type{sqldb.Int}, insertTypes(), []sqldb.Type{sqldb.Text, sqldb.Int, sqldb.Bytes, sqldb.Int})
}

func insertTypes() []sqldb.Type {
	return []sqldb.Type{
		sqldb.Text, sqldb.Text, sqldb.Int, sqldb.Bytes, sqldb.Int, sqldb.Text, sqldb.Int, sqldb.Int, sqldb.Int,
		sqldb.Int, sqldb.Text, sqldb.Text, sqldb.Text,
	}
}

// rowsOfServices returns the values of the rows of services that are in the database, and of new
// services.
func rowsOfServices(groups []*decision.Group) (known, born []any) {
	known = make([]any, 0, len(groups)*len(updateTypes()))
	for _, g := range groups {
		s, d := &g.Service, &g.Details
		name := g.Target.String()
		if !g.Existed {
			born = append(born, name, string(s.Status), s.Sequence, keyBytes(s.Key), s.ChangedAt, formatTimes(s.Recent),
				s.Place.Stream, s.Place.Sequence, s.SignedAt, orZero(d.BoundAt), orZero(d.ServiceType), orZero(d.EndpointURL), orZero(d.ProviderReceipt))
			continue
		}
		known = append(known, g.Was.ID, name, string(s.Status), s.Sequence, keyBytes(s.Key), s.ChangedAt, formatTimes(s.Recent),
			s.Place.Stream, s.Place.Sequence, s.SignedAt, orNull(d.BoundAt), orNull(d.ServiceType), orNull(d.EndpointURL), orNull(d.ProviderReceipt),
			string(g.Was.Status), g.Was.Sequence, keyBytes(g.Was.Key), g.Was.ChangedAt)
	}
	return known, born
}

func orNull[T any](v *T) any {
	if v == nil {
		return nil
	}
	return *v
}

func orZero[T any](v *T) any {
	if v == nil {
		v = new(T)
	}
	return *v
}

// moveServices moves each service to its new state if it is in its expected state, and names the
// others. It knows the services that moved by their names: two may be remembered with one id, if
// the database was restored meanwhile.
func (s tables) moveServices(ctx context.Context, tx *sqldb.Tx, groups []*decision.Group, lost map[events.Target]bool) error {
	byName := make(map[string]*decision.Group, len(groups))
	for _, g := range groups {
		lost[g.Target] = true
		byName[g.Target.String()] = g
	}
	moved := func(row sqldb.Row) error {
		var id int64
		var name string
		err := row.Scan(&id, &name)
		if g := byName[name]; g != nil {
			g.Service.ID = id
			delete(lost, g.Target)
		}
		return err
	}
	known, born := rowsOfServices(groups)
	var p sqldb.Pipeline
	s.query(&p, "update services", s.db.Engine().Update()+updateServices+" RETURNING services.id, services.target", updateTypes(), known, moved)
	s.insertServices(&p, born, moved)
	return tx.Run(ctx, &p)
}

// insertServices writes new services.
//
// A conflict may be about the id too: after logical replication, a server that takes over starts
// its sequence again. The service is then decided again and gets a new id.
func (s tables) insertServices(p *sqldb.Pipeline, born []any, moved func(sqldb.Row) error) {
	id, types := "", insertTypes()
	if s.db.Engine() == sqldb.Cockroach {
		id, types, born = "id, ", append([]sqldb.Type{sqldb.Int}, types...), withIDs(born, len(types))
	}
	insert := `INSERT INTO services (` + id + `target, status, sequence, public_key, changed_at, recent_rotations,
		stream_created_at, stream_sequence, master_signed_at, bound_at, service_type, endpoint_url, provider_receipt) %s ON CONFLICT DO NOTHING RETURNING id, target`
	s.query(p, "insert services", insert, types, born, moved)
}

// withIDs puts ids before rows of so many columns. The ids are consecutive and start at a random
// number. CockroachDB's own sequence is one row of the whole cluster that is written for each id,
// and it would send all new services to one node.
func withIDs(rows []any, width int) []any {
	id := rand.Int64N(1 << 62) //nolint:gosec // it only tells services apart
	list := make([]any, 0, len(rows)+len(rows)/width)
	for row := range slices.Chunk(rows, width) {
		list = append(append(list, id), row...)
		id++
	}
	return list
}

// HistoryRow is what is kept of a change for ever.
type HistoryRow struct {
	service      int64 // its id
	Event        events.Invalidation
	RequestNonce events.Nonce
	Digest       [sha256.Size]byte // of the request; [decision.UnknownDigest] if it can't be known
	ReceiptNonce events.Nonce
	Receipt      []byte
}

// historyOf returns the rows of the groups' changes.
func historyOf(groups []*decision.Group) []HistoryRow {
	rows := make([]HistoryRow, 0, decision.CountRequests(groups))
	for g, o := range decision.Changes(groups) {
		r := o.In.Request
		rows = append(rows, HistoryRow{g.Service.ID, o.Event, r.Nonce, r.Digest(), o.ReceiptNonce, o.ReceiptBytes})
	}
	return rows
}

// unlessReserved leaves out rows whose key is or was a developer's Master Key, or is the registry's
// own: no unique index says that.
const unlessReserved = `SELECT * FROM (%s) AS h WHERE NOT EXISTS (SELECT 1 FROM apps WHERE master_public_key = h.column5)
	AND NOT EXISTS (SELECT 1 FROM reserved_keys WHERE public_key = h.column5)`

// appendHistory writes a row for each change. Its unique indexes have the last word on keys and
// nonces.
func (s tables) appendHistory(p *sqldb.Pipeline, rows []HistoryRow, from string) {
	args := make([]any, 0, 13*len(rows))
	for i := range rows {
		r := &rows[i]
		e := &r.Event
		args = append(args,
			r.service, e.Sequence, string(e.Event), keyBytes(e.OldKey), keyBytes(e.NewKey),
			e.GracePeriodExpiry, e.Timestamp, e.Nonce.String(),
			r.RequestNonce.String(), r.Digest[:], r.ReceiptNonce.String(), r.Receipt, numberOf(e.EndEarlier))
	}
	const into = ` INTO history (service, sequence, event, old_public_key, public_key, grace_period_expiry,
		committed_at, event_nonce, request_nonce, request_digest, receipt_nonce, receipt, end_earlier) `
	s.all(p, "append to the history", s.db.Engine().Insert()+into+from, []sqldb.Type{
		sqldb.Int, sqldb.Int, sqldb.Text, sqldb.Bytes, sqldb.Bytes, sqldb.Int, sqldb.Int,
		sqldb.Text, sqldb.Text, sqldb.Bytes, sqldb.Text, sqldb.Bytes, sqldb.Int,
	}, args, ErrTaken)
}

// numberOf returns a boolean as a column holds it on every engine.
func numberOf(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// fillOutbox keeps each change's messages until their streams have them, in the order in which they
// must be published.
func (s tables) fillOutbox(p *sqldb.Pipeline, groups []*decision.Group, now time.Time) {
	args := make([]any, 0, 6*len(groups))
	place := decision.OutboxPlace{Batch: rand.Int64(), Position: now.UnixNano()} //nolint:gosec // it only tells commits apart
	lease := now.Add(LeaseFor).UnixMilli()
	for g, o := range decision.Changes(groups) {
		o.Place = place
		args = append(args, place.Batch, place.Position, g.Service.ID, o.Event.Sequence, o.EventBytes, lease)
		place = place.Next()
	}
	const into = " INTO outbox (batch, position, service, sequence, event, lease_until) %s"
	s.all(p, "fill the outbox", s.db.Engine().Insert()+into, []sqldb.Type{sqldb.Int, sqldb.Int, sqldb.Int, sqldb.Int, sqldb.Bytes, sqldb.Int}, args, nil)
}
