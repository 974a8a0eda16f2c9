package bench

import (
	"context"
	"fmt"
	"time"
)

// exactly is how long before a time the runtime's clock is left: it may be late by a millisecond.
const exactly = 2 * time.Millisecond

// SleepUntil waits until a time, more exactly than a timer does: a load generator that is late makes the system look slow. The error is
// the context's cause; in the last milliseconds it is not looked at.
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
