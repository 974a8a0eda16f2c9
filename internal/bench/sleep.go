package bench

import (
	"context"
	"fmt"
	"time"
)

// exactly is how long before the time SleepUntil stops relying on the runtime's clock, which may be
// late by a millisecond.
const exactly = 2 * time.Millisecond

// SleepUntil waits until a time, more precisely than a timer: a load generator that is late makes
// the system look slow. The error is the context's cause. It ignores the context in the last
// milliseconds.
func SleepUntil(ctx context.Context, at time.Time) error {
	if wait := time.Until(at) - exactly; wait > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if rest := time.Until(at); rest > 0 {
		if err := sleep(rest); err != nil {
			return fmt.Errorf("sleep: %w", err)
		}
	}
	return nil
}
