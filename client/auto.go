package client

import (
	"context"
	"errors"
	"fmt"
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
