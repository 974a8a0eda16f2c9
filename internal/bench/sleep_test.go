package bench_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/bench"
)

func TestSleepUntil(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{-time.Hour, 0, time.Microsecond, time.Millisecond, 5 * time.Millisecond} {
		at := time.Now().Add(wait)
		if err := bench.SleepUntil(t.Context(), at); err != nil || time.Now().Before(at) {
			t.Errorf("%v: %v before it, %v", wait, time.Until(at), err)
		}
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(time.Millisecond, func() { cancel(why) })
	if err := bench.SleepUntil(ctx, time.Now().Add(time.Hour)); !errors.Is(err, why) {
		t.Error(err)
	}
	if err := bench.SleepUntil(ctx, time.Now()); !errors.Is(err, why) {
		t.Error(err)
	}
}
