package registry

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// readiness asks the replica that was started last how its parts are.
func (w *world) readiness() string {
	w.t.Helper()
	report, err := health.New(slog.New(slog.DiscardHandler), health.Parts(w.registry.Checks())...).Report(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return report.Text()
}

// says waits until the readiness has these words; "ok": all is well.
func (w *world) says(words ...string) {
	w.t.Helper()
	testenv.Eventually(w.t, patience, "it says "+strings.Join(words, ", "), func() error {
		text := w.readiness()
		for _, word := range words {
			if !strings.Contains(text, word) {
				return errors.New(text)
			}
		}
		return nil
	})
}

// newReadyWorld is a world with a bound service and a registry that looks often and is impatient.
func newReadyWorld(t *testing.T, broker *testenv.Broker, url string) (*world, *developer) {
	t.Helper()
	w := newWorldOn(t, broker, url)
	w.lookEvery, w.hangs = 20*time.Millisecond, 300*time.Millisecond
	w.overdue = 500 * time.Millisecond
	w.run()
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "one")
	if err := w.committed(d.bind()); err != nil {
		t.Fatal(err)
	}
	w.says("ok\n")
	return w, d
}

// TestReadyWithBroker: each fault of the broker's is named, one after the other in one deployment,
// and gone when it is.
func TestReadyWithBroker(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	w, d := newReadyWorld(t, testenv.NewSmallBroker(t, size), testenv.Database(t, testenv.SQLite))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	done := func() {
		t.Helper()
		w.says("ok\n")
		must(w.committed(d.rotate()))
	}
	ctx := t.Context()

	_, err := w.js.PauseConsumer(ctx, streams.Requests, streams.RegistryDurable, time.Now().Add(time.Hour))
	must(err)
	w.says("consumer: the durable is paused until", "nats consumer resume")
	_, err = w.js.ResumeConsumer(ctx, streams.Requests, streams.RegistryDurable)
	must(err)
	done()

	must(w.js.DeleteConsumer(ctx, streams.Requests, streams.RegistryDurable))
	done()

	stream, err := w.js.Stream(ctx, streams.Receipts)
	must(err)
	sealed := stream.CachedInfo().Config
	sealed.Sealed, sealed.AllowDirect, sealed.AllowAtomicPublish = true, false, false
	_, err = w.js.UpdateStream(ctx, sealed)
	must(err)
	w.says("streams: stream " + streams.Receipts + ": the stream is sealed")
	must(w.js.DeleteStream(ctx, streams.Receipts))
	done()

	_, err = w.js.PauseConsumer(ctx, streams.Requests, streams.RegistryDurable, time.Now().Add(time.Hour))
	must(err)
	waits := d.rotate() // which the broker has while it still has the space
	w.publish(waits)
	filler, err := w.js.CreateStream(ctx, jetstream.StreamConfig{Name: "FILLER", Subjects: []string{"filler"}})
	must(err)
	for err = nil; err == nil; {
		_, err = w.js.Publish(ctx, "filler", make([]byte, 64<<10))
	}
	_, err = w.js.ResumeConsumer(ctx, streams.Requests, streams.RegistryDurable)
	must(err)
	w.says("streams: can't publish: the broker has no space left")
	w.says("outbox: changes are committed but not published, the oldest for ")
	must(filler.Purge(ctx))
	if receipt := w.answer(waits); receipt.Event != events.RequestCommitted {
		t.Fatalf("%+v", receipt)
	}
	done()

	w.broker.Stop()
	w.says("broker: the broker is away")
	if text := w.readiness(); strings.Count(text, "\n") != 1 {
		t.Errorf("the broker alone is away, and it says\n%s", text)
	}
	w.broker.Start()
	done()
}

// TestReadyWithFile: a database whose file was replaced is named, and a restart is the remedy.
func TestReadyWithFile(t *testing.T) {
	t.Parallel()
	address := testenv.Database(t, testenv.SQLite)
	w, _ := newReadyWorld(t, testenv.NewBroker(t), address)
	file := strings.TrimPrefix(address, "sqlite:")
	if err := os.Rename(file, file+".old"); err != nil {
		t.Fatal(err)
	}
	w.says("database: the database can't be used any more: its file was removed or replaced")
	report, err := health.New(slog.New(slog.DiscardHandler), health.Parts(w.registry.Checks())...).Report(t.Context())
	if err != nil || report.Live {
		t.Errorf("it is live: %+v, %v", report, err)
	}
	if strings.Contains(report.Text(), file) {
		t.Errorf("it names the file to strangers: %s", report.Text())
	}
}

// TestReadyWithDatabase: a lock, a commit that waits for a standby, and a server that is away are
// named, and gone when they are. What hangs is in the log and in the metric. A lock on what the
// next request needs is named before there is one.
func TestReadyWithDatabase(t *testing.T) {
	t.Parallel()
	server := testenv.NewPostgresServer(t)
	way := testenv.NewProxy(t, server.Addr())
	address := server.CreateDatabase("reg", way.Addr())
	w, d := newReadyWorld(t, testenv.NewBroker(t), address)
	own, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	own.Host = server.Addr()
	operator, err := sql.Open("pgx", own.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = operator.Close() }()
	execute := func(statement string) {
		t.Helper()
		if _, err := operator.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	committed := func(r request) {
		t.Helper()
		if receipt := w.answer(r); receipt.Event != events.RequestCommitted {
			t.Fatalf("%+v", receipt)
		}
		w.clean() // else what hangs next is the outbox
		w.says("ok\n")
	}
	hangs := func(stages ...string) {
		t.Helper()
		testenv.Eventually(t, patience, "it says what hangs", func() error {
			text := w.readiness()
			for _, stage := range stages {
				if strings.Contains(text, "requests: 1 in hand, and none was finished for ") && strings.HasSuffix(text, "(stage: "+stage+")\n") {
					return nil
				}
			}
			return errors.New(text)
		})
	}

	unlock := testenv.Lock(t, own.String(), "history")
	w.says("database: ", "answer") // "no answer within 2s", or "the database does not answer in time"
	waits := d.rotate()
	w.publish(waits)
	hangs(stageLoad, stageCommit)
	unlock()
	committed(waits)

	execute("CREATE TABLE probe (n BIGINT)")
	execute("ALTER SYSTEM SET synchronous_standby_names = 'nosuch'")
	execute("SELECT pg_reload_conf()")
	testenv.Eventually(t, patience, "the server waits for a standby", func() error { // SHOW says so before
		within, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := operator.ExecContext(within, "INSERT INTO probe VALUES (1)"); err == nil {
			return errors.New("it commits")
		}
		return nil
	})
	waits = d.rotate()
	w.publish(waits)
	hangs(stageCommit)
	execute("ALTER SYSTEM RESET synchronous_standby_names")
	execute("SELECT pg_reload_conf()")
	committed(waits)

	way.Cut()
	w.says("database: the database ")
	way.Restore()
	w.says("ok\n")
}

// TestPing: it reads from each table that every request needs.
func TestPing(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.Postgres)
	store := openStore(t, url)
	testenv.ReadsTables(t, url, store.Ping, "apps", "services", "history", "outbox", "stream_positions")
}
