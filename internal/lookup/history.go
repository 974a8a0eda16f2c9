package lookup

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
		done, err := reading.Take(&part)
		if err != nil {
			return events.ServiceHistory{}, fmt.Errorf("look up the history of %s: %w", target, err)
		}
		if done {
			part.Keys = keys
			return part, nil
		}
	}
}

// HistoryPart returns the keys that a service had after a sequence, as many as the registry gives at once.
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

// Key returns whose key this is (§8.6), or [ErrNoRegistry].
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

// Reading is how far a history was read that comes in parts. A change meanwhile may end a key that was
// told already: parts are of one history only if they say the same sequence. But a key that has ended
// stays as it is. So what came up to the first that has not ended is kept, also by who starts again, and
// a history that changes all the time comes to its end all the same.
type Reading struct {
	Kept int64 // up to this sequence, nothing changes any more

	next     int64 // the part that comes is that after this sequence
	sequence int64 // of the parts after Kept
}

// endedFor is for how many seconds a key has to have ended until no later change is told with an earlier
// time: by a registry's clock that runs behind.
const endedFor = 300

var errNoProgress = errors.New("the registry's answer is a part that does not go on")

// Next returns after which sequence the next part is to be asked for.
func (r *Reading) Next() int64 { return max(r.next, r.Kept) }

// Take takes the part after Next, and says whether it was the last. If it is of another history than those
// before it, Next goes back.
func (r *Reading) Take(part *events.ServiceHistory) (done bool, err error) {
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
