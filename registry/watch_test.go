package registry

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// newWatchedWorld is a world with a bound service and so many replicas that look often.
func newWatchedWorld(t *testing.T, replicas int) (*world, *developer) {
	t.Helper()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	w.lookEvery = 20 * time.Millisecond
	for range replicas {
		w.run()
	}
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "one")
	if err := w.committed(d.bind()); err != nil {
		t.Fatal(err)
	}
	return w, d
}

// TestVanishedStreams: what is deleted under a running registry is made again, also where no
// request comes, and requests are answered as before.
func TestVanishedStreams(t *testing.T) {
	t.Parallel()
	w, d := newWatchedWorld(t, 2)
	for _, stream := range []string{streams.Receipts, streams.Invalidations, streams.Requests} {
		if err := w.js.DeleteStream(t.Context(), stream); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, patience, "there is another "+stream, func() error {
			_, err := w.js.Stream(t.Context(), stream)
			return errors.Join(err, w.watch.streamsErr())
		})
		if err := w.committed(d.rotate()); err != nil {
			t.Fatalf("after %s was deleted: %v", stream, err)
		}
	}
	if err := w.js.DeleteConsumer(t.Context(), streams.Requests, streams.RegistryDurable); err != nil {
		t.Fatal(err)
	}
	if err := w.committed(d.rotate()); err != nil {
		t.Fatalf("after the durable was deleted: %v", err)
	}
	w.clean()
}

// TestOtherEventsAreCompared: another stream of events has one that the database lacks. Its
// service is held, as at a start, and others are served.
func TestOtherEventsAreCompared(t *testing.T) {
	t.Parallel()
	w, d := newWatchedWorld(t, 1)
	other := d.another("two")
	if err := w.committed(other.bind()); err != nil {
		t.Fatal(err)
	}
	lacking := events.Invalidation{
		Origin: testOrigin, Target: d.target, Event: events.ServiceRevocation, OldKey: d.current.Public(), Sequence: 9,
		GracePeriodExpiry: time.Now().Unix(), Timestamp: time.Now().Unix(), Nonce: events.NewNonce(),
	}
	w.watch.looking.Lock() // it finds the other stream when that is complete
	if err := w.js.DeleteStream(t.Context(), streams.Invalidations); err != nil {
		t.Fatal(err)
	}
	if _, err := w.js.CreateStream(t.Context(), streams.InvalidationsConfig()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.js.Publish(t.Context(), lacking.Subject(), lacking.Sign(testKey)); err != nil {
		t.Fatal(err)
	}
	w.watch.looking.Unlock()
	testenv.Eventually(t, patience, "the new stream was compared", func() error {
		stream, err := w.js.Stream(t.Context(), streams.Invalidations)
		if err == nil && w.registry.fence.position().created != stream.CachedInfo().Created.UnixNano() {
			err = errors.New("it was not")
		}
		return err
	})
	if w.registry.fence.mayServe(d.target, 1) {
		t.Error("the service is not held")
	}
	if err := w.committed(other.rotate()); err != nil {
		t.Error(err)
	}
}

// TestLimitsThatStay: where the broker does not give the limits that the durable had when it was
// opened, they are set once, and not again and again.
func TestLimitsThatStay(t *testing.T) {
	t.Parallel()
	w, _ := newWatchedWorld(t, 1)
	w.watch.mu.Lock()
	given := w.watch.opened.limits
	w.watch.opened.limits.AckPending++
	w.watch.mu.Unlock()
	testenv.Eventually(t, patience, "it takes what the broker gives", func() error {
		w.watch.mu.Lock()
		defer w.watch.mu.Unlock()
		if now := w.watch.opened.limits; now != given {
			return fmt.Errorf("it goes on to ask for %+v", now)
		}
		return nil
	})
}

// TestSealedAndPaused: what the registry can't change, it tells.
func TestSealedAndPaused(t *testing.T) {
	t.Parallel()
	w, _ := newWatchedWorld(t, 1)
	if _, err := w.js.PauseConsumer(t.Context(), streams.Requests, streams.RegistryDurable, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	stream, err := w.js.Stream(t.Context(), streams.Receipts)
	if err != nil {
		t.Fatal(err)
	}
	sealed := stream.CachedInfo().Config
	sealed.Sealed, sealed.AllowDirect, sealed.AllowAtomicPublish = true, false, false
	if _, err := w.js.UpdateStream(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "it says so", func() error {
		if err := w.watch.consumerErr(); !errors.Is(err, ErrPaused) || !strings.Contains(err.Error(), "nats consumer resume") {
			return errors.Join(errors.New("not paused"), err)
		}
		if err := w.watch.streamsErr(); !errors.Is(err, ErrSealed) {
			return errors.Join(errors.New("not sealed"), err)
		}
		return nil
	})
	if _, err := requestDurable(t.Context(), w.js); err != nil { // as at a start
		t.Fatal(err)
	}
	consumer, err := w.js.Consumer(t.Context(), streams.Requests, streams.RegistryDurable)
	if err != nil || !consumer.CachedInfo().Paused {
		t.Errorf("the pause is over: %v", err)
	}
	if _, err := w.js.ResumeConsumer(t.Context(), streams.Requests, streams.RegistryDurable); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, "it goes on", w.watch.consumerErr)
}
