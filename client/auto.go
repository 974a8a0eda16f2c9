package client

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"

	"omiappreg.org/keyrotation/events"
)

const (
	defaultJitter = 0.1
	retryFirst    = time.Second
	retryLast     = 5 * time.Minute
	// lookAgainAfter is how often a client checks whether a rotation is due while it follows one
	// that rotates.
	lookAgainAfter = 5 * time.Second
	// foreignPause is the least pause before a superseded key is tried again.
	foreignPause = 90 * time.Second
)

// Schedule says when a key is old.
type Schedule struct {
	// Every is the age at which a key is replaced. Required.
	Every time.Duration
	// Jitter spreads the age over Every ± this share of it, so that services that started together
	// don't rotate together: 0 to 1. Default 0.1.
	Jitter float64
}

// ErrSchedule means that a [Schedule] makes no sense.
var ErrSchedule = errors.New("a schedule needs Every above 0, and Jitter from 0 to 1")

// AutoRotate rotates the key by a schedule until ctx ends, and then returns nil, or [ErrClosed].
// The registry says how old a key is, by its clock, so a restart changes nothing, and a
// [Client.Rotate] on demand starts the age again. It reports a failure as [Retrying], and tries
// again after a second to five minutes, or after a minute at the earliest if the key is no longer
// the registry's current one.
//
// Every replica of a service may run it. Of replicas that share a store, the leader rotates. If
// stores are copies of one another, run it only on the replicas of one of them.
func (c *Client) AutoRotate(ctx context.Context, s Schedule) error {
	if s.Jitter == 0 {
		s.Jitter = defaultJitter
	}
	if s.Every <= 0 || s.Jitter < 0 || s.Jitter > 1 {
		return ErrSchedule
	}
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = retryFirst, retryLast
	var since int64
	var age time.Duration
	for ctx.Err() == nil {
		record, err := c.record(ctx)
		if err == nil && (age == 0 || record.Current.Since != since) {
			since, age = record.Current.Since, s.age()
		}
		pause := max(age-ofSeconds(record.Timestamp-since), 0)
		if err == nil && pause == 0 {
			if err = c.rotateInTurn(ctx); err == nil {
				retry.Reset()
				continue
			}
		}
		switch {
		case err == nil: // and look again then: the key may have been rotated meanwhile
			pause = max(pause, time.Second)
		case errors.Is(err, ErrClosed):
			return err
		case errors.Is(err, ErrLocked): // the leader rotates, as soon as its own jitter says
			pause = jittered(lookAgainAfter)
		default:
			c.retrying(ctx, fmt.Errorf("rotate by schedule: %w", err))
			pause = retry.NextBackOff()
			if refusedForGood(err) {
				pause = max(pause, jittered(foreignPause))
			}
		}
		if err := c.sleep(ctx, pause); err != nil {
			return err
		}
	}
	return nil
}

// rotateInTurn rotates, unless the key is known to be not the registry's: that request would be
// refused.
func (c *Client) rotateInTurn(ctx context.Context) error {
	if err := c.Health(); err != nil {
		return err
	}
	_, err := c.Rotate(ctx)
	return err
}

// refusedForGood reports whether asking again with the same key is of no use.
func refusedForGood(err error) bool {
	if refused := (*RefusedError)(nil); errors.As(err, &refused) {
		return refused.Receipt.Reason == events.SupersededKey || refused.Receipt.Reason == events.InvalidSignature
	}
	return errors.Is(err, ErrForeignKey)
}

// sleep returns when the time has come or ctx has ended, or returns [ErrClosed].
func (c *Client) sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(d):
		return nil
	case <-c.stopped:
		return ErrClosed
	}
}

// age is how old the present key may get.
func (s Schedule) age() time.Duration {
	spread := float64(s.Every) * s.Jitter
	spread *= 2*rand.Float64() - 1 //nolint:gosec // jitter is no secret
	return s.Every + time.Duration(spread)
}

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
