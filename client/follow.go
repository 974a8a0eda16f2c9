package client

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"omiappreg.org/keyrotation/events"
)

// leadAgainAfter is how often a following client tries to take the lock.
const leadAgainAfter = 900 * time.Millisecond

// lead takes the lock of the store, if the store has one. A client that does not get it follows.
func (c *Client) lead(ctx context.Context) error {
	c.unlock = func() error { return nil }
	store, ok := c.cfg.Store.(Locker)
	if !ok {
		return nil
	}
	release, err := store.TryLock(ctx)
	if errors.Is(err, ErrLocked) && !c.cfg.Exclusive {
		c.leadNext = time.Now().Add(jittered(leadAgainAfter))
		c.following = true
		return nil
	}
	if err != nil {
		return err
	}
	c.unlock, c.leadNext, c.following = release, time.Time{}, false
	return nil
}

// takeOver tries to lead, and goes on with what the earlier leader left.
func (c *Client) takeOver(ctx context.Context) {
	err := c.lead(ctx)
	if err == nil && c.following {
		c.reread(ctx) // for stores that can't tell that they changed
		return
	}
	if err == nil {
		if err = c.recover(ctx); err == nil {
			c.tell(Event{Kind: Leads})
			return
		}
		err = errors.Join(err, c.unlock())
	}
	c.unlock = func() error { return nil }
	c.following, c.leadNext = true, time.Now().Add(jittered(leadAgainAfter))
	c.retrying(ctx, fmt.Errorf("take over the key store: %w", err))
}

// reread checks whether another process, or the store's synchronisation, has changed the current
// key.
func (c *Client) reread(ctx context.Context) {
	stored, err := c.cfg.Store.Signer(ctx, Current)
	if err != nil {
		c.retrying(ctx, fmt.Errorf("read the key store, which has changed: %w", err))
		return
	}
	now := c.signing.Load()
	public, err := events.PublicKeyOf(stored)
	if err != nil || public == now.public || public == c.outdated {
		return
	}
	// An old key may have come back, from a backup for example. While the registry can't be asked,
	// the store is right.
	if record, err := c.record(ctx); err == nil && now.key != nil && standing(&record, now.public) > standing(&record, public) {
		c.outdated = public
		c.retrying(ctx, fmt.Errorf("the key store now holds %s, which is older than the key that goes on signing, %s: "+
			"put the newer one back before the next start", public, now.public))
		return
	}
	c.switchTo(stored)
}

// standing is how much longer a key is accepted, by the registry's record.
func standing(r *events.ServiceRecord, key events.PublicKey) int64 {
	if r.Current.PublicKey == key {
		return math.MaxInt64
	}
	for _, k := range r.Grace {
		if k.PublicKey == key {
			return k.Expires
		}
	}
	return 0
}

// switchTo signs with a key that another process has put into the store.
func (c *Client) switchTo(key crypto.Signer) {
	c.use(key)
	c.outdated = events.PublicKey{}
	c.ours() // until the registry is asked, which is now
	c.tell(Event{Kind: Promoted, Key: c.signing.Load().public})
	c.checkBy(time.Now())
}

// watchStore returns a channel that reports that the store may have changed; nil if it can't tell.
func (c *Client) watchStore(ctx context.Context) <-chan struct{} {
	store, ok := c.cfg.Store.(interface {
		watch(ctx context.Context) <-chan struct{}
	})
	if !ok {
		return nil
	}
	return store.watch(ctx)
}

// jittered is up to a quarter less than d, so that replicas that started together don't go on
// together.
func jittered(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d/4))) //nolint:gosec // jitter is no secret
}
