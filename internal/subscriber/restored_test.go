package subscriber_test

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

const (
	readAgain    = "The durable is recreated, and the stream read from its start"
	readReplaced = "the database was replaced, or restored from a backup"
)

// startOn runs a subscriber with the world's durable on a store, until the returned function stops
// it.
func (w *world) startOn(t *testing.T, store *storage.Store) (stop func()) {
	t.Helper()
	sub, err := subscriber.New(subscriber.Config{
		JetStream: w.js, Durable: "sub", Trust: w.registry.Trust, Store: store, Log: slog.New(slog.NewTextHandler(w.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return subtest.Running(t, sub.Run)
}

// knows waits until a store has all events of the services, and the durable has nothing open.
func (w *world) knows(t *testing.T, store *storage.Store, services ...*subtest.Service) {
	t.Helper()
	testenv.Eventually(t, within, "the database knows everything", func() error {
		have := all(t, store)
		for _, s := range services {
			if diff := diffKeyrings(s.Keyring(), have[s.Target].Keyring); diff != "" {
				return errors.New(diff)
			}
		}
		info := w.consumer(t)
		if info.NumPending > 0 || info.NumAckPending > 0 || info.AckFloor.Stream == 0 {
			return fmt.Errorf("%d and %d are left", info.NumPending, info.NumAckPending)
		}
		return nil
	})
}

func (w *world) said(t *testing.T, what string, times int) {
	t.Helper()
	if n := w.log.count(what); n != times {
		t.Errorf("%q was said %d times, want %d", what, n, times)
	}
}

func execute(t *testing.T, url string, statements ...string) {
	t.Helper()
	db, err := sqldb.Open(t.Context(), url, discard())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	for _, statement := range statements {
		if _, err := db.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
}

// twoServices publishes events of two services, with garbage between them and at the end.
func (w *world) twoServices(t *testing.T) []*subtest.Service {
	t.Helper()
	subtest.Stream(t, w.js)
	a, b := subtest.NewService(t, "a"), subtest.NewService(t, "b")
	for _, s := range []*subtest.Service{a, b} {
		s.Bind(start)
		s.Rotate(start+10, 300)
		w.registry.Publish(t, w.js, s.Events...)
	}
	w.garbage(t)
	return []*subtest.Service{a, b}
}

func (w *world) garbage(t *testing.T) {
	t.Helper()
	if _, err := w.js.Publish(t.Context(), events.InvalidationSubject+"org.example.x.y", []byte("garbage")); err != nil {
		t.Fatal(err)
	}
}

// TestLostDatabase: a database that is new, or older than what its durable has acknowledged, is
// filled from the stream again. A database that is as it was is not.
func TestLostDatabase(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t)
		services := w.twoServices(t)
		store := openStore(t, url)
		stop := w.startOn(t, store)
		w.knows(t, store, services...)
		w.garbage(t) // a batch of nothing else
		w.knows(t, store, services...)
		stop()
		stop = w.startOn(t, store) // as before
		services[0].Rotate(start+20, 300)
		w.registry.Publish(t, w.js, services[0].Events[2])
		w.garbage(t)
		w.knows(t, store, services...)
		stop()
		w.said(t, readAgain, 0)

		// An older backup lacks the last events.
		execute(t, url, "DELETE FROM applied", "DELETE FROM services", "DELETE FROM keys", "UPDATE stream_positions SET position = position - 1")
		stop = w.startOn(t, store)
		w.knows(t, store, services...)
		stop()
		w.said(t, readAgain, 1)

		// Nothing is left.
		execute(t, url, "DELETE FROM applied", "DELETE FROM services", "DELETE FROM keys", "DELETE FROM stream_positions")
		stop = w.startOn(t, store)
		w.knows(t, store, services...)
		stop()
		w.said(t, readAgain, 2)
		w.startOn(t, store)
		w.knows(t, store, services...)
		w.said(t, readAgain, 2)
	})
}

// TestDatabaseWithoutPosition: a database without a position has applied nothing, so the stream is
// read from its start. Events that the database has take no effect again.
func TestDatabaseWithoutPosition(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.SQLite)
	w := newWorld(t)
	subtest.Stream(t, w.js)
	s := subtest.NewService(t, "a")
	s.Bind(start)
	s.Rotate(start+10, 300)
	w.registry.Publish(t, w.js, s.Events...)
	store := openStore(t, url)
	stop := w.startOn(t, store)
	w.knows(t, store, s)
	stop()
	execute(t, url, "DELETE FROM stream_positions")
	w.startOn(t, store)
	db := openDB(t, url)
	testenv.Eventually(t, within, "the stream is read", func() error {
		var n int
		const query = "SELECT count(*) FROM stream_positions WHERE position = 2"
		if err := db.QueryRow(t.Context(), query).Scan(&n); err != nil || n != 1 {
			return fmt.Errorf("%d positions: %w", n, err)
		}
		return nil
	})
	w.knows(t, store, s)
	w.said(t, readAgain, 1)
}

// TestDatabaseReplaced: the database becomes an older one while the subscriber is running.
func TestDatabaseReplaced(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t)
		services := w.twoServices(t)
		store := openStore(t, url)
		w.startOn(t, store)
		w.knows(t, store, services...)
		execute(t, url, "DELETE FROM stream_positions", "DELETE FROM applied", "DELETE FROM services", "DELETE FROM keys")
		w.garbage(t) // anything that comes
		w.knows(t, store, services...)
		w.said(t, readReplaced, 1)
	})
}

func (w *world) allRead(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, within, "all read", func() error {
		if info := w.consumer(t); info.NumPending > 0 || info.NumAckPending > 0 {
			return fmt.Errorf("%d and %d are left", info.NumPending, info.NumAckPending)
		}
		return nil
	})
}

// TestDurableOfAStreamThatForgot: a durable that is created when the first messages of the stream
// are gone has a floor, and has acknowledged nothing.
func TestDurableOfAStreamThatForgot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	s := subtest.NewService(t, "a")
	s.Bind(start)
	for i := range 66 {
		s.Rotate(start+10*int64(i+1), 300)
	}
	w.registry.Publish(t, w.js, s.Events...)
	if _, err := w.js.CreateConsumer(t.Context(), streams.Invalidations, streams.SubscriberConsumer("sub")); err != nil {
		t.Fatal(err)
	}
	if floor := w.consumer(t).AckFloor; floor.Stream == 0 {
		t.Fatalf("the floor: %+v", floor)
	}
	w.startOn(t, w.store)
	w.allRead(t)
	w.said(t, readAgain, 0)
}

// TestFloorInAGap: if the stream has dropped messages, the floor of a durable lies just before the
// next message to be delivered, and so beyond the last one that was applied. The database lacks
// nothing.
func TestFloorInAGap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	quiet, busy := subtest.NewService(t, "quiet"), subtest.NewService(t, "busy")
	quiet.Bind(start)
	quiet.Rotate(start+10, 300)
	busy.Bind(start)
	for i := range 70 {
		busy.Rotate(start+10*int64(i+1), 300)
	}
	w.registry.Publish(t, w.js, append(quiet.Events, busy.Events...)...)
	durable, err := w.js.CreateConsumer(t.Context(), streams.Invalidations, streams.SubscriberConsumer("sub"))
	if err != nil {
		t.Fatal(err)
	}
	// A process applies two messages, and ends while a third is on its way.
	stream, err := w.js.Stream(t.Context(), streams.Invalidations)
	if err != nil {
		t.Fatal(err)
	}
	to := storage.Place{Created: stream.CachedInfo().Created.UnixNano(), Sequence: 2}
	if _, err := w.store.ApplyUpTo(t.Context(), to, storage.Place{}, quiet.Events, nil); err != nil {
		t.Fatal(err)
	}
	batch, err := durable.Fetch(3)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := (<-batch.Messages()).DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := (<-batch.Messages()).Nak(); err != nil {
		t.Fatal(err)
	}
	if floor := w.consumer(t).AckFloor; floor.Stream <= to.Sequence {
		t.Fatalf("the floor: %+v", floor)
	}
	w.startOn(t, w.store)
	w.allRead(t)
	w.said(t, readAgain, 0)
}
