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
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/keyring"
)

// ErrUnavailable means that a gap in the history of keys could change the answer, and that the
// registry can't be asked now. Try again later.
var ErrUnavailable = errors.New("the history of keys has a gap, and the registry can't be asked")

// Attribute says whose key this was at a time (docs/protocol.md §8.3). A key is valid in [from,
// until). If a gap in the history could change the answer, Attribute asks the registry about the
// key. If the registry can't answer, the error is [ErrUnavailable].
func (b *Billing) Attribute(ctx context.Context, q events.AttributeQuery) (events.AttributeAnswer, error) {
	owner, found, err := b.core.Store.FindKey(ctx, q.PublicKey)
	if err != nil {
		return events.AttributeAnswer{}, fmt.Errorf("attribute a key: %w", err)
	}
	if found && complete(&owner) {
		key := owner.Keyring.Keys[0]
		return answer(owner.Target, key.From, owner.Keyring.Until(key), q.At), nil
	}
	if !found {
		gaps, err := b.core.Store.Gaps(ctx, events.Target{}, 1)
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
		return events.AttributeAnswer{}, unavailable(errors.New("the registry does not know a key that it announced"))
	}
	return events.AttributeAnswer{Result: events.Invalid, Reason: events.UnknownKey}, nil
}

// endOf returns the end of a key that the registry was asked about. An event that ends the key may
// have arrived before the registry's answer.
func endOf(record *events.KeyRecord, owner *storage.Service) int64 {
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
	asksASecond  = 1000 // the most that a flood of unknown keys costs the registry
	asksInFlight = 32
)

// asking limits what questions about keys cost the registry.
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

var errManyKeys = errors.New("too many questions about keys are open at the registry")

func (a *asking) about(ctx context.Context, key events.PublicKey) (events.KeyRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	if !a.limit.Allow() || a.free.Acquire(ctx, 1) != nil {
		return events.KeyRecord{}, errManyKeys
	}
	defer a.free.Release(1)
	return a.registry.Key(ctx, key)
}

// unavailable tells the caller to try again, and tells the log why.
func unavailable(cause error) error {
	return errors.Join(api.Unavailable("Part of the history of keys is being fetched from the registry; try again."),
		fmt.Errorf("%w: %w", ErrUnavailable, cause))
}

// complete reports whether no missing event can change what is known about the key. The current key
// is the key of the highest event, and only a later event could end it.
func complete(owner *storage.Service) bool {
	key := owner.Keyring.Keys[0]
	switch {
	case key.Position < 0: // the event that brought it is missing
		return false
	case owner.Keyring.Until(key) == keyring.NoEnd:
		return key.Position == owner.Keyring.Head
	default:
		return !owner.Gap // in a gap, a missing event may end it earlier
	}
}

// answer is the answer of §8.3 about a key of which everything is known.
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
