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

// AutoRotate rotates the key by a schedule until ctx ends, and then returns nil, or [ErrClosed]. The age of a key is the
// registry's word, by its clock, so a restart changes nothing, and a [Client.Rotate] on demand begins it anew. What fails is
// told as [Retrying], and tried again after a second to five minutes.
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
		left := age - time.Duration(record.Timestamp-since)*time.Second
		switch {
		case err == nil && left > 0:
			err = c.sleep(ctx, max(left, time.Second)) // and look again: somebody may have rotated meanwhile
		case err == nil:
			if _, err = c.Rotate(ctx); err == nil {
				retry.Reset()
			}
		}
		if err != nil && !errors.Is(err, ErrClosed) {
			c.retrying(ctx, fmt.Errorf("rotate by schedule: %w", err))
			err = c.sleep(ctx, retry.NextBackOff())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sleep returns when it is time or ctx has ended, or else [ErrClosed].
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

// age is how old the present key gets.
func (s Schedule) age() time.Duration {
	spread := float64(s.Every) * s.Jitter
	return s.Every + time.Duration(spread*(2*rand.Float64()-1)) //nolint:gosec // jitter is no secret
}
