package subscriber

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/health"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// readiness is how a subscriber that asks its database and one that answers from its memory say
// that they are ready.
type readiness struct {
	t   *testing.T
	sub *Subscriber
}

// says waits until both say this. A text that begins with "ok" means ready.
func (r readiness) says(fromDatabase, fromMemory string) {
	r.t.Helper()
	log := slog.New(slog.DiscardHandler)
	testenv.Eventually(r.t, time.Minute, fmt.Sprintf("they say %q and %q", fromDatabase, fromMemory), func() error {
		for want, parts := range map[*string][]health.Part{&fromDatabase: r.sub.Parts(), &fromMemory: r.sub.PartsFromMemory()} {
			report, err := health.New(log, parts...).Report(r.t.Context())
			if text := report.Text(); err != nil || !strings.HasPrefix(text, *want) {
				return errors.Join(errors.New(text), err)
			}
		}
		return nil
	})
}

// TestReadiness: faults come and go in one deployment, and each is named while it lasts. Without
// the broker, all answers go on. Without the database, the answers from memory go on.
func TestReadiness(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, broker := testenv.NewPostgresServer(t), testenv.NewBroker(t)
	way := testenv.NewProxy(t, server.Addr())
	address := server.CreateDatabase("sub", way.Addr())
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	js, err := jetstream.New(testenv.Connect(t, broker.URL()))
	must(err)
	store, err := storage.Open(ctx, address, sqldb.Billing, slog.New(slog.DiscardHandler))
	must(err)
	defer func() { _ = store.Close() }()
	registry := subtest.NewRegistry(t, events.GenerateSigningKey())
	var log testenv.Log
	sub, err := New(Config{
		JetStream: js, Durable: "sub", Trust: registry.Trust, Store: store, Log: slog.New(slog.NewTextHandler(&log, nil)),
		hangsAfter: 300 * time.Millisecond,
	})
	must(err)
	running, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- sub.Run(running) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	r := readiness{t, sub}

	const opening = "consumer: the durable sub is not open yet"
	r.says(opening, opening)
	subtest.Stream(t, js)
	r.says("ok\n", "ok\n")

	_, err = js.PauseConsumer(ctx, streams.Invalidations, "sub", time.Now().Add(time.Hour))
	must(err)
	const paused = "consumer: the durable is paused until"
	r.says(paused, paused)
	_, err = js.ResumeConsumer(ctx, streams.Invalidations, "sub")
	must(err)
	r.says("ok\n", "ok\n")

	own, err := url.Parse(address)
	must(err)
	own.Host = server.Addr()
	operator, err := sql.Open("pgx", own.String())
	must(err)
	defer func() { _ = operator.Close() }()
	execute := func(statement string) {
		t.Helper()
		_, err := operator.ExecContext(ctx, statement)
		must(err)
	}
	execute("CREATE TABLE probe (n BIGINT)")
	execute("ALTER SYSTEM SET synchronous_standby_names = 'nosuch'")
	execute("SELECT pg_reload_conf()")
	service := subtest.NewService(t, "cms")
	// SHOW says so earlier.
	testenv.Eventually(t, time.Minute, "the server waits for a standby", func() error {
		within, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		if _, err := operator.ExecContext(within, "INSERT INTO probe VALUES (1)"); err == nil {
			return errors.New("it commits")
		}
		return nil
	})
	registry.Publish(t, js, service.Bind(time.Now().Unix()))
	r.says("requests: 1 in hand, and none was finished for ", "requests: 1 in hand, and none was finished for ")
	testenv.Eventually(t, time.Minute, "the log says so", func() error {
		if text := log.String(); !strings.Contains(text, "events=1 for=") || !strings.Contains(text, "stage=commit database=\"postgres "+way.Addr()+"/sub\"") {
			return errors.New(text)
		}
		return nil
	})
	execute("ALTER SYSTEM RESET synchronous_standby_names")
	execute("SELECT pg_reload_conf()")
	r.says("ok\n", "ok\n")

	way.Cut()
	r.says("database: the database ", "ok\ndatabase: the database ")
	way.Restore()
	r.says("ok\n", "ok\n")

	broker.Stop()
	const away = "ok\nbroker: the broker is away\n"
	r.says(away, away)
	broker.Start()
	r.says("ok\n", "ok\n")
}
