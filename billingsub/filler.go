package billingsub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/keyring"
)

const (
	gapsAtOnce    = 256 // read from the database
	fillsInFlight = 8   // spares a registry that has just come back
	partsAtOnce   = 8   // of the history of one service
	firstPause    = 200 * time.Millisecond
	longestPause  = 30 * time.Second
	storeTimeout  = 10 * time.Second
)

// errUnfinished means that there are more parts. The next sweep reads them.
var errUnfinished = errors.New("the registry's history has more parts")

// errStillOpen means that the registry's history is older than the newest event that was applied.
var errStillOpen = errors.New("the registry's history ends before the newest event")

// filler closes gaps in the histories of services. It starts as soon as a gap shows, and tries
// until the gap is closed.
type filler struct {
	store    *storage.Store
	registry Registry
	timeout  time.Duration
	log      *slog.Logger

	woken chan struct{}
}

func newFiller(store *storage.Store, cfg Config) *filler {
	return &filler{
		store: store, registry: cfg.Registry, timeout: cfg.LookupTimeout, log: cfg.Log,
		woken: make(chan struct{}, 1),
	}
}

// wake makes the filler look for gaps soon. It never waits.
func (f *filler) wake() {
	select {
	case f.woken <- struct{}{}:
	default: // it will look anyway
	}
}

// run looks for gaps at once and whenever it is woken. If it can't fill a gap, it tries again after
// pauses that grow. A batch of events interrupts a pause only if the last sweep found nothing:
// otherwise a busy stream would leave no pauses.
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
		if errors.Is(err, errUnfinished) {
			pause.Reset()
			continue
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

// sweep tries to fill every gap once. It returns the number of gaps that are left and the error of
// one of them: errUnfinished if any of them has that error.
func (f *filler) sweep(ctx context.Context) (left int, err error) {
	var after events.Target
	for {
		gaps, listErr := f.store.Gaps(ctx, after, gapsAtOnce)
		if listErr != nil {
			return left, listErr
		}
		failed, fillErr := f.fillAll(ctx, gaps)
		left, err = left+failed, worse(err, fillErr)
		if len(gaps) < gapsAtOnce {
			return left, err
		}
		after = gaps[len(gaps)-1]
	}
}

// fillAll fills these gaps, several at a time. It returns the number of gaps that are left and the
// error of one of them.
func (f *filler) fillAll(ctx context.Context, gaps []events.Target) (failed int, err error) {
	failures := make([]error, len(gaps))
	var group errgroup.Group
	group.SetLimit(fillsInFlight)
	for i, target := range gaps {
		group.Go(func() error {
			failures[i] = f.fill(ctx, target)
			return nil // a failure does not hold up the others
		})
	}
	_ = group.Wait()
	for _, failure := range failures {
		if failure != nil {
			failed++
			err = worse(err, failure)
		}
	}
	return failed, err
}

// worse returns one of two errors: errUnfinished, so that the next sweep follows at once, or
// otherwise the last one.
func worse(err, next error) error {
	if next == nil || errors.Is(err, errUnfinished) {
		return err
	}
	return next
}

// fill closes the gap of one service if the registry answers. It reads part by part, each with its
// own timeout, and keeps each part, whatever happens to the next. Of a long history it reads only
// some parts at once, so that the service does not hold up the others; then it returns
// errUnfinished.
func (f *filler) fill(ctx context.Context, target events.Target) error {
	kept, err := f.store.Filled(ctx, target)
	if err != nil {
		return err
	}
	reading := registryclient.Reading{Kept: kept}
	for {
		done, err := f.fillPart(ctx, target, &reading)
		if err != nil {
			return fmt.Errorf("fill the gap of %s: %w", target, err)
		}
		if done {
			break
		}
		if reading.Kept > kept+partsAtOnce*events.HistoryPart {
			return errUnfinished
		}
	}
	gap, err := f.store.HasGap(ctx, target)
	if err == nil && gap {
		err = fmt.Errorf("fill the gap of %s: %w", target, errStillOpen)
	}
	return err
}

func (f *filler) fillPart(ctx context.Context, target events.Target, reading *registryclient.Reading) (done bool, err error) {
	asking, answered := context.WithTimeout(ctx, f.timeout)
	defer answered()
	part, err := f.registry.HistoryPart(asking, target, reading.Next())
	if err != nil {
		return false, err
	}
	if done, err = reading.Add(&part); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if done {
		return true, f.store.Fill(ctx, target, keyring.OfHistory(&part))
	}
	return false, f.store.FillPart(ctx, target, keyring.OfHistory(&part), reading.Kept)
}
