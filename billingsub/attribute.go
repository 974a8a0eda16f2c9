package billingsub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/keyring"
)

// Attribute says whose key this was at a time (docs/protocol.md §8.3). A key is valid in [from, until). While
// a gap in the history could touch the answer, the registry is asked about this key; if it can't be, the
// answer is an [*api.Problem] with status 503.
func (b *Billing) Attribute(ctx context.Context, q events.AttributeQuery) (events.AttributeAnswer, error) {
	owner, found, err := b.store.FindKey(ctx, q.PublicKey)
	if err != nil {
		return events.AttributeAnswer{}, fmt.Errorf("attribute a key: %w", err)
	}
	if found && settled(&owner) {
		key := owner.Keyring.Keys[0]
		return answer(owner.Target, key.From, owner.Keyring.Until(key), q.At), nil
	}
	if !found {
		gaps, err := b.store.Gaps(ctx, events.Target{}, 1)
		if err != nil {
			return events.AttributeAnswer{}, fmt.Errorf("attribute an unknown key: %w", err)
		}
		if len(gaps) == 0 {
			return events.AttributeAnswer{Result: events.Invalid, Reason: events.UnknownKey}, nil
		}
	}
	b.filler.wake()
	record, err := b.asking.about(ctx, q.PublicKey)
	switch {
	case err != nil:
		return events.AttributeAnswer{}, unavailable(err)
	case record.Registered():
		return answer(events.Target{App: record.AppID, Service: record.ServiceID}, record.From, endOf(&record, &owner), q.At), nil
	case found:
		return events.AttributeAnswer{}, unavailable(errors.New("the registry does not know a key that it has told of"))
	}
	return events.AttributeAnswer{Result: events.Invalid, Reason: events.UnknownKey}, nil
}

// endOf returns the end of a key that the registry was asked about: an event that ends it may have come first.
func endOf(record *events.KeyRecord, owner *subscriber.Service) int64 {
	end := keyring.NoEnd
	if record.Until != nil {
		end = *record.Until
	}
	if key, found := owner.Keyring.Find(record.PublicKey); found {
		end = min(end, owner.Keyring.Until(key))
	}
	return end
}

const (
	asksASecond  = 1000 // which a flood of unknown keys may have of the registry
	asksInFlight = 32
)

// asking bounds what questions about keys may cost the registry.
type asking struct {
	registry Registry
	timeout  time.Duration
	limit    *rate.Limiter
	free     *semaphore.Weighted
}

func newAsking(cfg Config) asking {
	return asking{
		registry: cfg.Registry, timeout: cfg.LookupTimeout,
		limit: rate.NewLimiter(asksASecond, asksASecond), free: semaphore.NewWeighted(asksInFlight),
	}
}

var errManyKeys = errors.New("the registry is asked about too many keys")

func (a *asking) about(ctx context.Context, key events.PublicKey) (events.KeyRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	if !a.limit.Allow() || a.free.Acquire(ctx, 1) != nil {
		return events.KeyRecord{}, errManyKeys
	}
	defer a.free.Release(1)
	return a.registry.Key(ctx, key)
}

// unavailable tells the caller to try again, and the log why.
func unavailable(cause error) error {
	return errors.Join(api.Unavailable("Part of the history of keys is being fetched from the registry; try again."), cause)
}

// settled says whether no event that is missing can change what is known of the key. The current key is the one of
// the highest event, and only a later event could end it.
func settled(owner *subscriber.Service) bool {
	key := owner.Keyring.Keys[0]
	switch {
	case key.Position < 0: // the event that brought it is missing
		return false
	case owner.Keyring.Until(key) == keyring.NoEnd:
		return key.Position == owner.Keyring.Head
	default:
		return !owner.Gap // else the missing event may be one that ends it earlier
	}
}

// answer is that of §8.3 about a key of which all is known.
func answer(target events.Target, from, until, at int64) events.AttributeAnswer {
	a := events.AttributeAnswer{Result: events.Valid, AppID: target.App, ServiceID: target.Service, From: from}
	if until != keyring.NoEnd {
		a.Until = &until
	}
	switch {
	case at < from:
		a.Result, a.Reason = events.Invalid, events.NotYetValid
	case at >= until:
		a.Result, a.Reason = events.Invalid, events.ExpiredKey
	}
	return a
}
