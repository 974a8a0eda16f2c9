package billingsub

import (
	"context"
	"errors"
	"fmt"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/keyring"
)

// Attribute says whose key this was at a time (docs/protocol.md §8.3). A key is valid in [from, until). While a gap in
// the history could touch the answer, and the registry can't be asked, it returns an [*api.Problem] with status 503.
func (b *Billing) Attribute(ctx context.Context, q events.AttributeQuery) (events.AttributeAnswer, error) {
	owner, found, err := b.store.FindKey(ctx, q.PublicKey)
	if err != nil {
		return events.AttributeAnswer{}, fmt.Errorf("attribute a key: %w", err)
	}
	if !found {
		return b.unknown(ctx)
	}
	if settled(&owner) {
		return answer(&owner, q.At), nil
	}
	fillErr := b.filler.fill(ctx, owner.Target)
	if owner, found, err = b.store.FindKey(ctx, q.PublicKey); err != nil {
		return events.AttributeAnswer{}, fmt.Errorf("attribute a key: %w", err)
	}
	if found && settled(&owner) { // also where its own event has come meanwhile
		return answer(&owner, q.At), nil
	}
	return events.AttributeAnswer{}, unavailable(fillErr)
}

// unknown answers about a key that no event named. As long as some service has a gap, the key may lie in it.
func (b *Billing) unknown(ctx context.Context) (events.AttributeAnswer, error) {
	gaps, err := b.store.Gaps(ctx, events.Target{}, 1)
	if err != nil {
		return events.AttributeAnswer{}, fmt.Errorf("attribute an unknown key: %w", err)
	}
	if len(gaps) > 0 {
		b.filler.wake()
		return events.AttributeAnswer{}, unavailable(errors.New("some service has a gap in its history"))
	}
	return events.AttributeAnswer{Result: events.Invalid, Reason: events.UnknownKey}, nil
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
func answer(owner *subscriber.Service, at int64) events.AttributeAnswer {
	key := owner.Keyring.Keys[0]
	until := owner.Keyring.Until(key)
	a := events.AttributeAnswer{
		Result: events.Valid, AppID: owner.Target.App, ServiceID: owner.Target.Service, From: key.From,
	}
	if until != keyring.NoEnd {
		a.Until = &until
	}
	switch {
	case at < key.From:
		a.Result, a.Reason = events.Invalid, events.NotYetValid
	case at >= until:
		a.Result, a.Reason = events.Invalid, events.ExpiredKey
	}
	return a
}
