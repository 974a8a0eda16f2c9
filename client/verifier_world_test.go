package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

const (
	verifierStart  = int64(1_705_412_600)
	verifierWithin = time.Minute
)

// receiverChecker is what both verifiers are.
type receiverChecker interface {
	Verify(ctx context.Context, q events.VerifyQuery) (events.VerifyAnswer, error)
}

var (
	_ receiverChecker = (*client.Verifier)(nil)
	_ receiverChecker = client.AuthVerifier{}
)

// receiverClock is a time that a test sets.
type receiverClock struct{ seconds atomic.Int64 }

func (c *receiverClock) now() time.Time { return time.Unix(c.seconds.Load(), 0) }

// verifierWorld is a receiver on a real broker, with a registry that the test plays.
type verifierWorld struct {
	broker   *testenv.Broker
	proxy    *testenv.Proxy // between the broker and the receiver
	js       jetstream.JetStream
	registry *subtest.Registry
	clock    receiverClock
	log      testenv.Log
	verifier *client.Verifier
}

// newVerifierWorld makes a receiver that does not run yet, at a broker without a stream.
func newVerifierWorld(t *testing.T, peers ...*subtest.Service) *verifierWorld {
	t.Helper()
	w := &verifierWorld{broker: testenv.NewBroker(t), registry: subtest.NewRegistry(t, events.GenerateSigningKey())}
	w.clock.seconds.Store(verifierStart)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", &w.log)
		}
	})
	w.proxy = testenv.NewProxy(t, strings.TrimPrefix(w.broker.URL(), "nats://"))
	var err error
	if w.js, err = jetstream.New(testenv.Connect(t, w.broker.URL())); err != nil {
		t.Fatal(err)
	}
	cfg := client.VerifierConfig{
		Conn: testenv.Connect(t, "nats://"+w.proxy.Addr()), Trust: w.registry.Trust,
		Log: slog.New(slog.NewTextHandler(&w.log, nil)), Now: w.clock.now,
	}
	for _, peer := range peers {
		cfg.Peers = append(cfg.Peers, peer.Target)
	}
	if w.verifier, err = client.NewVerifier(cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

// runningVerifier makes a receiver that runs and is ready, at a broker with an empty stream.
func runningVerifier(t *testing.T, peers ...*subtest.Service) *verifierWorld {
	t.Helper()
	w := newVerifierWorld(t, peers...)
	subtest.Stream(t, w.js)
	subtest.Running(t, w.verifier.Run)
	testenv.Eventually(t, verifierWithin, "ready", w.verifier.Ready)
	return w
}

// publish puts events on the stream, for as long as it takes.
func (w *verifierWorld) publish(t *testing.T, list ...events.Invalidation) {
	t.Helper()
	for i := range list {
		testenv.Eventually(t, verifierWithin, "publish an event", func() error {
			_, err := w.js.Publish(t.Context(), list[i].Subject(), list[i].Sign(w.registry.Key))
			return err
		})
	}
}

// playedRegistry answers as the registry does, with records that the test sets, and counts the questions.
type playedRegistry struct {
	mu    sync.Mutex
	of    map[string]events.ServiceRecord // by service id
	asked int

	neverBound func(events.Target) []byte // what it signs about all others
}

func (r *playedRegistry) set(record events.ServiceRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of[record.ServiceID.String()] = record
}

func (r *playedRegistry) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// answering starts a registry that answers about services.
func (w *verifierWorld) answering(t *testing.T) *playedRegistry {
	t.Helper()
	r := &playedRegistry{of: make(map[string]events.ServiceRecord)}
	r.neverBound = func(target events.Target) []byte { return w.registry.NeverBound(target, w.clock.seconds.Load()) }
	service, err := api.Register(t.Context(), w.js.Conn(), slog.New(slog.DiscardHandler),
		api.Service{Name: "omi-registry", Description: "test"}, api.Endpoint{
			Name: "service", Subject: events.LookupServiceSubject,
			Handle: func(_ context.Context, c api.Call) (api.Answer, error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.asked++
				record, ok := r.of[c.ServiceID]
				if !ok {
					target, err := c.Target()
					if err != nil {
						return api.Answer{}, err
					}
					return api.Answer{}, api.UnknownService("No such service.", r.neverBound(target))
				}
				return api.Answer{Body: record.Sign(w.registry.Key)}, nil
			},
		})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	return r
}

func signedQuery(s *subtest.Service, key events.SigningKey) events.VerifyQuery {
	message := []byte("a request")
	return events.VerifyQuery{Target: s.Target, Message: message, Signature: key.Sign(message)}
}

// verdict is an answer as "accepted current" or "refused expired_key", or what kept it from being given.
func verdict(answer events.VerifyAnswer, err error) string {
	switch {
	case errors.Is(err, client.ErrStale):
		return "stale"
	case errors.Is(err, client.ErrNotReady):
		return "not ready"
	case err != nil:
		return err.Error()
	}
	return answer.Result + " " + answer.Key + answer.Reason
}

func (w *verifierWorld) verify(t *testing.T, s *subtest.Service, key events.SigningKey) string {
	t.Helper()
	return verdict(w.verifier.Verify(t.Context(), signedQuery(s, key)))
}

func (w *verifierWorld) want(t *testing.T, what string, s *subtest.Service, key events.SigningKey, want string) {
	t.Helper()
	if got := w.verify(t, s, key); got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// becomes waits until a signature by key has this verdict.
func (w *verifierWorld) becomes(t *testing.T, s *subtest.Service, key events.SigningKey, want string) {
	t.Helper()
	testenv.Eventually(t, verifierWithin, want, func() error {
		if got := w.verify(t, s, key); got != want {
			return errors.New(got)
		}
		return nil
	})
}

// tick sets the clock, and waits until the receiver knows the stream up to then.
func (w *verifierWorld) tick(t *testing.T, seconds int64) {
	t.Helper()
	w.clock.seconds.Store(seconds)
	testenv.Eventually(t, verifierWithin, "the stream known up to now", func() error {
		if asOf := w.verifier.AsOf().Unix(); asOf < seconds {
			return fmt.Errorf("known up to %d", asOf)
		}
		return nil
	})
}

// consumers returns what the broker knows of who reads the stream.
func (w *verifierWorld) consumers(t *testing.T) []*jetstream.ConsumerInfo {
	t.Helper()
	stream, err := w.js.Stream(t.Context(), streams.Invalidations)
	if err != nil {
		t.Fatal(err)
	}
	var list []*jetstream.ConsumerInfo
	lister := stream.ListConsumers(t.Context())
	for info := range lister.Info() {
		list = append(list, info)
	}
	if lister.Err() != nil {
		t.Fatal(lister.Err())
	}
	return list
}

// replaceStream makes the stream anew. The server tidies up after the old one for a moment longer, and removes the folder
// that the new one is just being put into; then it has to be made again.
func (w *verifierWorld) replaceStream(t *testing.T) {
	t.Helper()
	if err := w.js.DeleteStream(t.Context(), streams.Invalidations); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, verifierWithin, "make the stream anew", func() error {
		_, err := w.js.CreateStream(t.Context(), streams.InvalidationsConfig())
		return err
	})
}
