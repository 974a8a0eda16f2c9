package consume

import (
	"context"
	"errors"

	"github.com/cenkalti/backoff/v5"

	"omiappreg.org/keyrotation/internal/refusal"
)

// Run consumes until ctx ends, and then returns nil, or until Open fails for good. It finishes a
// batch under way first. Messages that were not handed over go back to the broker.
func Run[T any](ctx context.Context, cfg Config[T]) error {
	cfg = cfg.withDefaults()
	pause, why := cfg.newBackoff(firstBackoff), refusal.Teller{Log: cfg.Log}
	failures := 0
	opened := func() {
		pause.Reset()
		why.Forget()
		failures = 0
	}
	for ctx.Err() == nil {
		err := refusal.Behind(runOnce(ctx, cfg, opened), cfg.Conn)
		if final := (*backoff.PermanentError)(nil); errors.As(err, &final) {
			return final.Unwrap()
		}
		if ctx.Err() != nil {
			break
		}
		// A broker that is being stopped refuses requests for a moment.
		if failures++; failures == 1 || !why.TellRefusal(err) {
			cfg.Log.Warn("consumer interrupted, trying again", "error", err)
		}
		wait(ctx, pause.NextBackOff())
	}
	return nil //nolint:nilerr // ctx has ended, and the error with it
}

// runOnce consumes until the source has ended.
func runOnce[T any](ctx context.Context, cfg Config[T], opened func()) error {
	source, err := cfg.Open(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	opened()
	return newWorker(cfg, source).run(ctx)
}
