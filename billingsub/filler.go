package billingsub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/keyring"
)

const (
	gapsAtOnce    = 256 // read from the database
	fillsInFlight = 8   // a registry that comes back is not run over
	firstPause    = 200 * time.Millisecond
	longestPause  = 30 * time.Second
	storeTimeout  = 10 * time.Second
)

// errStillOpen means that the registry's history is older than the newest event that was applied.
var errStillOpen = errors.New("the registry's history ends before the newest event")

// filler closes the gaps in the services' histories, as soon as they show, for as long as it takes.
type filler struct {
	store    *subscriber.Store
	registry Registry
	timeout  time.Duration
	log      *slog.Logger

	woken   chan struct{}
	flights singleflight.Group
}

func newFiller(store *subscriber.Store, cfg Config) *filler {
	return &filler{
		store: store, registry: cfg.Registry, timeout: cfg.LookupTimeout, log: cfg.Log,
		woken: make(chan struct{}, 1),
	}
}

// wake makes the filler look for gaps soon. It never waits.
func (f *filler) wake() {
	select {
	case f.woken <- struct{}{}:
	default: // it is going to look anyway
	}
}

// run looks for gaps at once, and whenever it is woken. What it can't fill it tries again, with growing pauses; a batch
// of events wakes it in the middle of a pause only if the last look found nothing, since a busy stream must not turn
// the pauses into none.
func (f *filler) run(ctx context.Context) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = firstPause, longestPause
	for ctx.Err() == nil {
		left, err := f.sweep(ctx)
		if left == 0 && err == nil {
			pause.Reset()
			select {
			case <-f.woken:
			case <-ctx.Done():
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		f.log.WarnContext(ctx, "gaps in the history of services stay open, trying again", "services", left, "error", err)
		timer := time.NewTimer(pause.NextBackOff())
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// sweep tries to fill every gap once. It returns how many are left, and the error of one of them.
func (f *filler) sweep(ctx context.Context) (left int, err error) {
	var after events.Target
	for {
		gaps, listErr := f.store.Gaps(ctx, after, gapsAtOnce)
		if listErr != nil {
			return left, listErr
		}
		failed, fillErr := f.fillAll(ctx, gaps)
		if left += failed; fillErr != nil {
			err = fillErr
		}
		if len(gaps) < gapsAtOnce {
			return left, err
		}
		after = gaps[len(gaps)-1]
	}
}

// fillAll fills these gaps, some at a time, and returns how many are left and the error of one of them.
func (f *filler) fillAll(ctx context.Context, gaps []events.Target) (failed int, err error) {
	failures := make([]error, len(gaps))
	var group errgroup.Group
	group.SetLimit(fillsInFlight)
	for i, target := range gaps {
		group.Go(func() error {
			failures[i] = f.fill(ctx, target)
			return nil // one that fails does not hold up the others
		})
	}
	_ = group.Wait()
	for _, failure := range failures {
		if failure != nil {
			failed++
			err = failure
		}
	}
	return failed, err
}

// fill closes the gap of one service, if the registry answers. Those who ask for the same one meanwhile share it.
func (f *filler) fill(ctx context.Context, target events.Target) error {
	_, err, _ := f.flights.Do(target.String(), func() (any, error) {
		ctx := context.WithoutCancel(ctx) // it works not only for the one who asked first
		return nil, f.fetch(ctx, target)
	})
	return err
}

func (f *filler) fetch(ctx context.Context, target events.Target) error {
	ctx, cancel := context.WithTimeout(ctx, f.timeout+storeTimeout)
	defer cancel()
	asking, answered := context.WithTimeout(ctx, f.timeout)
	defer answered()
	history, err := f.registry.ServiceHistory(asking, target)
	if err != nil {
		return fmt.Errorf("fill the gap of %s: %w", target, err)
	}
	if err := f.store.Fill(ctx, target, keyring.OfHistory(&history)); err != nil {
		return err
	}
	gap, err := f.store.HasGap(ctx, target)
	if err == nil && gap {
		err = fmt.Errorf("fill the gap of %s: %w", target, errStillOpen)
	}
	return err
}
