package sqldb

import (
	"context"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// pauses is a sequence of growing pauses; each is moved by up to a half either way, so that rivals don't meet again.
func pauses(first, longest time.Duration) *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval: first, MaxInterval: longest, Multiplier: 2, RandomizationFactor: 0.5,
	}
}

// sleep returns nil after the pause, or an error if ctx ends before: ctx's and, for whoever reads it, the cause of the wait.
func sleep(ctx context.Context, pause time.Duration, cause error) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w, while waiting because of: %w", context.Cause(ctx), cause)
	}
}

// again runs attempt until it ends otherwise than by a conflict with a rival, or ctx ends.
func again(ctx context.Context, attempt func() error) error {
	pause := pauses(5*time.Millisecond, 250*time.Millisecond)
	for {
		err := attempt()
		if err == nil || !conflict(err) {
			return err
		}
		if err := sleep(ctx, pause.NextBackOff(), err); err != nil {
			return err
		}
	}
}
