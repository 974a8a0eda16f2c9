package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	defaultJitter = 0.1
	retryFirst    = time.Second
	retryLast     = 5 * time.Minute
)

// Schedule says when a key is old.
type Schedule struct {
	// Every is the age at which a key is replaced. Required.
	Every time.Duration
	// Jitter spreads that over Every ± this share of it, so that services that began together don't rotate together: 0 to
	// 1. Default 0.1.
	Jitter float64
}

// ErrSchedule means that a [Schedule] makes no sense.
var ErrSchedule = errors.New("a schedule needs Every above 0, and Jitter from 0 to 1")

// AutoRotate rotates the key by a schedule until ctx ends, and then returns nil. The age of a key is the registry's word,
// so a restart changes nothing, and a [Client.Rotate] on demand begins it anew. What fails is told as [Retrying], and tried
// again after a second to five minutes.
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
	var due time.Time
	for ctx.Err() == nil {
		record, err := c.record(ctx)
		if err == nil && record.Current.Since != since {
			since = record.Current.Since
			due = time.Unix(since, 0).Add(s.age())
		}
		if left := time.Until(due); err == nil && left > 0 {
			wait(ctx, left) // and look again: somebody may have rotated meanwhile
			continue
		}
		if err == nil {
			_, err = c.Rotate(ctx)
		}
		switch {
		case err == nil:
			retry.Reset()
		case errors.Is(err, ErrClosed):
			return err
		case ctx.Err() == nil:
			c.retrying(ctx, fmt.Errorf("rotate by schedule: %w", err))
			wait(ctx, retry.NextBackOff())
		}
	}
	return nil
}

// age is how old the present key gets.
func (s Schedule) age() time.Duration {
	spread := float64(s.Every) * s.Jitter
	return s.Every + time.Duration(spread*(2*rand.Float64()-1)) //nolint:gosec // jitter is no secret
}
