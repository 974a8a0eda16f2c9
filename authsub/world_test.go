package authsub_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/authsub"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// authDurable is of the world's Auth Provider.
var authDurable = streams.InstanceDurable(streams.AuthDurable, "one")

// clock is a time that a test sets.
type clock struct{ seconds atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(c.seconds.Load(), 0) }

// world is an Auth Provider on a real stream and a real database, with a registry that the test plays.
type world struct {
	js       jetstream.JetStream
	registry *subtest.Registry
	lookups  *lookups
	clock    *clock
	url      string
	auth     *authsub.Auth
	stop     func()
}

func newWorld(t testing.TB, url string) *world {
	t.Helper()
	w := &world{
		registry: subtest.NewRegistry(t, events.GenerateSigningKey()), lookups: &lookups{}, clock: &clock{}, url: url,
	}
	w.clock.seconds.Store(start)
	var err error
	if w.js, err = jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL())); err != nil {
		t.Fatal(err)
	}
	subtest.Stream(t, w.js)
	w.run(t)
	return w
}

// run starts an Auth Provider; stop ends it.
func (w *world) run(t testing.TB) {
	t.Helper()
	auth, err := authsub.New(t.Context(), authsub.Config{
		JetStream: w.js, DatabaseURL: w.url, Instance: "one", Trust: w.registry.Trust, Registry: w.lookups,
		LookupTimeout: within, Log: slog.New(slog.DiscardHandler), Now: w.clock.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := subtest.Running(t, auth.Run)
	w.auth, w.stop = auth, func() {
		stop()
		if err := auth.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { stop(); _ = auth.Close() })
}

// lookups is a registry that answers with the records it was given, and counts the questions.
type lookups struct {
	mu      sync.Mutex
	records map[events.Target]events.ServiceRecord
	asked   int
	block   chan struct{} // if not nil, an answer waits until it is closed
}

func (l *lookups) set(r events.ServiceRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.records == nil {
		l.records = make(map[events.Target]events.ServiceRecord)
	}
	l.records[events.Target{App: r.AppID, Service: r.ServiceID}] = r
}

func (l *lookups) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

func (l *lookups) ServiceRecord(ctx context.Context, target events.Target) (events.ServiceRecord, error) {
	l.mu.Lock()
	l.asked++
	record, ok := l.records[target]
	block := l.block
	l.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return events.ServiceRecord{}, ctx.Err()
		}
	}
	if !ok {
		return events.ServiceRecord{}, fmt.Errorf("look up: %w", authsub.ErrUnknownService)
	}
	return record, nil
}

func query(s *subtest.Service, key events.SigningKey) events.VerifyQuery {
	message := []byte("a request")
	return events.VerifyQuery{Target: s.Target, Message: message, Signature: key.Sign(message)}
}

// verify returns the answer as "accepted current" or "refused expired_key".
func (w *world) verify(t testing.TB, s *subtest.Service, key events.SigningKey) string {
	t.Helper()
	answer := w.auth.Verify(t.Context(), query(s, key))
	if answer.Result == events.Accepted && answer.PublicKey != key.Public() {
		t.Errorf("accepted with the key %s instead of %s", answer.PublicKey, key.Public())
	}
	return answer.Result + " " + answer.Key + answer.Reason
}

func (w *world) want(t *testing.T, what string, s *subtest.Service, key events.SigningKey, want string) {
	t.Helper()
	if got := w.verify(t, s, key); got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// current waits until the newest key is accepted as current without a lookup.
func (w *world) current(t testing.TB, s *subtest.Service) {
	t.Helper()
	testenv.Eventually(t, within, "the newest key current", func() error {
		if got := w.verify(t, s, s.Current()); got != "accepted current" {
			return errors.New(got)
		}
		return nil
	})
}
