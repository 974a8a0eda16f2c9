package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

const (
	// LeaseFor is how long a process owns an outbox row that it committed or claimed. It renews the
	// lease of rows that it still has in hand, so a lease only ends if the process has died or
	// can't reach the database.
	LeaseFor = 5 * time.Second
	// CountAtMost is how many rows a look counts. Rows lie in the order of their commits' random
	// numbers, so the oldest of so many is about as old as the oldest of all.
	CountAtMost = 10_000
)

// waiting is a row of the outbox.
type waiting struct {
	rowID
	place decision.OutboxPlace
	event []byte // nil: it was published
}

// rowID names a row of the history.
type rowID struct{ service, sequence int64 }

// Claim leases up to limit messages that were not published in time, oldest first: a crash
// left them, or the broker was away. Two replicas never lease the same message at a time, though
// publishing one twice would do no harm.
func (s *Outbox) Claim(ctx context.Context, limit int, now time.Time) ([]decision.Message, error) {
	var messages []decision.Message
	condition, args := stale(now)
	query := `UPDATE outbox SET lease_until = $4 WHERE (batch, position) IN
		(SELECT batch, position FROM outbox WHERE ` + condition + ` ORDER BY position LIMIT $3)
		RETURNING batch, position, service, sequence, event`
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		var claimed []waiting
		var p sqldb.Pipeline
		p.Query("lease", query, append(args, (limit+1)/2, now.Add(LeaseFor).UnixMilli()), func(row sqldb.Row) error {
			var one waiting
			err := row.Scan(&one.place.Batch, &one.place.Position, &one.service, &one.sequence, &one.event)
			claimed = append(claimed, one)
			return err
		})
		if err := tx.Run(ctx, &p); err != nil {
			return err
		}
		slices.SortFunc(claimed, func(a, b waiting) int { return decision.ComparePlaces(a.place, b.place) })
		var err error
		messages, err = s.messages(ctx, tx, claimed)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("claim outbox messages: %w", err)
	}
	return messages, nil
}

// claimedOf finds changes by the primary key of history (service, sequence), and their services by
// the primary key of services (id).
func claimedOf(e sqldb.Engine) string {
	return `SELECT h.service, h.sequence, s.target, h.event_nonce, h.receipt_nonce, h.receipt FROM (%s) AS v
		` + e.LookupJoin() + ` history h ON h.service = v.column1 AND h.sequence = v.column2 ` +
		e.LookupJoin() + ` services s ON s.id = h.service`
}

// messages makes claimed rows into the messages that were committed, with what the history has.
func (s *Outbox) messages(ctx context.Context, tx *sqldb.Tx, claimed []waiting) ([]decision.Message, error) {
	values := make([]any, 0, 2*len(claimed))
	for _, one := range claimed {
		values = append(values, one.service, one.sequence)
	}
	type pair struct{ event, receipt decision.Message }
	found := make(map[rowID]pair, len(claimed))
	var p sqldb.Pipeline
	s.query(&p, "read the history", claimedOf(s.db.Engine()), []sqldb.Type{sqldb.Int, sqldb.Int}, values, func(row sqldb.Row) error {
		var id rowID
		var name string
		var one pair
		err := row.Scan(&id.service, &id.sequence, &name, nonceText(&one.event.Nonce), nonceText(&one.receipt.Nonce), &one.receipt.Payload)
		one.event.Subject, one.receipt.Subject = events.InvalidationSubject+name, events.ReceiptSubject+name
		found[id] = one
		return err
	})
	if err := tx.Run(ctx, &p); err != nil {
		return nil, err
	}
	messages := make([]decision.Message, 0, 2*len(claimed))
	for _, one := range claimed {
		p, ok := found[one.rowID]
		if !ok {
			return nil, fmt.Errorf("the history lacks sequence %d of the service with id %d: %w", one.sequence, one.service, ErrOlder)
		}
		p.event.Payload = one.event
		p.event.Place, p.receipt.Place = one.place, one.place
		p.event.Parts, p.receipt.Parts = 2, 2
		if one.event == nil {
			p.receipt.Parts = 1
		} else {
			messages = append(messages, p.event)
		}
		messages = append(messages, p.receipt)
	}
	return messages, nil
}

// Stale reports whether there is a message to claim. It is a read, which costs little while
// there is none.
func (s *Outbox) Stale(ctx context.Context, now time.Time) (bool, error) {
	var n int
	condition, args := stale(now)
	err := s.db.QueryRow(ctx, "SELECT COUNT(*) FROM outbox WHERE "+condition, args...).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for messages left in the outbox: %w", err)
	}
	return n > 0, nil
}

// ErrOlder means that the database is not the one that the messages were committed to: it was
// restored.
var ErrOlder = errors.New("the database lacks rows that were written to it")

// Delete deletes a change's row if the streams have all its messages. If they have the event
// but not the receipt, it deletes the event from the row: otherwise a broker that takes only events
// would be given it again and again. It moves the position from where it was seen to place; 0: it
// stays. It returns the new position, or [ErrOlder] if the database was restored meanwhile.
func (s *Outbox) Delete(ctx context.Context, published []decision.Message, from Position, place uint64) (now Position, err error) {
	var gone, older bool
	places, half := placesOf(published)
	const announced = `UPDATE outbox SET event = NULL FROM (%s) AS v
		WHERE outbox.batch = v.column1 AND outbox.position = v.column2`
	err = s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		deleted := int64(0)
		var p sqldb.Pipeline
		for first, last := range runs(places) {
			const text = "DELETE FROM outbox WHERE batch = $1 AND position >= $2 AND position <= $3"
			p.Exec("delete", text, []any{first.Batch, first.Position, last.Position}, func(n int64) error {
				deleted += n
				return nil
			})
		}
		s.all(&p, "forget the events", announced, []sqldb.Type{sqldb.Int, sqldb.Int}, half, nil)
		if err := tx.Run(ctx, &p); err != nil {
			return err
		}
		now, older = from, false
		if gone = deleted < int64(len(places)); gone || place == 0 {
			return nil
		}
		moved, ok, err := from.move(ctx, tx, place)
		now, older = moved, err == nil && !ok
		return err
	})
	switch {
	case err != nil:
		return from, fmt.Errorf("delete published messages from the outbox: %w", err)
	case older:
		return from, ErrOlder
	case gone:
		return now, s.committedAll(ctx, published)
	}
	return now, nil
}

// placesOf returns the places of the changes with all their messages in the list, in their order,
// and the columns of the places of those with the event alone.
func placesOf(messages []decision.Message) (whole []decision.OutboxPlace, half []any) {
	whole = make([]decision.OutboxPlace, 0, len(messages)/2)
	parts := make(map[decision.OutboxPlace]int, len(messages)/2)
	for _, m := range messages {
		if parts[m.Place]++; parts[m.Place] == m.Parts {
			whole = append(whole, m.Place)
		}
	}
	for _, m := range messages {
		if parts[m.Place] < m.Parts && m.IsEvent() {
			half = append(half, m.Place.Batch, m.Place.Position)
		}
	}
	slices.SortFunc(whole, decision.ComparePlaces)
	return whole, half
}

// runs yields the first and the last of places that follow each other: usually of all of them.
func runs(places []decision.OutboxPlace) iter.Seq2[decision.OutboxPlace, decision.OutboxPlace] {
	return func(yield func(first, last decision.OutboxPlace) bool) {
		for i := 0; i < len(places); {
			first := places[i]
			last := first
			for i++; i < len(places) && places[i] == last.Next(); i++ {
				last = last.Next()
			}
			if !yield(first, last) {
				return
			}
		}
	}
}

// committedAll returns [ErrOlder] if the history lacks one of these events. It is called if outbox
// rows are gone. The likely cause is another replica that took this process for dead and has
// published the messages too.
func (s *Outbox) committedAll(ctx context.Context, published []decision.Message) error {
	var list []ChangeID
	var nonces []events.Nonce
	for _, m := range published {
		if m.IsEvent() {
			id, nonce := ChangeOf(m.Subject, m.Payload)
			list, nonces = append(list, id), append(nonces, nonce)
		}
	}
	known, err := s.Nonces(ctx, list)
	if err != nil {
		return err
	}
	for i, one := range list {
		if known[one] != nonces[i] {
			return ErrOlder
		}
	}
	return nil
}

// stale is the condition of a row that waits to be published: its lease has ended, or was given by
// a clock that is far ahead of ours. Such a lease would end too late, so it doesn't count;
// publishing a message twice does no harm. Clocks may differ by the length of a lease before two
// replicas take messages from each other.
func stale(now time.Time) (condition string, args []any) {
	return "(lease_until < $1 OR lease_until > $2)", []any{now.UnixMilli(), now.Add(2 * LeaseFor).UnixMilli()}
}

// RenewLeases gives the rows at these places, which are sorted, a new lease.
func (s *Outbox) RenewLeases(ctx context.Context, places []decision.OutboxPlace, now time.Time) error {
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		var p sqldb.Pipeline
		for first, last := range runs(places) {
			const text = "UPDATE outbox SET lease_until = $1 WHERE batch = $2 AND position >= $3 AND position <= $4"
			p.Exec("renew", text, []any{now.Add(LeaseFor).UnixMilli(), first.Batch, first.Position, last.Position}, nil)
		}
		return tx.Run(ctx, &p)
	})
	if err != nil {
		return fmt.Errorf("renew leases in the outbox: %w", err)
	}
	return nil
}

// Backlog returns how many changes are in the outbox, CountAtMost at most, and when the oldest one
// that skip doesn't name was committed.
func (s *Outbox) Backlog(ctx context.Context, skip func(decision.OutboxPlace) bool) (rows int, oldest time.Time, err error) {
	const some = "SELECT batch, position FROM outbox LIMIT $1"
	var first sql.NullInt64
	if skip == nil {
		err = s.db.QueryRow(ctx, "SELECT COUNT(*), MIN(position) FROM ("+some+") AS waiting", CountAtMost).Scan(&rows, &first)
	} else {
		err = s.each(ctx, some, []any{CountAtMost}, func(row sqldb.Row) error {
			var place decision.OutboxPlace
			err := row.Scan(&place.Batch, &place.Position)
			if rows++; !skip(place) && (!first.Valid || place.Position < first.Int64) {
				first = sql.NullInt64{Int64: place.Position, Valid: true}
			}
			return err
		})
	}
	if err != nil {
		return 0, oldest, fmt.Errorf("look at the outbox: %w", err)
	}
	if first.Valid {
		oldest = time.Unix(0, first.Int64)
	}
	return rows, oldest, nil
}
