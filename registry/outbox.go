package registry

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"omiappreg.org/keyrotation/events"
)

// stale is the condition of a row that waits for somebody to publish it: its lease has ended, or was given by a clock that is
// far ahead of ours. That one would end too late, so it counts for nothing: a message that is published twice does no harm.
func stale(now time.Time) (condition string, args []any) {
	return "(lease_until < $1 OR lease_until > $2)", []any{now.UnixMilli(), now.Add(2 * leaseFor).UnixMilli()}
}

// outboxPlace is where in the outbox a message is: what one commit has to say lies side by side, in its order.
type outboxPlace struct {
	batch    int64 // of the commit
	position int64
}

// next returns the place behind it.
func (p outboxPlace) next() outboxPlace { return outboxPlace{p.batch, p.position + 1} }

// claimOutbox leases up to limit messages that nobody published in time, oldest first: a crash left them, or a broker
// that was away. Two replicas never lease the same one at a time, and to publish one twice would do no harm.
func (s *Store) claimOutbox(ctx context.Context, limit int, now time.Time) ([]signed, error) {
	var claimed []signed
	condition, args := stale(now)
	query := `UPDATE outbox SET lease_until = $2 WHERE (batch, position) IN
		(SELECT batch, position FROM outbox WHERE ` + condition + ` ORDER BY position LIMIT $3)
		RETURNING nonce, subject, payload, batch, position`
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		claimed = claimed[:0]
		return eachRow(ctx, tx, query, append(args, limit), func(rows *sql.Rows) error {
			var m signed
			err := rows.Scan(nonceText(&m.nonce), &m.subject, &m.payload, &m.place.batch, &m.place.position)
			claimed = append(claimed, m)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("claim outbox messages: %w", err)
	}
	slices.SortFunc(claimed, func(a, b signed) int {
		return cmp.Or(cmp.Compare(a.place.position, b.place.position), cmp.Compare(a.place.batch, b.place.batch))
	})
	return claimed, nil
}

// outboxStale reports whether there is a message to claim: a read, which costs nothing while all is well.
func (s *Store) outboxStale(ctx context.Context, now time.Time) (bool, error) {
	var n int
	condition, args := stale(now)
	err := s.db.Reader().QueryRowContext(ctx, "SELECT COUNT(*) FROM outbox WHERE "+condition, args...).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for messages left in the outbox: %w", err)
	}
	return n > 0, nil
}

// errOlder means that the database is not the one that the messages were committed to: it was restored.
var errOlder = errors.New("the database lacks what was written to it")

// deleteOutbox forgets messages that their stream has, and moves the position from where it was seen to place; 0: it
// stays. It returns the position by then, or [errOlder] if the database was restored meanwhile.
func (s *Store) deleteOutbox(ctx context.Context, published []signed, from position, place uint64) (now position, err error) {
	var gone, older bool
	err = s.db.InTx(ctx, func(tx *sql.Tx) error {
		deleted := int64(0)
		for first, last := range runs(published) {
			result, err := tx.ExecContext(ctx, "DELETE FROM outbox WHERE batch = $1 AND position >= $2 AND position <= $3",
				first.batch, first.position, last.position)
			if err != nil {
				return err
			}
			n, err := result.RowsAffected()
			if err != nil {
				return err
			}
			deleted += n
		}
		now, older = from, false
		if gone = deleted < int64(len(published)); gone || place == 0 {
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

// runs yields the first and the last place of messages that lie side by side: most often all of them.
func runs(messages []signed) iter.Seq2[outboxPlace, outboxPlace] {
	return func(yield func(first, last outboxPlace) bool) {
		for i := 0; i < len(messages); {
			first := messages[i].place
			last := first
			for i++; i < len(messages) && messages[i].place == last.next(); i++ {
				last = last.next()
			}
			if !yield(first, last) {
				return
			}
		}
	}
}

// committedAll returns [errOlder] if the history lacks one of these events. It is asked where outbox rows are gone: most
// likely somebody else, who held this process for dead, has published the messages too.
func (s *Store) committedAll(ctx context.Context, published []signed) error {
	var list []claim
	for _, m := range published {
		if strings.HasPrefix(m.subject, events.InvalidationSubject) {
			list = append(list, newClaim(streamMessage{subject: m.subject, payload: m.payload}))
		}
	}
	known, err := s.nonces(ctx, list)
	if err != nil {
		return err
	}
	for _, one := range list {
		if known[one.changeID] != one.nonce {
			return errOlder
		}
	}
	return nil
}
