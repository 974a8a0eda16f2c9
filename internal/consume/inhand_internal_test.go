package consume

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/testenv"
)

// TestInHand: the log warns of work that hangs after 5 s and then each minute, with its number,
// stage and database. After 10 s Check fails, until some work is finished. Work that fails because
// something is unavailable still counts; work that fails for a reason of its own doesn't.
func TestInHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lines testenv.Log
		h := NewInHand("requests", "postgres db:5432/reg", "load", 0, slog.New(slog.NewTextHandler(&lines, nil)))
		errUnavailable, errPoison := errors.New("no connection"), errors.New("a bad message")
		handle := func(context.Context, []*Plain) error { return nil }
		w := newWorker(Config[struct{}]{
			InHand: h, Log: h.log, Unavailable: func(err error) bool { return errors.Is(err, errUnavailable) },
			Handle: func(ctx context.Context, batch []*Plain) error { return handle(ctx, batch) },
		}.withDefaults(), fakeSource(nil))
		healthy := func(want string) {
			t.Helper()
			if err := h.Check(t.Context()); err == nil && want != "" || err != nil && err.Error() != want {
				t.Errorf("it is %v, want %q", err, want)
			}
		}
		batch := make([]*Plain, 3)
		for i := range batch {
			batch[i] = &Plain{kept: true}
		}
		work, release := make(chan struct{}), make(chan struct{})
		handle = func(context.Context, []*Plain) error {
			h.Stage("commit")
			<-release
			return nil
		}
		go func() {
			w.handle(t.Context(), t.Context(), batch)
			close(work)
		}()
		time.Sleep(4 * time.Second)
		if lines.String() != "" {
			t.Errorf("after 4 s the log says\n%s", &lines)
		}
		time.Sleep(5 * time.Second)
		healthy("")
		time.Sleep(63 * time.Second)
		healthy("3 in hand, and none was finished for 1m12s (stage: commit)")
		if n := strings.Count(lines.String(), "work hangs"); n != 2 || !strings.Contains(lines.String(),
			`requests=3 for=5s stage=commit database="postgres db:5432/reg"`) {
			t.Errorf("%d warnings in\n%s", n, &lines)
		}
		close(release)
		<-work
		healthy("")
		if !strings.Contains(lines.String(), "work goes on again") {
			t.Errorf("the log does not say that it went on:\n%s", &lines)
		}

		for err, want := range map[error]string{errUnavailable: "1 in hand, and none was finished for 11s (stage: load)", errPoison: ""} {
			handle = func(context.Context, []*Plain) error { return err }
			_ = w.try(t.Context(), batch[:1])
			time.Sleep(11 * time.Second)
			healthy(want)
			handle = func(context.Context, []*Plain) error { return nil }
			_ = w.try(t.Context(), batch[:1])
			healthy("")
		}
	})
}

// TestDeliveries: messages that wait at the broker and don't come are reported.
func TestDeliveries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var d Deliveries
		info := func(pending uint64, unacknowledged int, delivered uint64) *jetstream.ConsumerInfo {
			return &jetstream.ConsumerInfo{NumPending: pending, NumAckPending: unacknowledged, Delivered: jetstream.SequenceInfo{Consumer: delivered}}
		}
		for _, c := range []struct {
			info *jetstream.ConsumerInfo
			fine bool
		}{
			{info(5, 0, 7), true}, {info(5, 0, 7), false}, {info(9, 0, 7), false}, {info(9, 2, 7), true}, // it works on what it has
			{info(9, 0, 9), true}, {info(9, 0, 11), true}, {info(0, 0, 20), true}, {info(0, 0, 20), true},
		} {
			d.Note(c.info)
			time.Sleep(11 * time.Second)
			d.Note(c.info)
			if err := d.Err(); (err == nil) != c.fine || d.Waiting() != c.info.NumPending {
				t.Errorf("%+v: %v", c.info, err)
			}
		}
	})
}
