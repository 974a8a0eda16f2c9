package client

import (
	"context"
	"crypto"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"

	"omiappreg.org/keyrotation/events"
)

const (
	askFirst = 3 * time.Millisecond // after the receipt, and then less and less often
	askLast  = 2 * time.Second
)

// commitmentTo notes a receipt that was waited for since some time. Half of the grace period is
// counted from now on our own clock, unless the receipt may be an old one: then from its timestamp,
// until the registry's record says better.
func (c *Client) commitmentTo(r *events.Receipt, since time.Time) *commitment {
	made := &commitment{
		Sequence: r.Sequence, Timestamp: r.Timestamp, GracePeriodExpiry: r.GracePeriodExpiry, EventNonce: r.EventNonce,
	}
	from := time.Now()
	if c.entry.late = c.entry.late || deadlineAt(since.Add(made.grace()/4)).left() <= 0; c.entry.late {
		from = time.Unix(r.Timestamp, 0)
	}
	made.PromoteAt = from.Add(made.half()).UnixMilli()
	return made
}

// commitmentOf notes a change that only the registry's record shows. The wait is half of what is
// left of the old key's grace period, by the record's own clock.
func (c *Client) commitmentOf(r *events.ServiceRecord) *commitment {
	made := &commitment{Sequence: r.Sequence, Timestamp: r.Timestamp, GracePeriodExpiry: r.Timestamp}
	for _, key := range r.Grace {
		if key.PublicKey == c.signing.Load().public {
			made.GracePeriodExpiry = key.Expires
		}
	}
	made.PromoteAt = time.Now().Add(made.half()).UnixMilli()
	return made
}

// deadline is a time by the wall's clock and by the process's own: whichever comes first counts.
// The process's clock stands still while the machine sleeps, and the wall's may be set back.
type deadline struct{ wall, own time.Time }

func deadlineAt(t time.Time) deadline {
	return deadline{wall: t.Round(0), own: time.Now().Add(time.Until(t))}
}

func (d deadline) left() time.Duration {
	return min(time.Until(d.own), d.wall.Sub(time.Now().Round(0)))
}

// awaitApplied goes on with the old key until every durable has applied the change and no cache
// has an older JWK Set, if that matters, or until half of its grace period is over. Then it
// promotes the new key.
func (c *Client) awaitApplied(ctx context.Context) {
	made := c.entry.Committed
	reply(&c.waiting, result{receipt: c.entry.receipt(c.cfg.Target, c.cfg.Trust.Origin())})
	applied := map[string]bool{}
	// Also if the clock was set back.
	rest := min(time.Until(time.UnixMilli(made.PromoteAt)), made.half())
	until := deadlineAt(time.Now().Add(rest))
	signWaits := c.signing.Load().wait != nil
	switch {
	case made.grace() == 0 && signWaits:
		until = deadlineAt(c.release) // Sign waits: time enough to let everyone hear of the new key
	case c.entry.late && made.half() > 0 && until.left() <= 0: // by our clock, which may be ahead
		until = c.ask(ctx, min(askTimeout, made.half()), until, applied)
	}
	if signWaits && made.grace() > 0 && until.left() > 0 {
		c.unhold()
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval, pause.Multiplier = askFirst, askLast, 1.5
	next := time.Now().Add(pause.NextBackOff())
	for ctx.Err() == nil {
		if until.left() <= 0 || c.urgent() {
			c.promote(ctx)
			return
		}
		ask := time.NewTimer(min(time.Until(next), until.left()))
		select {
		case <-ctx.Done():
		case cmd := <-c.commands:
			c.join(cmd)
		case <-ask.C:
			until = c.ask(ctx, min(askTimeout, max(until.left(), askFirst)), until, applied)
			next = time.Now().Add(pause.NextBackOff())
		}
		ask.Stop()
	}
}

// urgent reports whether a caller can't wait for the change to settle.
func (c *Client) urgent() bool {
	return slices.ContainsFunc(c.queue, func(cmd *command) bool { return cmd.atOnce() && !cmd.abandoned() }) ||
		slices.ContainsFunc(c.settling, func(cmd *command) bool { return cmd.op == opPromote && !cmd.abandoned() })
}

// ask asks the registry which durables have applied the change, and returns until when to wait for
// the rest.
func (c *Client) ask(ctx context.Context, within time.Duration, until deadline, applied map[string]bool) deadline {
	asking, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	record, err := c.lookup.ServiceRecord(asking, c.cfg.Target)
	if err != nil {
		c.retrying(ctx, err)
		return until
	}
	made := c.entry.Committed
	switch {
	case record.Sequence < made.Sequence:
		return until // a replica of the registry that lags
	case record.Sequence > made.Sequence:
		c.checkNext = time.Now() // whose change is it?
		return deadline{}
	case c.everyone(&record, applied):
		return c.cachesEnd(asking, &record, until)
	case c.entry.late && made.grace() > 0: // how old the receipt is, by the clock that made it
		left := ofSeconds(made.GracePeriodExpiry-record.Timestamp) - time.Second // at least
		return deadlineAt(time.Now().Add(min(left-made.half(), made.half())))
	default:
		return until
	}
}

// everyone reports whether every durable has applied the change, and reports those that newly have.
// If no durable is known, the answer is no.
func (c *Client) everyone(r *events.ServiceRecord, applied map[string]bool) bool {
	everyone := len(r.Propagation) > 0
	for _, durable := range slices.Sorted(maps.Keys(r.Propagation)) {
		switch {
		case !r.Propagation[durable]:
			everyone = false
		case !applied[durable]:
			applied[durable] = true
			c.tell(Event{Kind: Applied, Key: c.entry.Request.NewKey, Sequence: r.Sequence, Durable: durable})
		}
	}
	return everyone
}

// promote makes the new key the one that signs, and ends the change. A step that fails is tried
// again. The new key signs from the pending slot meanwhile, which is as durable.
func (c *Client) promote(ctx context.Context) {
	key, err := c.promoted(ctx)
	if err != nil {
		c.retrying(ctx, err)
		if pending, err := c.cfg.Store.Signer(ctx, Pending); err == nil && holds(pending, c.entry.Request.NewKey) {
			c.use(pending)
		}
		wait(ctx, time.Second)
		return
	}
	c.use(key)
	c.ours()
	c.tell(Event{Kind: Promoted, Key: c.entry.Request.NewKey, Sequence: c.entry.Committed.Sequence})
	if err := c.save(ctx, nil); err != nil { // the next start sees that the key was promoted
		c.retrying(ctx, err)
	}
	c.entry = nil
}

// promoted returns the new key out of the current slot. An attempt that failed halfway may have put
// it there.
func (c *Client) promoted(ctx context.Context) (crypto.Signer, error) {
	key, err := c.cfg.Store.Signer(ctx, Current)
	if err != nil && !errors.Is(err, ErrNoKey) || holds(key, c.entry.Request.NewKey) {
		return key, err
	}
	if err := c.cfg.Store.Promote(ctx); err != nil {
		return nil, err
	}
	return c.cfg.Store.Signer(ctx, Current)
}
