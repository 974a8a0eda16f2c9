package health_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"omiappreg.org/keyrotation/internal/health"
)

func report(t *testing.T, c *health.Checker) health.Report {
	t.Helper()
	r, err := c.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestHanging: a check that hangs is named within its deadline and holds up no other check. It does
// not begin again before it has returned, and counts again afterwards.
func TestHanging(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var begun atomic.Int32
		release := make(chan struct{})
		c := health.New(slog.New(slog.DiscardHandler),
			health.Part{Name: health.Database, Check: func(context.Context) error {
				begun.Add(1)
				<-release // it ignores its context
				return nil
			}},
			health.Part{Name: health.Broker, Check: func(context.Context) error { return errors.New("the broker is away") }},
			health.Part{Name: health.RestoreGuard, Check: func(context.Context) error { return nil }},
		)
		for _, want := range []string{"2s", "3s"} {
			if r := report(t, c); r.Ready || r.Text() != "database: no answer within "+want+"\nbroker: the broker is away\n" {
				t.Errorf("%q", r.Text())
			}
			time.Sleep(time.Second)
		}
		close(release)
		synctest.Wait()
		if r := report(t, c); r.Text() != "broker: the broker is away\n" || begun.Load() != 2 {
			t.Errorf("%q after %d checks", r.Text(), begun.Load())
		}
	})
}

// TestShared: many callers share a run, at the same time and right after each other. A caller that
// goes away does not end the run for the others.
func TestShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		c := health.New(slog.New(slog.DiscardHandler), health.Part{Name: health.Database, Check: func(ctx context.Context) error {
			runs.Add(1)
			select {
			case <-time.After(time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}})
		gone, leave := context.WithTimeout(t.Context(), time.Second/2)
		defer leave()
		var asking sync.WaitGroup
		asking.Go(func() {
			if _, err := c.Report(gone); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("who has left got %v", err)
			}
		})
		synctest.Wait()
		for range 100 {
			asking.Go(func() {
				if r := report(t, c); !r.Ready {
					t.Error(r.Text())
				}
			})
		}
		asking.Wait()
		if report(t, c); runs.Load() != 1 {
			t.Errorf("%d runs for a hundred callers", runs.Load())
		}
		time.Sleep(time.Second)
		if report(t, c); runs.Load() != 2 {
			t.Errorf("%d runs: what is old was not checked again", runs.Load())
		}
	})
}

// TestLog: the log has one line when a part starts to fail and one when it is back, however many
// callers there are, and none for a part that is merely starting. The cause is in the log, and not
// in the answer.
func TestLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lines strings.Builder
		log := slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
				return slog.Attr{}
			}
			return a
		}}))
		var problem atomic.Pointer[error]
		is := func(err error) { problem.Store(&err) }
		is(errors.New("it is starting"))
		c := health.New(log, health.Part{Name: health.Database, Check: func(context.Context) error { return *problem.Load() }})
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go c.Watch(ctx, time.Second)
		for _, next := range []error{nil, health.Because(errors.New("no route to 10.0.0.7"), "the database is away"), nil} {
			time.Sleep(5250 * time.Millisecond)
			is(next)
		}
		if r := report(t, c); r.Text() != "database: the database is away\n" && r.Text() != "ok\n" {
			t.Errorf("%q", r.Text())
		}
		time.Sleep(5 * time.Second)
		stop()
		synctest.Wait()
		const want = `msg="not ready: a part of this process fails" part=database problem="the database is away" error="no route to 10.0.0.7"
msg="a part of this process works again" part=database failed_for=4.75s
`
		if lines.String() != want {
			t.Errorf("got\n%swant\n%s", &lines, want)
		}
	})
}

// TestNeverReady: a part that fails from the start is logged after a while.
func TestNeverReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lines strings.Builder
		c := health.New(slog.New(slog.NewTextHandler(&lines, nil)),
			health.Part{Name: health.Consumer, Check: func(context.Context) error { return errors.New("the durable is paused") }})
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go c.Watch(ctx, 5*time.Second)
		time.Sleep(time.Minute)
		stop()
		synctest.Wait()
		if got := lines.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "part=consumer") {
			t.Errorf("the log says %q", got)
		}
	})
}
