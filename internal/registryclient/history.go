package registryclient

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"

	"omiappreg.org/keyrotation/events"
)

// ServiceHistory returns every key that a service ever had (§8.4), or [ErrUnknownService] or
// [ErrNoRegistry].
func (r Registry) ServiceHistory(ctx context.Context, target events.Target) (events.ServiceHistory, error) {
	var keys []events.HistoryKey
	var reading Reading
	for {
		from := reading.Next()
		part, err := r.HistoryPart(ctx, target, from)
		if err != nil {
			return events.ServiceHistory{}, err
		}
		again := sort.Search(len(keys), func(i int) bool { return keys[i].Sequence > from })
		keys = append(slices.Clip(keys[:again]), part.Keys...)
		done, err := reading.Add(&part)
		if err != nil {
			return events.ServiceHistory{}, fmt.Errorf("look up the history of %s: %w", target, err)
		}
		if done {
			part.Keys = keys
			return part, nil
		}
	}
}

// HistoryPart returns the keys that a service had after a sequence, as many as the registry gives
// at once.
func (r Registry) HistoryPart(
	ctx context.Context, target events.Target, after int64,
) (events.ServiceHistory, error) {
	document, err := r.about(ctx, events.LookupHistorySubject, target, events.HistoryQuery(after))
	if err == nil {
		var part events.ServiceHistory
		if part, err = r.Trust.ServiceHistory(target, document); err == nil {
			return part, nil
		}
	}
	return events.ServiceHistory{}, fmt.Errorf("look up the history of %s: %w", target, untrusted(err))
}

// Key returns the owner of a key (§8.6), or [ErrNoRegistry].
func (r Registry) Key(ctx context.Context, key events.PublicKey) (events.KeyRecord, error) {
	document, err := askRegistry(ctx, r.Conn, events.LookupKeySubject, events.KeyQuery(key))
	if err == nil {
		var record events.KeyRecord
		if record, err = r.Trust.KeyRecord(key, document, r.now().Unix()); err == nil {
			return record, nil
		}
	}
	return events.KeyRecord{}, fmt.Errorf("look up a key: %w", untrusted(err))
}

// Reading is the progress of reading a history that comes in parts. A change in between may end a
// key of an earlier part, so parts belong to one history only if they name the same sequence. But a
// key that has ended doesn't change. So the parts up to the first key that has not ended are kept,
// even across a restart, and reading comes to an end although the history keeps changing.
type Reading struct {
	Kept int64 // up to this sequence, nothing changes any more

	next     int64 // the next part begins after this sequence
	sequence int64 // of the parts after Kept
}

// endedFor is how many seconds ago a key must have ended, so that no later change has an earlier
// time from a registry whose clock is behind.
const endedFor = 300

var errNoProgress = errors.New("the registry's answer is a part that does not go on")

// Next returns the sequence after which the next part begins.
func (r *Reading) Next() int64 { return max(r.next, r.Kept) }

// Add adds the part after Next, and reports whether it was the last. If it belongs to another
// history than the parts before it, Next goes back.
func (r *Reading) Add(part *events.ServiceHistory) (done bool, err error) {
	from := r.Next()
	if first := from == r.Kept; !first && part.Sequence != r.sequence {
		r.next = r.Kept
		return false, nil
	} else if first {
		r.sequence = part.Sequence
		for _, key := range part.Keys {
			if key.Until == nil || *key.Until > part.Timestamp-endedFor {
				break
			}
			r.Kept = key.Sequence
		}
	}
	if n := len(part.Keys); n > 0 {
		r.next = part.Keys[n-1].Sequence
	}
	if part.More && r.next <= from {
		return false, errNoProgress
	}
	return !part.More, nil
}
