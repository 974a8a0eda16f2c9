package subscriber_test

import (
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	_ "modernc.org/sqlite" // for a trigger

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// patience is how long giving up a message may take. The message is tried alone five times, between
// others that are committed, with growing pauses. That takes a few seconds, and many times that if
// the race detector and other tests use the machine.
const patience = 3 * time.Minute

// TestPoison: the database refuses all keys of one service. The service's event is set aside while
// those of others are applied, and the durable says so. It is applied once the cause is gone and
// the process restarts, because the stream still has it.
func TestPoison(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "test.db")
	store := openStore(t, "sqlite:"+file)
	registry := subtest.NewRegistry(t, events.GenerateSigningKey())
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	begin := func() (stop func()) {
		sub, err := subscriber.New(subscriber.Config{
			JetStream: js, Durable: "sub", Trust: registry.Trust, Store: store, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		return subtest.Running(t, sub.Run)
	}
	subtest.Stream(t, js)
	stop := begin()
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	run := func(statement string) {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	publish := func(s *subtest.Service) {
		s.Bind(start)
		if _, err := js.Publish(t.Context(), s.Events[0].Subject(), s.Events[0].Sign(registry.Key)); err != nil {
			t.Fatal(err)
		}
	}

	victim := subtest.NewService(t, "victim")
	run(fmt.Sprintf("CREATE TRIGGER poison BEFORE INSERT ON keys WHEN NEW.service = (SELECT id FROM services WHERE target = '%s') "+
		"BEGIN SELECT RAISE(ABORT, 'poison'); END", victim.Target))
	publish(victim)
	others := 0
	testenv.Eventually(t, patience, "the event is set aside", func() error {
		others++
		publish(subtest.NewService(t, fmt.Sprint("other-", others)))
		list, err := store.ListSetAside(t.Context(), 10)
		if err != nil || len(list) != 1 || list[0].Reason != "error" || list[0].Subject != victim.Events[0].Subject() {
			return fmt.Errorf("set aside are %+v: %w", list, err)
		}
		return nil
	})
	testenv.Eventually(t, patience, "all others are applied", func() error {
		if n := len(all(t, store)); n != others {
			return fmt.Errorf("%d of %d", n, others)
		}
		return nil
	})

	failed := func() string {
		consumer, err := js.Consumer(t.Context(), streams.Invalidations, "sub")
		if err != nil {
			t.Fatal(err)
		}
		return consumer.CachedInfo().Config.Metadata[events.FailedMetadata]
	}
	if got := failed(); got != "1" {
		t.Errorf("the durable says that it failed on %q, want 1", got)
	}
	stop()
	stop = begin() // without success
	publish(subtest.NewService(t, "last"))
	testenv.Eventually(t, patience, "one more is applied", func() error {
		if n := len(all(t, store)); n != others+1 {
			return fmt.Errorf("%d of %d", n, others+1)
		}
		return nil
	})
	stop()
	run("DROP TRIGGER poison")
	begin()
	testenv.Eventually(t, patience, "the event is applied", func() error {
		_, found, err := store.KeyringOf(t.Context(), victim.Target)
		list, listErr := store.ListSetAside(t.Context(), 10)
		if err := errors.Join(err, listErr); err != nil || !found || len(list) > 0 || failed() != "" {
			return fmt.Errorf("found %t, set aside %d, failed %q: %w", found, len(list), failed(), err)
		}
		return nil
	})
}
