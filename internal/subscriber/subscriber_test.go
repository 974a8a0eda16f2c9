package subscriber_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

const within = time.Minute

// world is a broker, a registry and a subscriber with an empty database, not running yet.
type world struct {
	broker   *testenv.Broker
	js       jetstream.JetStream
	registry *subtest.Registry
	store    *storage.Store
	metrics  *prometheus.Registry
	log      *lockedBuffer
	sub      *subscriber.Subscriber

	mu   sync.Mutex
	told []events.Invalidation // by Config.Applied
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		broker: testenv.NewBroker(t), registry: subtest.NewRegistry(t, events.GenerateSigningKey()),
		store: openStore(t, testenv.Database(t, testenv.SQLite)), metrics: prometheus.NewRegistry(), log: &lockedBuffer{},
	}
	var err error
	if w.js, err = jetstream.New(testenv.Connect(t, w.broker.URL())); err != nil {
		t.Fatal(err)
	}
	w.sub, err = subscriber.New(subscriber.Config{
		JetStream: w.js, Durable: "sub", Trust: w.registry.Trust, Store: w.store, Metrics: w.metrics,
		Log: slog.New(slog.NewTextHandler(w.log, nil)),
		Applied: func(_ context.Context, batch, _ []events.Invalidation) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told = append(w.told, batch...)
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// applied waits until the subscriber has told of n events.
func (w *world) applied(t *testing.T, n int) {
	t.Helper()
	testenv.Eventually(t, within, fmt.Sprint(n, " events applied"), func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.told) != n {
			return fmt.Errorf("%d", len(w.told))
		}
		return nil
	})
}

func (w *world) consumer(t *testing.T) *jetstream.ConsumerInfo {
	t.Helper()
	consumer, err := w.js.Consumer(t.Context(), streams.Invalidations, "sub")
	if err != nil {
		t.Fatal(err)
	}
	info, err := consumer.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.b.String(), s)
}

// TestLife: the subscriber waits for the stream, applies what comes, and says up to when it knows
// the stream. After its durable was deleted, it reads everything again, without effect.
func TestLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Running(t, w.sub.Run)
	testenv.Eventually(t, within, "a word about the stream", func() error {
		if w.log.count("waiting for the stream OMI_INVALIDATIONS; the registry makes it") != 1 {
			return errors.New("not said once")
		}
		return nil
	})
	if err := w.sub.Ready(); !errors.Is(err, subscriber.ErrNotReady) || w.sub.AsOf() != 0 {
		t.Errorf("without a stream: ready: %v, as of %d", err, w.sub.AsOf())
	}
	subtest.Stream(t, w.js)
	s := subtest.NewService(t, "life")
	s.Bind(start)
	s.Rotate(start+10, 300)
	w.registry.Publish(t, w.js, s.Events...)
	w.applied(t, 2)
	testenv.Eventually(t, within, "ready", w.sub.Ready)

	if err := w.js.DeleteConsumer(t.Context(), streams.Invalidations, "sub"); err != nil {
		t.Fatal(err)
	}
	w.applied(t, 4) // told again, because a memory could have missed them
	if diff := diffKeyrings(s.Keyring(), all(t, w.store)[s.Target].Keyring); diff != "" {
		t.Error(diff)
	}
	testenv.Eventually(t, within, "all acknowledged", func() error {
		if info := w.consumer(t); info.NumPending != 0 || info.NumAckPending != 0 || info.AckFloor.Stream != 2 {
			return fmt.Errorf("%d pending, %d not acknowledged", info.NumPending, info.NumAckPending)
		}
		return nil
	})
	w.checkCounts(t, map[string]float64{"applied": 2, "repeated": 2})
	latency := w.metric(t, "omi_subscriber_publish_to_applied_seconds")
	if len(latency) != 1 || latency[0].GetHistogram().GetSampleCount() != 2 {
		t.Errorf("latencies: %v, want two", latency)
	}
}

// checkCounts compares omi_subscriber_events_total by result and reason, once the subscriber has
// counted.
func (w *world) checkCounts(t *testing.T, want map[string]float64) {
	t.Helper()
	testenv.Eventually(t, within, "the right counts", func() error {
		got := make(map[string]float64)
		for _, m := range w.metric(t, "omi_subscriber_events_total") {
			labels := make(map[string]string)
			for _, label := range m.GetLabel() {
				labels[label.GetName()] = label.GetValue()
			}
			if labels["durable"] != "sub" {
				t.Errorf("the durable is %q", labels["durable"])
			}
			got[strings.TrimSpace(labels["result"]+" "+labels["reason"])] = m.GetCounter().GetValue()
		}
		if !maps.Equal(want, got) {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

func (w *world) metric(t *testing.T, name string) []*dto.Metric {
	t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()
		}
	}
	return nil
}

// TestOutage: as_of stops while the broker is unavailable, and goes on afterwards.
func TestOutage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	subtest.Running(t, w.sub.Run)
	testenv.Eventually(t, within, "ready", w.sub.Ready)
	w.broker.Stop()
	before := w.sub.AsOf()
	// Longer than the pause between two questions to the broker.
	tick := time.NewTimer(2500 * time.Millisecond)
	<-tick.C
	if after := w.sub.AsOf(); after != before {
		t.Errorf("as_of went from %d to %d without a broker", before, after)
	}
	if err := w.sub.Ready(); err != nil {
		t.Error(err)
	}
	w.broker.Start()
	s := subtest.NewService(t, "outage")
	s.Bind(start)
	testenv.Eventually(t, within, "publish again", func() error {
		_, err := w.js.Publish(t.Context(), s.Events[0].Subject(), s.Events[0].Sign(w.registry.Key))
		return err
	})
	testenv.Eventually(t, within, "the event applied and as_of later", func() error {
		if len(all(t, w.store)) != 1 || w.sub.AsOf() <= before {
			return fmt.Errorf("%d services, as of %d", len(all(t, w.store)), w.sub.AsOf())
		}
		return nil
	})
}

// TestRefusals: a message of any kind that must not be applied is set aside, with one line for each
// reason in the log. Good messages among them are applied. Of a flood, the newest of each kind are
// kept.
func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := subtest.NewService(t, "good")
	other := subtest.NewRegistry(t, events.GenerateSigningKey())
	var batch []incoming.Delivery
	for i := range 60 { // enough for several goroutines
		e := nth(s, i)
		d := w.registry.Delivery(&e)
		switch i % 4 {
		case 1:
			d = other.Delivery(&e)
		case 2:
			d.Payload = []byte("{")
		case 3:
			d.Subject = events.InvalidationSubject + "org.omiappreg.alice.x"
		}
		d.Sequence = uint64(i + 1)
		batch = append(batch, d)
	}
	if err := w.sub.Receive(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	w.applied(t, 15)
	list, err := w.store.ListSetAside(t.Context(), 100)
	if err != nil || len(list) != 45 {
		t.Errorf("%d messages set aside, %v; want 45", len(list), err)
	}
	w.checkCounts(t, map[string]float64{
		"applied": 15, "repeated": 0, "set_aside malformed_message": 15,
		"set_aside target_mismatch": 15, "set_aside unknown_registry_key": 15,
	})
	if n := w.log.count("level=WARN"); n != 3 || w.log.count("count=15") != 3 || w.log.count("first_stream_sequence=2\n") != 1 {
		t.Errorf("%d lines in the log, want one for each reason:\n%s", n, w.log.b.String())
	}

	flood := make([]incoming.Delivery, 1003)
	for i := range flood {
		flood[i] = incoming.Delivery{Subject: events.InvalidationSubject + "x", Sequence: uint64(100 + i)}
	}
	if err := w.sub.Receive(t.Context(), flood); err != nil {
		t.Fatal(err)
	}
	list, err = w.store.ListSetAside(t.Context(), 2000)
	if err != nil || len(list) != 1015 || list[999].StreamSequence != 103 {
		t.Errorf("%d messages set aside, %v; want the newest 1000 pieces of garbage, and 15 events of an unknown key", len(list), err)
	}
}

func TestDurableOfAnotherMeaning(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	refused := func(name string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		if err := w.sub.Run(ctx); !errors.Is(err, subscriber.ErrDurable) {
			t.Errorf("%s: got %v, want ErrDurable", name, err)
		}
		if err := w.js.DeleteConsumer(t.Context(), streams.Invalidations, "sub"); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*jetstream.ConsumerConfig){
		"new only":   func(c *jetstream.ConsumerConfig) { c.DeliverPolicy = jetstream.DeliverNewPolicy },
		"no acks":    func(c *jetstream.ConsumerConfig) { c.AckPolicy, c.MaxAckPending = jetstream.AckNonePolicy, 0 },
		"one filter": func(c *jetstream.ConsumerConfig) { c.FilterSubject = events.InvalidationSubject + "a.>" },
		"two filters": func(c *jetstream.ConsumerConfig) {
			c.FilterSubjects = []string{"omi.v1.invalidations.a.>", "omi.v1.invalidations.b.>"}
		},
		"no payload": func(c *jetstream.ConsumerConfig) { c.HeadersOnly = true },
	} {
		cfg := streams.SubscriberConsumer("sub")
		change(&cfg)
		if _, err := w.js.CreateConsumer(t.Context(), streams.Invalidations, cfg); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		refused(name)
	}
	cfg := streams.SubscriberConsumer("sub")
	cfg.DeliverSubject = "elsewhere"
	if _, err := w.js.CreatePushConsumer(t.Context(), streams.Invalidations, cfg); err != nil {
		t.Fatal(err)
	}
	refused("push")
}

// TestDurableLimits: limits are set to ours, and an operator's additions stay.
func TestDurableLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	cfg := streams.SubscriberConsumer("sub")
	cfg.AckWait, cfg.MaxAckPending, cfg.MaxDeliver = time.Hour, 1, 3
	cfg.Metadata = map[string]string{"owner": "ops"}
	if _, err := w.js.CreateConsumer(t.Context(), streams.Invalidations, cfg); err != nil {
		t.Fatal(err)
	}
	subtest.Running(t, w.sub.Run)
	want := streams.SubscriberConsumer("sub")
	testenv.Eventually(t, within, "the right limits", func() error {
		have := w.consumer(t).Config
		if have.AckWait != want.AckWait || have.MaxAckPending != want.MaxAckPending || have.MaxDeliver != want.MaxDeliver ||
			have.Metadata["owner"] != "ops" {
			return fmt.Errorf("%+v", have)
		}
		return nil
	})
}

// TestHeldBack: as_of doesn't pass a message that is not acknowledged, even if later ones are.
func TestHeldBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	stop := subtest.Running(t, w.sub.Run)
	testenv.Eventually(t, within, "ready", w.sub.Ready)
	stop()

	// Another client holds the first message back, for good.
	s := subtest.NewService(t, "busy")
	s.Bind(start)
	w.registry.Publish(t, w.js, s.Events[0])
	consumer, err := w.js.Consumer(t.Context(), streams.Invalidations, "sub")
	if err != nil {
		t.Fatal(err)
	}
	held, err := consumer.Next()
	if err != nil {
		t.Fatal(err)
	}
	before := w.sub.AsOf()
	subtest.Running(t, w.sub.Run)
	second := s.Rotate(start+10, 300)
	w.registry.Publish(t, w.js, second)
	w.applied(t, 1)
	tick := time.NewTimer(2500 * time.Millisecond)
	<-tick.C
	if after := w.sub.AsOf(); after != before {
		t.Errorf("as_of went from %d to %d, and an event is missing", before, after)
	}
	if err := held.Nak(); err != nil {
		t.Fatal(err)
	}
	w.applied(t, 2)
	testenv.Eventually(t, within, "a later as_of", func() error {
		if w.sub.AsOf() <= before {
			return fmt.Errorf("%d", w.sub.AsOf())
		}
		return nil
	})
}

// nth returns the i-th event of a service that is bound and then rotates.
func nth(s *subtest.Service, i int) events.Invalidation {
	if i == 0 {
		return s.Bind(start)
	}
	return s.Rotate(start+int64(i), 300)
}

// TestLimitsOfADurable: if an operator changes the limits of the durable, they are reset. If they
// can't be reset, the durable is recreated.
func TestLimitsOfADurable(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]func(*jetstream.ConsumerConfig){
		"small pulls": func(c *jetstream.ConsumerConfig) {
			c.MaxRequestBatch, c.MaxRequestMaxBytes, c.MaxRequestExpires = 1, 100, time.Second
		},
		"few in flight": func(c *jetstream.ConsumerConfig) { c.MaxAckPending = 1 },
		"backoff":       func(c *jetstream.ConsumerConfig) { c.BackOff = []time.Duration{time.Hour} },
		"one pull":      func(c *jetstream.ConsumerConfig) { c.MaxWaiting = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			subtest.Stream(t, w.js)
			limited := streams.SubscriberConsumer("sub")
			limit(&limited)
			if _, err := w.js.CreateConsumer(t.Context(), streams.Invalidations, limited); err != nil {
				t.Fatal(err)
			}
			w.registry.Publish(t, w.js, subtest.NewService(t, "a").Bind(start))
			subtest.Running(t, w.sub.Run)
			w.applied(t, 1)
			unlimited := func() error {
				c, want := w.consumer(t).Config, streams.SubscriberConsumer("sub")
				if consume.LimitsOf(c) != consume.LimitsOf(want) || c.MaxWaiting < consume.LeastWaiting {
					return fmt.Errorf("the durable is %+v", c)
				}
				return nil
			}
			if err := unlimited(); err != nil {
				t.Error(err)
			}
			again := w.consumer(t).Config
			waiting := again.MaxWaiting
			limit(&again)
			again.MaxWaiting = waiting // no one changes that
			if _, err := w.js.UpdateConsumer(t.Context(), streams.Invalidations, again); err != nil {
				t.Fatal(err)
			}
			testenv.Eventually(t, within, "the limits are taken back while it runs", unlimited)
		})
	}
}

// TestDurableErr: a durable that is paused, or whose stream is gone, is named.
func TestDurableErr(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	subtest.Stream(t, w.js)
	w.registry.Publish(t, w.js, subtest.NewService(t, "a").Bind(start))
	subtest.Running(t, w.sub.Run)
	w.applied(t, 1)
	says := func(what string) {
		t.Helper()
		testenv.Eventually(t, within, what, func() error {
			if err := w.sub.DurableErr(); err == nil || !strings.Contains(err.Error(), what) {
				return fmt.Errorf("it says %w", err)
			}
			return nil
		})
	}
	if _, err := w.js.PauseConsumer(t.Context(), streams.Invalidations, "sub", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	says("nats consumer resume OMI_INVALIDATIONS sub")
	if _, err := w.js.ResumeConsumer(t.Context(), streams.Invalidations, "sub"); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, within, "all is well", w.sub.DurableErr)
	if err := w.js.DeleteStream(t.Context(), streams.Invalidations); err != nil {
		t.Fatal(err)
	}
	says("no stream OMI_INVALIDATIONS; the registry makes it")
	subtest.Stream(t, w.js)
	testenv.Eventually(t, within, "all is well", w.sub.DurableErr)
}
