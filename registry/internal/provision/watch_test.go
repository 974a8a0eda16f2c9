package provision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// newOpened returns a watch that has opened its durable and looks often.
func newOpened(t *testing.T) (*Watch, jetstream.JetStream) {
	t.Helper()
	js := jetStreamOn(t, testenv.NewBroker(t))
	trust, err := events.NewTrust("registry.example", events.GenerateSigningKey().Public())
	if err != nil {
		t.Fatal(err)
	}
	w := NewWatch(Config{
		JetStream: js, Trust: trust, Expect: func() func(*jetstream.StreamInfo) { return func(*jetstream.StreamInfo) {} },
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Every: 20 * time.Millisecond,
	})
	ctx, stop := context.WithCancel(context.Background())
	if _, _, _, err := w.Open(ctx); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return w, js
}

// TestLimitsThatStay: where the broker does not give the limits that the durable had when it was
// opened, they are set once, and not again and again.
func TestLimitsThatStay(t *testing.T) {
	t.Parallel()
	w, _ := newOpened(t)
	w.mu.Lock()
	given := w.opened.limits
	w.opened.limits.AckPending++
	w.mu.Unlock()
	testenv.Eventually(t, time.Minute, "it takes what the broker gives", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if now := w.opened.limits; now != given {
			return fmt.Errorf("it goes on to ask for %+v", now)
		}
		return nil
	})
}

// TestSealedAndPaused: what the registry can't change, it tells.
func TestSealedAndPaused(t *testing.T) {
	t.Parallel()
	w, js := newOpened(t)
	if _, err := js.PauseConsumer(t.Context(), streams.Requests, streams.RegistryDurable, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), streams.Receipts)
	if err != nil {
		t.Fatal(err)
	}
	sealed := stream.CachedInfo().Config
	sealed.Sealed, sealed.AllowDirect, sealed.AllowAtomicPublish = true, false, false
	if _, err := js.UpdateStream(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "it says so", func() error {
		if err := w.ConsumerErr(); !errors.Is(err, ErrPaused) || !strings.Contains(err.Error(), "nats consumer resume") {
			return errors.Join(errors.New("not paused"), err)
		}
		if err := w.StreamsErr(); !errors.Is(err, ErrSealed) {
			return errors.Join(errors.New("not sealed"), err)
		}
		return nil
	})
	if _, err := requestDurable(t.Context(), js); err != nil { // as at a start
		t.Fatal(err)
	}
	consumer, err := js.Consumer(t.Context(), streams.Requests, streams.RegistryDurable)
	if err != nil || !consumer.CachedInfo().Paused {
		t.Errorf("the pause is over: %v", err)
	}
	if _, err := js.ResumeConsumer(t.Context(), streams.Requests, streams.RegistryDurable); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "it goes on", w.ConsumerErr)
}
