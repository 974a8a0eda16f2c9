package ledger

import (
	"context"
	"fmt"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// fewChanges is how many changes are read at a time if it is not known how many are needed.
const fewChanges = 64

// lines returns the keys that a service had after a sequence, oldest first, and whether it had
// more. It ignores changes that come meanwhile: a history only grows.
func (s *Ledger) Lines(
	ctx context.Context, one *decision.Service, after, most int64,
) (lines []events.HistoryKey, more bool, err error) {
	// At least one of two changes brings a key: a revocation is followed by a binding.
	end := min(one.Sequence, after+max(most, 2))
	changes, err := s.changes(ctx, one.ID, after, end)
	if err != nil {
		return nil, false, err
	}
	// It depends on whether the last of them brought a key or ended what there was.
	more = one.Sequence > end+1 || one.Sequence == end+1 && one.Active()
	within := len(changes)
	if changes, err = s.withEnds(ctx, one, changes, end); err != nil {
		return nil, false, err
	}
	lines = decision.HistoryLines(changes, within)
	if int64(len(lines)) > most {
		lines, more = lines[:most], true
	}
	return lines, more, nil
}

// withEnds adds the changes that may still end one of the keys before them: up to the first change
// that ends all of them, or that came when all of them had ended.
func (s tables) withEnds(
	ctx context.Context, one *decision.Service, changes []events.Invalidation, end int64,
) ([]events.Invalidation, error) {
	latest := int64(0)
	for i := range changes {
		latest = max(latest, changes[i].GracePeriodExpiry)
	}
	for first := true; end < one.Sequence && len(changes) > 0; first = false {
		to := min(one.Sequence, end+fewChanges)
		next, err := s.changes(ctx, one.ID, end, to)
		if err != nil {
			return nil, err
		}
		for i := range next {
			e := &next[i]
			if first && i == 0 {
				latest = max(latest, e.GracePeriodExpiry) // the end of the last key
			}
			changes = append(changes, *e)
			if e.EndsEarlierKeys() || e.Timestamp >= latest {
				return changes, nil
			}
		}
		end = to
	}
	return changes, nil
}

// changes reads the changes of a service after one sequence, up to another, in their order.
func (s tables) changes(ctx context.Context, id, after, upTo int64) ([]events.Invalidation, error) {
	list := make([]events.Invalidation, 0, max(0, upTo-after))
	err := s.each(ctx, ChangesQuery, []any{id, after, upTo}, func(row sqldb.Row) error {
		var e events.Invalidation
		var endEarlier int64
		err := row.Scan(&e.Sequence, &e.Event, keyColumn{&e.OldKey}, keyColumn{&e.NewKey},
			&e.GracePeriodExpiry, &e.Timestamp, &endEarlier)
		e.EndEarlier = endEarlier == 1
		list = append(list, e)
		return err
	})
	return list, err
}

// ChangesQuery reads no more rows than there are sequences between the two, whatever plan the database
// chooses.
const ChangesQuery = `SELECT sequence, event, old_public_key, public_key, grace_period_expiry, committed_at,
	end_earlier FROM history WHERE service = $1 AND sequence > $2 AND sequence <= $3 ORDER BY sequence`

// inGrace returns the keys that are in grace at now, newest first, as the history was when the
// service was read: it only grows, so a later change does not mix into the answer. It goes back
// until a change ended all keys before it, or until several changes in a row are too old for this
// grace period and none of them has a key in grace. A key that came under a longer grace period is
// found as long as its neighbours are.
func (s *Ledger) InGrace(ctx context.Context, one *decision.Service, now, grace int64) (keys []events.GraceKey, err error) {
	for upTo := one.Sequence; upTo > 0; upTo -= fewChanges {
		changes, err := s.changes(ctx, one.ID, max(0, upTo-fewChanges), upTo)
		if err != nil {
			return nil, fmt.Errorf("read the keys in grace: %w", err)
		}
		done := len(changes) == 0 || changes[0].Timestamp+grace <= now
		for _, e := range slices.Backward(changes) {
			if e.Event == events.KeyRotation && e.GracePeriodExpiry > now {
				keys, done = append(keys, events.GraceKey{PublicKey: e.OldKey, Expires: e.GracePeriodExpiry}), false
			}
			if e.EndsEarlierKeys() {
				return keys, nil
			}
		}
		if done {
			break
		}
	}
	return keys, nil
}
