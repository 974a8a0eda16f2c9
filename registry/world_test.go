package registry

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/provision"
	"omiappreg.org/keyrotation/streams"
)

// patience is for what takes milliseconds on an idle machine. A request that is held comes again after 32 s at most.
const patience = 2 * time.Minute

// world is a registry that runs against a real broker and database.
type world struct {
	t      *testing.T
	broker *testenv.Broker
	store  *Store
	conn   *nats.Conn
	js     jetstream.JetStream
	trust  events.Trust
	lookup *Lookup
	ready  func() error     // of the replica that was started last
	watch  *provision.Watch // the same

	lookEvery time.Duration // how often they look at the streams; 0: as usual
	hangs     time.Duration // after which time work hangs; 0: as usual
	overdue   time.Duration // after which time a change should be published; 0: as usual
	registry  *Registry     // the replica that was started last

	key     events.SigningKey   // of the replicas that are started
	earlier []events.TrustedKey // what they trust besides
}

func newWorld(t *testing.T, url string) *world {
	t.Helper()
	return newWorldOn(t, testenv.NewBroker(t), url)
}

func newWorldOn(t *testing.T, broker *testenv.Broker, url string) *world {
	t.Helper()
	w := &world{t: t, broker: broker, store: openStore(t, url), key: testKey}
	w.conn = testenv.Connect(t, w.broker.URL())
	var err error
	if w.js, err = jetstream.New(w.conn); err != nil {
		t.Fatal(err)
	}
	if w.trust, err = events.NewTrust(testOrigin, testKey.Public()); err != nil {
		t.Fatal(err)
	}
	return w
}

// run starts a replica of the registry, until the returned function or the test's end stops it.
func (w *world) run() (stop func()) {
	w.t.Helper()
	return w.runOn(testenv.Connect(w.t, w.broker.URL()), -1, false)
}

// runOn is run for a replica with this connection and rate limit, which may be another than that of before.
func (w *world) runOn(conn *nats.Conn, rotationsPerMinute int, change bool) (stop func()) {
	w.t.Helper()
	r, err := New(Config{
		Policy: Policy{Origin: testOrigin, RotationsPerMinute: rotationsPerMinute}, ChangePolicy: change, Key: w.key, Trust: w.earlier, Store: w.store,
		Conn: conn, Log: testLog(w.t), hangsAfter: w.hangs, lookEvery: w.lookEvery, overdue: w.overdue,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.registry, w.lookup, w.ready, w.watch = r, r.Lookup, r.Ready, r.watch
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop = func() {
		if cancel(); !stopped {
			stopped = true
			if err := <-done; err != nil {
				w.t.Errorf("the registry ended with %v", err)
			}
		}
	}
	w.t.Cleanup(stop)
	testenv.Eventually(w.t, patience, "the streams are there", func() error {
		_, err := w.js.Consumer(w.t.Context(), streams.Requests, streams.RegistryDurable)
		return err
	})
	return stop
}

func (w *world) publish(r request) {
	w.t.Helper()
	msg := &nats.Msg{Subject: r.draft.Subject(), Data: r.payload, Header: nats.Header{}}
	msg.Header.Set(jetstream.MsgIDHeader, r.draft.MsgID())
	testenv.Eventually(w.t, patience, "the request is stored", func() error {
		_, err := w.js.PublishMsg(w.t.Context(), msg)
		return err
	})
}

// receipts reads what the receipt stream has for a service.
func (w *world) receipts(t events.Target) []events.Receipt {
	w.t.Helper()
	var list []events.Receipt
	w.read(streams.Receipts, events.ReceiptSubject+t.String(), func(subject string, data []byte) {
		r, err := w.trust.Receipt(subject, data)
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, r)
	})
	return list
}

// events reads what the invalidation stream has for a service.
func (w *world) events(t events.Target) []events.Invalidation {
	w.t.Helper()
	var list []events.Invalidation
	w.read(streams.Invalidations, events.InvalidationSubject+t.String(), func(subject string, data []byte) {
		e, err := w.trust.Invalidation(subject, data)
		if err != nil {
			w.t.Fatal(err)
		}
		list = append(list, e)
	})
	return list
}

func (w *world) read(stream, subject string, each func(subject string, data []byte)) {
	w.t.Helper()
	s, err := w.js.Stream(w.t.Context(), stream)
	if err != nil {
		return // not there yet
	}
	for seq := uint64(1); ; seq++ {
		msg, err := s.GetMsg(w.t.Context(), seq, jetstream.WithGetMsgSubject(subject))
		if err != nil {
			return
		}
		each(msg.Subject, msg.Data)
		seq = msg.Sequence
	}
}

// answer waits for the receipt of a request.
func (w *world) answer(r request) events.Receipt {
	w.t.Helper()
	var found events.Receipt
	testenv.Eventually(w.t, patience, "the request is answered", func() error {
		for _, receipt := range w.receipts(r.draft.Target) {
			if receipt.RequestNonce == r.draft.Nonce {
				found = receipt
				return nil
			}
		}
		return errors.New("no receipt")
	})
	return found
}

func (w *world) clean() {
	w.t.Helper()
	w.cleanAt(time.Now())
}

// cleanAt is clean for a registry whose clock shows this time.
func (w *world) cleanAt(now time.Time) {
	w.t.Helper()
	testenv.Eventually(w.t, patience, "the outbox is empty and the check is clean", func() error {
		report, err := w.store.Admin().Check(w.t.Context(), &w.trust, now)
		if err != nil || report.Outbox > 0 || len(report.Violations) > 0 {
			return fmt.Errorf("%d in the outbox, violations %v: %w", report.Outbox, report.Violations, err)
		}
		return nil
	})
}

func jetStreamOn(t *testing.T, b *testenv.Broker) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(testenv.Connect(t, b.URL()))
	if err != nil {
		t.Fatal(err)
	}
	return js
}
