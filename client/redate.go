package client

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// ErrClock means that the registry did not accept the time in a request: this machine's clock is
// wrong, or the request was sent late.
var ErrClock = errors.New("the registry does not accept this machine's time")

// synchronised is the largest difference between two clocks that are set by NTP.
const synchronised = 5 * time.Second

// redate makes the request under way again, dated by the registry's signed time, if its date was
// the only reason for the refusal. It does so once for a change, so that clocks that can't be
// followed end in the registry's refusal.
func (c *Client) redate(ctx context.Context, r *events.Receipt) (redated bool, err error) {
	e := c.entry
	if r.Reason != events.TimestampOutOfWindow || e.Redated {
		return false, nil
	}
	by := e.by
	if by == nil && e.Kind == events.Rotation {
		by = c.signing.Load().key
	}
	if by == nil { // a reset that was found at the start: the Master Key is not available
		return false, nil
	}
	theirs := r.Timestamp // or later, if the receipt was found at the start
	if record, err := c.record(ctx); err == nil {
		if record.Current.PublicKey == e.Request.NewKey {
			return false, nil // it is committed
		}
		theirs = max(theirs, record.Timestamp)
	}
	behind := ofSeconds(theirs - time.Now().Unix())
	next, err := c.datedBy(ctx, e, by, theirs)
	if err != nil {
		return false, err
	}
	if err := c.save(ctx, next); err != nil {
		return false, err
	}
	c.entry = next
	c.stored.Store(false)
	c.tell(Event{Kind: Redated, Key: next.Request.NewKey, Err: clockError(behind)})
	return true, nil
}

// datedBy returns a change's request with another date, for the same key.
func (c *Client) datedBy(ctx context.Context, e *entry, by crypto.Signer, timestamp int64) (*entry, error) {
	asked, err := events.ParseRequest(e.Request.Subject, []byte(e.Request.Payload))
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	pending, err := c.cfg.Store.Signer(ctx, Pending)
	if err != nil {
		return nil, fmt.Errorf("read the pending key: %w", err)
	}
	draft := events.Draft{
		Kind: e.Kind, Target: c.cfg.Target, Timestamp: timestamp, Nonce: events.NewNonce(),
		Origin: c.cfg.Trust.Origin(), EndEarlier: asked.EndEarlier,
	}
	if asked.HasGracePeriod {
		draft.GracePeriod = &asked.GracePeriod
	}
	message, err := registryclient.Sign(draft, by, pending)
	if err != nil {
		return nil, err
	}
	return &entry{
		Target: e.Target, Kind: e.Kind, AtOnce: e.AtOnce, EndEarlier: e.EndEarlier, Redated: true, Request: message, by: by,
	}, nil
}

func clockError(behind time.Duration) error {
	const dated = "; the request was dated by the registry's time and sent again"
	switch {
	case behind > synchronised:
		return fmt.Errorf("%w: its clock is %s behind the registry's: synchronise it (NTP)"+dated, ErrClock, behind)
	case behind < -synchronised:
		return fmt.Errorf("%w: its clock is %s ahead of the registry's: synchronise it (NTP)"+dated, ErrClock, -behind)
	default:
		return fmt.Errorf("%w: the request was signed too long before it arrived"+dated, ErrClock)
	}
}
