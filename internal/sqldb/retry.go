package sqldb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// pauses returns a sequence of growing pauses. Each is moved by up to a half either way, so that
// rivals don't meet again.
func pauses(first, longest time.Duration) *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval: first, MaxInterval: longest, Multiplier: 2, RandomizationFactor: 0.5,
	}
}

// sleep returns nil after the pause. If ctx ends first, it returns ctx's error with the cause of
// the wait.
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

// certainAfter is how long a doubtful refusal must be the only answer before it is believed.
const certainAfter = 20 * time.Second

// Await runs attempt, for a process that starts, until it succeeds, fails with an error that won't
// pass ([Transient]), or ctx ends. The log says now and then what it waits for, also if a single
// attempt takes long: a range without a quorum, or another session's lock, causes no error.
//
// Some refusals come from a server that restarts, and for ever from one that must be set up
// differently. Such a refusal is [ErrURL] once it has been the only answer for a while. If ctx has
// a deadline, that while is half of the time until then, so that the user hears what to change, and
// not that the time is over.
func Await(ctx context.Context, log *slog.Logger, attempt func() error) error {
	return await(ctx, log, warnEvery, attempt)
}

func await(ctx context.Context, log *slog.Logger, slowAfter time.Duration, attempt func() error) error {
	pause := pauses(100*time.Millisecond, 3*time.Second)
	patience := certainAfter
	if end, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(end)/2)
	}
	var warned, doubted time.Time
	for {
		slow := time.AfterFunc(slowAfter, func() {
			log.WarnContext(ctx, "waiting for the database: it has not done yet what was asked, and gives no error", "for", slowAfter.String(),
				"do", "wait if there is much to migrate or to load; otherwise look for a lock, a commit that waits for a standby, and a range without a quorum")
		})
		err := attempt()
		slow.Stop()
		if err == nil {
			if !warned.IsZero() {
				log.InfoContext(ctx, "the database answers")
			}
			return nil
		}
		if errors.Is(err, ErrFault) {
			return fmt.Errorf("%w: %w", ErrURL, err)
		}
		if refused := refusal(err); refused != nil {
			return refused
		}
		if !Transient(err) {
			return err
		}
		switch {
		case !doubtful(err):
			doubted = time.Time{}
		case doubted.IsZero():
			doubted = time.Now()
		case time.Since(doubted) >= patience:
			return believed(err, time.Since(doubted).Round(time.Second))
		}
		if time.Since(warned) >= warnEvery {
			warned = time.Now()
			log.WarnContext(ctx, "waiting for the database", "error", err)
		}
		wait := pause.NextBackOff()
		if !doubted.IsZero() {
			// The next answer may be the one that settles it. ctx's deadline can come soon after.
			wait = min(wait, max(patience-time.Since(doubted), 0))
		}
		if err := sleep(ctx, wait, err); err != nil {
			return err
		}
	}
}

// believed returns [ErrURL] for a doubtful refusal that was the only answer for so long.
func believed(err error, long time.Duration) error {
	if refusedTLS(err) {
		return fmt.Errorf("%w: the server has no TLS, which the sslmode of the URL asks for: set up TLS there, "+
			"or use sslmode=disable where the network is safe; it has answered nothing else for %s: %w", ErrURL, long, err)
	}
	return fmt.Errorf("%w: the server has answered nothing else for %s: %w", ErrURL, long, err)
}

// again runs attempt until it ends without a conflict with a rival, or ctx ends.
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
