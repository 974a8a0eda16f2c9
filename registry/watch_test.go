package registry

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// newWatchedWorld is a world with a bound service and so many replicas that look often,
// and the proxy between them and the broker.
func newWatchedWorld(t *testing.T, replicas int) (*world, *developer, *testenv.Proxy) {
	t.Helper()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	w.lookEvery = 20 * time.Millisecond
	broker, err := url.Parse(w.broker.URL())
	if err != nil {
		t.Fatal(err)
	}
	way := testenv.NewProxy(t, broker.Host)
	broker.Host = way.Addr()
	for range replicas {
		w.runOn(testenv.Connect(t, broker.String()), -1, false)
	}
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "one")
	if err := w.committed(d.bind()); err != nil {
		t.Fatal(err)
	}
	return w, d, way
}

// TestVanishedStreams: what is deleted under a running registry is made again, also where no
// request comes, and requests are answered as before.
func TestVanishedStreams(t *testing.T) {
	t.Parallel()
	w, d, _ := newWatchedWorld(t, 2)
	for _, stream := range []string{streams.Receipts, streams.Invalidations, streams.Requests} {
		if err := w.js.DeleteStream(t.Context(), stream); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, patience, "there is another "+stream, func() error {
			_, err := w.js.Stream(t.Context(), stream)
			return errors.Join(err, w.watch.StreamsErr())
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
	w, d, way := newWatchedWorld(t, 1)
	other := d.another("two")
	if err := w.committed(other.bind()); err != nil {
		t.Fatal(err)
	}
	lacking := events.Invalidation{
		Origin: testOrigin, Target: d.target, Event: events.ServiceRevocation, OldKey: d.current.Public(), Sequence: 9,
		GracePeriodExpiry: time.Now().Unix(), Timestamp: time.Now().Unix(), Nonce: events.NewNonce(),
	}
	way.Cut() // it finds the other stream when that is complete
	if err := w.js.DeleteStream(t.Context(), streams.Invalidations); err != nil {
		t.Fatal(err)
	}
	if _, err := w.js.CreateStream(t.Context(), streams.InvalidationsConfig()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.js.Publish(t.Context(), lacking.Subject(), lacking.Sign(testKey)); err != nil {
		t.Fatal(err)
	}
	way.Restore()
	testenv.Eventually(t, patience, "the new stream was compared", func() error {
		stream, err := w.js.Stream(t.Context(), streams.Invalidations)
		if err == nil && w.registry.guard.Position().Created != stream.CachedInfo().Created.UnixNano() {
			err = errors.New("it was not")
		}
		return err
	})
	if err := w.registry.guard.Answers(d.target, 1); !errors.Is(err, ErrBehind) {
		t.Error("the service is not held")
	}
	if err := w.committed(other.rotate()); err != nil {
		t.Error(err)
	}
}
