package subscriber_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// another returns a subscriber with the world's durable and a connection of its own, as another
// process has it.
func (w *world) another(t *testing.T, cfg subscriber.Config) *subscriber.Subscriber {
	t.Helper()
	return w.anotherBy(t, w.broker.URL(), cfg)
}

// anotherBy is another with its own way to the broker.
func (w *world) anotherBy(t *testing.T, url string, cfg subscriber.Config) *subscriber.Subscriber {
	t.Helper()
	var err error
	if cfg.JetStream, err = jetstream.New(testenv.Connect(t, url)); err != nil {
		t.Fatal(err)
	}
	cfg.Durable, cfg.Trust, cfg.Log = "sub", w.registry.Trust, discard()
	sub, err := subscriber.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

// ready waits until a subscriber has read the stream.
func ready(t *testing.T, sub *subscriber.Subscriber) {
	t.Helper()
	testenv.Eventually(t, within, "ready", sub.Ready)
}

// refused runs a subscriber that must end because another one has its durable.
func refused(t *testing.T, sub *subscriber.Subscriber) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	err := sub.Run(ctx)
	host, _ := os.Hostname()
	if who := fmt.Sprintf("process %d on host %s", os.Getpid(), host); !errors.Is(err, subscriber.ErrInUse) || !strings.Contains(err.Error(), who) {
		t.Fatalf("got %v, want an error that says that %s has it", err, who)
	}
}

// TestOneInstance: one process has an instance's durable, whether another one has the same database
// or its own. The next one gets it as soon as the first has stopped.
func TestOneInstance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	other := openStore(t, testenv.Database(t, testenv.SQLite))
	first := w.another(t, subscriber.Config{Store: w.store, Instance: "one", ForgetAfter: time.Minute})
	stop := subtest.Running(t, first.Run)
	ready(t, first)
	for _, store := range []*storage.Store{w.store, other} {
		refused(t, w.another(t, subscriber.Config{Store: store, Instance: "one"}))
	}
	if info := w.consumer(t); info.Config.InactiveThreshold != time.Minute || info.Config.Metadata["omi-instance"] != "one" {
		t.Errorf("the durable is %+v", info.Config)
	}
	s := subtest.NewService(t, "a")
	s.Bind(start)
	w.registry.Publish(t, w.js, s.Events...)
	w.knows(t, w.store, s)
	stop()
	next := w.another(t, subscriber.Config{Store: other, Instance: "one"})
	subtest.Running(t, next.Run)
	w.knows(t, other, s)
	ready(t, next)
}

// TestOneDatabase: processes without an instance share a durable if they share the database. A copy
// of the database is another database.
func TestOneDatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	file := filepath.Join(t.TempDir(), "shared.db")
	first := w.another(t, subscriber.Config{Store: openStore(t, "sqlite:"+file)})
	subtest.Running(t, first.Run)
	ready(t, first)
	same := w.another(t, subscriber.Config{Store: openStore(t, "sqlite:"+file)})
	subtest.Running(t, same.Run)
	ready(t, same)
	refused(t, w.another(t, subscriber.Config{Store: w.store}))

	copied := filepath.Join(t.TempDir(), "copied.db")
	execute(t, "sqlite:"+file, "VACUUM INTO '"+copied+"'")
	refused(t, w.another(t, subscriber.Config{Store: openStore(t, "sqlite:"+copied)}))
}

// TestTaken: two processes may take one durable, because they start at the same moment or don't
// reach each other. The one that is no longer named there ends, and the other one misses none of
// its events.
func TestTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	s := subtest.NewService(t, "a")
	s.Bind(start)
	w.registry.Publish(t, w.js, s.Events...)
	first := w.another(t, subscriber.Config{Store: w.store, Instance: "one"})
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	go func() { ended <- first.Run(ctx) }()
	w.knows(t, w.store, s)
	config := w.consumer(t).Config
	config.Metadata["omi-process"] = "process 7 on host elsewhere"
	if _, err := w.js.UpdateConsumer(t.Context(), streams.Invalidations, config); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, subscriber.ErrInUse) || !strings.Contains(err.Error(), "process 7 on host elsewhere") {
		t.Fatalf("got %v", err)
	}
	if _, err := w.js.Consumer(t.Context(), streams.Invalidations, "sub"); !errors.Is(err, jetstream.ErrConsumerNotFound) {
		t.Errorf("the durable is still there, with what the other one has not heard acknowledged: %v", err)
	}
}

// TestCut: a process is cut off from the broker while another one takes its durable. It ends when
// it is back. The other one, with a database of its own, has all events, even those that came just
// then.
func TestCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	way := testenv.NewProxy(t, strings.TrimPrefix(w.broker.URL(), "nats://"))
	s := subtest.NewService(t, "a")
	s.Bind(start)
	w.registry.Publish(t, w.js, s.Events...)
	first := w.anotherBy(t, "nats://"+way.Addr(), subscriber.Config{Store: w.store, Instance: "one"})
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- first.Run(ctx) }()
	w.knows(t, w.store, s)

	way.Cut()
	other := openStore(t, testenv.Database(t, testenv.SQLite))
	second := w.another(t, subscriber.Config{Store: other, Instance: "one"})
	subtest.Running(t, second.Run)
	w.knows(t, other, s)
	way.Restore()
	for i := 1; ; i++ {
		if i < 40 { // the stream keeps 64
			s.Rotate(start+int64(10*i), 300)
			w.registry.Publish(t, w.js, s.Events[len(s.Events)-1])
		}
		select {
		case err := <-ended:
			if !errors.Is(err, subscriber.ErrInUse) {
				t.Fatalf("the first ended with %v", err)
			}
			w.knows(t, other, s)
			return
		case <-time.After(20 * time.Millisecond): // the next event
		}
	}
}

// TestForgotten: the broker forgets the durable of a process that is gone, and keeps that of an
// idle process. A process that comes back reads everything.
func TestForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	const forget = time.Second
	s := subtest.NewService(t, "a")
	s.Bind(start)
	w.registry.Publish(t, w.js, s.Events...)
	first := w.another(t, subscriber.Config{Store: w.store, Instance: "one", ForgetAfter: forget})
	stop := subtest.Running(t, first.Run)
	w.knows(t, w.store, s)
	made := w.consumer(t).Created
	testenv.Eventually(t, within, "the time is over", func() error {
		if time.Since(made) < 3*forget {
			return errors.New("not yet")
		}
		return nil
	})
	if again := w.consumer(t).Created; !again.Equal(made) {
		t.Error("the durable of a process that was there was forgotten")
	}
	stop()
	testenv.Eventually(t, within, "forgotten", func() error {
		_, err := w.js.Consumer(t.Context(), streams.Invalidations, "sub")
		if !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return fmt.Errorf("not yet: %w", err)
		}
		return nil
	})
	s.Reset(start + 10)
	w.registry.Publish(t, w.js, s.Events[1:]...)
	subtest.Running(t, w.another(t, subscriber.Config{Store: w.store, Instance: "one", ForgetAfter: forget}).Run)
	w.knows(t, w.store, s)
}
