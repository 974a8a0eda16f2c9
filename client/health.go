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

// ErrForeignKey means that the registry's current key is not in the key store. Another copy of the
// store has rotated, the developer has reset the service elsewhere, or an old key has come back.
// The client's signatures are accepted at most until its key's grace period is over.
var ErrForeignKey = errors.New("the registry's current key is not in the key store")

const (
	// foreignAfter is how long a key may be missing before it is called foreign: a store may be
	// synchronised later.
	foreignAfter = 3 * time.Second
	// recheckAfter is how often the registry is asked meanwhile.
	recheckAfter = 500 * time.Millisecond
	// checkAtLeast is how often the registry is asked in any case, less some jitter.
	checkAtLeast = time.Minute
	// checkEvery is how often the registry is asked about a refused key while its request could
	// still be replayed, and after a fault.
	checkEvery = 15 * time.Second
	// replayable is how long after its timestamp a request could be replayed, with the widest usual
	// window and some margin.
	replayable = 15 * time.Minute
	// settleFresh is how old the registry's answer may be that Settle returns.
	settleFresh = time.Second
)

// Health reports whether the client's signatures are accepted, to the extent that this is known. It
// asks no other party and waits for nothing, so a readiness probe may call it at any rate. It
// returns:
//
//   - nil while the key is the registry's current one, or a change is under way, or the registry
//     can't be asked: signing needs neither registry nor broker;
//   - [ErrForeignKey], with the registry's key, if the registry's current key is not in the key
//     store;
//   - [ErrNoKey] while there is no key to sign with (Config.KeyMayBeMissing);
//   - [ErrClosed] after [Client.Close].
//
// The registry's answer is at most a minute old while it can be asked.
func (c *Client) Health() error {
	select {
	case <-c.stopped:
		return ErrClosed
	default:
	}
	if lost := c.lost.Load(); lost != nil {
		return *lost
	}
	if c.signing.Load().key == nil {
		return ErrNoKey
	}
	return nil
}

// check asks the registry whether its current key is one of ours. A pending key that is current was
// committed by a request of ours that another party sent again, or whose answer never came: it is
// adopted.
func (c *Client) check(ctx context.Context) (adopted bool, err error) {
	record, err := c.record(ctx)
	if errors.Is(err, registryclient.ErrUnknownService) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	current := record.Current.PublicKey
	if current.IsZero() || current == c.signing.Load().public {
		c.ours()
		return false, nil
	}
	// First, because a key that is promoted meanwhile is current.
	pending, err := c.slot(ctx, Pending)
	if err != nil {
		return false, err
	}
	stored, err := c.slot(ctx, Current)
	if err != nil {
		return false, err
	}
	switch {
	case holds(stored, current):
		c.switchTo(stored)
	case !holds(pending, current):
		c.missing(&record)
	case c.following: // the leader promotes it
		c.ours()
	default:
		c.ours()
		c.entry = &entry{Target: c.cfg.Target.String(), Kind: events.Rotation, Request: registryclient.Message{NewKey: current}}
		c.commit(ctx, c.commitmentOf(&record))
		return true, nil
	}
	return false, nil
}

// slot returns the key in a slot, or nil.
func (c *Client) slot(ctx context.Context, slot Slot) (crypto.Signer, error) {
	key, err := c.cfg.Store.Signer(ctx, slot)
	if err != nil && !errors.Is(err, ErrNoKey) {
		return nil, fmt.Errorf("read the %s key: %w", slot, err)
	}
	return key, nil
}

// ours notes that the registry's current key is in the store.
func (c *Client) ours() {
	c.foreign, c.checkedAt = events.PublicKey{}, time.Now()
	c.lost.Store(nil)
}

// missing notes that the registry's current key is not in the store, and reports it if it stays
// missing.
func (c *Client) missing(r *events.ServiceRecord) {
	now, current := time.Now(), r.Current.PublicKey
	c.checkedAt = now
	if c.foreign.IsZero() {
		c.missingSince = now
	}
	told := c.foreign == current && c.lost.Load() != nil
	c.foreign = current
	if told || c.suspecting() { // once is enough
		return
	}
	err := fmt.Errorf("%w: it is %s, of sequence %d, and this client has %s: synchronise the key stores of all replicas, and let one "+
		"of them rotate; if the key is lost or in other hands, reset the service (omi reset)", ErrForeignKey, current, r.Sequence, c.signing.Load().public)
	c.lost.Store(&err)
	c.tell(Event{Kind: Foreign, Key: current, Sequence: r.Sequence, Err: err})
}

// suspecting reports whether the registry's current key is missing, and may still come.
func (c *Client) suspecting() bool {
	return !c.foreign.IsZero() && c.lost.Load() == nil && time.Since(c.missingSince) < foreignAfter
}

// inspect checks, and sets the time of the next check.
func (c *Client) inspect(ctx context.Context) {
	adopted, err := c.check(ctx)
	if err == nil && !adopted {
		// Only Resume waits while no change is under way.
		reply(&c.waiting, result{err: errNotCurrent})
	}
	if err != nil {
		c.retrying(ctx, err)
	}
	c.checked, c.checkedAt = true, time.Now()
	c.checkNext = time.Time{}
	c.checkLater(err)
}

// checkLater sets the time of the next check after one that ended with err.
func (c *Client) checkLater(err error) {
	now := time.Now()
	switch {
	case !c.foreign.IsZero() && c.lost.Load() == nil:
		c.checkNext = now.Add(recheckAfter)
	case err != nil || now.Before(c.checkTill):
		c.checkNext = now.Add(jittered(checkEvery))
	default:
		c.checkNext = now.Add(jittered(checkAtLeast))
	}
}

// checkBy has the registry asked at a time, unless it is asked sooner anyway.
func (c *Client) checkBy(at time.Time) {
	if c.checkNext.IsZero() || at.Before(c.checkNext) {
		c.checkNext = at
	}
}

// verdict is what Settle returns, if it is known.
func (c *Client) verdict() (r result, known bool) {
	if !c.checked || !c.checkNext.After(time.Now()) || !c.foreign.IsZero() && c.lost.Load() == nil {
		return result{}, false
	}
	if lost := c.lost.Load(); lost != nil {
		r.err = *lost
	}
	return r, true
}
