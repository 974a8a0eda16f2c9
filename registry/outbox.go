package registry

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// waiting is a row of the outbox.
type waiting struct {
	rowID
	place decision.OutboxPlace
	event []byte // nil: it was published
}

// rowID names a row of the history.
type rowID struct{ service, sequence int64 }

// claimOutbox leases up to limit messages that were not published in time, oldest first: a crash
// left them, or the broker was away. Two replicas never lease the same message at a time, though
// publishing one twice would do no harm.
func (s *Store) claimOutbox(ctx context.Context, limit int, now time.Time) ([]decision.Message, error) {
	var messages []decision.Message
	condition, args := stale(now)
	query := `UPDATE outbox SET lease_until = $4 WHERE (batch, position) IN
		(SELECT batch, position FROM outbox WHERE ` + condition + ` ORDER BY position LIMIT $3)
		RETURNING batch, position, service, sequence, event`
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		var claimed []waiting
		var p sqldb.Pipeline
		p.Query("lease", query, append(args, (limit+1)/2, now.Add(leaseFor).UnixMilli()), func(row sqldb.Row) error {
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
func (s *Store) messages(ctx context.Context, tx *sqldb.Tx, claimed []waiting) ([]decision.Message, error) {
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
			return nil, fmt.Errorf("the history lacks sequence %d of the service with id %d: %w", one.sequence, one.service, errOlder)
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

// outboxStale reports whether there is a message to claim. It is a read, which costs little while
// there is none.
func (s *Store) outboxStale(ctx context.Context, now time.Time) (bool, error) {
	var n int
	condition, args := stale(now)
	err := s.db.QueryRow(ctx, "SELECT COUNT(*) FROM outbox WHERE "+condition, args...).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for messages left in the outbox: %w", err)
	}
	return n > 0, nil
}

// errOlder means that the database is not the one that the messages were committed to: it was
// restored.
var errOlder = errors.New("the database lacks rows that were written to it")

// deleteOutbox deletes a change's row if the streams have all its messages. If they have the event
// but not the receipt, it deletes the event from the row: otherwise a broker that takes only events
// would be given it again and again. It moves the position from where it was seen to place; 0: it
// stays. It returns the new position, or [errOlder] if the database was restored meanwhile.
func (s *Store) deleteOutbox(ctx context.Context, published []decision.Message, from position, place uint64) (now position, err error) {
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
		return from, errOlder
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

// committedAll returns [errOlder] if the history lacks one of these events. It is called if outbox
// rows are gone. The likely cause is another replica that took this process for dead and has
// published the messages too.
func (s *Store) committedAll(ctx context.Context, published []decision.Message) error {
	var list []claim
	for _, m := range published {
		if m.IsEvent() {
			list = append(list, newClaim(streamMessage{subject: m.Subject, payload: m.Payload}))
		}
	}
	known, err := s.nonces(ctx, list)
	if err != nil {
		return err
	}
	for _, one := range list {
		if known[one.ChangeID] != one.nonce {
			return errOlder
		}
	}
	return nil
}
