package registry

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/registry/internal/queue"
	"omiappreg.org/keyrotation/streams"
)

// unheard dials connections on which every acknowledgement is lost.
type unheard struct{}

func (unheard) Dial(network, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address)
	return unheardConn{conn}, err
}

type unheardConn struct{ net.Conn }

func (c unheardConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("PUB $JS.ACK.")) {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// refuseUnheard has a request refused by a replica that dies then: the receipt is in the stream, and its acknowledgement is lost.
func (w *world) refuseUnheard(r request, rotationsPerMinute int, want events.Reason) {
	w.t.Helper()
	conn, err := nats.Connect(w.broker.URL(), nats.SetCustomDialer(unheard{}), nats.MaxReconnects(-1), nats.Timeout(patience))
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	stop := w.runOn(conn, rotationsPerMinute, false)
	defer stop()
	w.publish(r)
	if receipt := w.answer(r); receipt.Reason != want {
		w.t.Fatalf("%q (%s), want %s", receipt.Reason, receipt.Detail, want)
	}
}

// settledAll waits until every request is acknowledged.
func (w *world) settledAll() {
	w.t.Helper()
	testenv.Eventually(w.t, patience, "every request is acknowledged", func() error {
		if err := testenv.Hasten(w.t.Context(), w.js, streams.Requests, streams.RegistryDurable); err != nil {
			return err
		}
		stream, err := w.js.Stream(w.t.Context(), streams.Requests)
		if err != nil {
			return err
		}
		if n := stream.CachedInfo().State.Msgs; n > 0 {
			return fmt.Errorf("%d are not", n)
		}
		return nil
	})
}

// answersTo returns all answers to requests of this nonce, in the order in which they were given.
func (w *world) answersTo(r request) string {
	w.t.Helper()
	var list []string
	for _, receipt := range w.receipts(r.draft.Target) {
		if receipt.RequestNonce == r.draft.Nonce {
			answer := string(receipt.Reason)
			if receipt.Event == events.RequestCommitted {
				answer = "committed"
			}
			list = append(list, answer)
		}
	}
	return strings.Join(list, " ")
}

// passing is a reason that can pass, with what makes it pass.
type passing struct {
	reason  events.Reason
	before  func(w *world, d *developer) // while a registry runs
	request func(d *developer) request   // what is refused then
	after   func(w *world, d *developer) // while another registry runs, and before it is delivered again
}

func passingReasons() map[string]passing {
	bound := func(w *world, d *developer) { w.commit(d.bind()) }
	return map[string]passing{
		"a binding": {
			events.AlreadyBound, bound,
			func(d *developer) request { return d.sign(events.Binding, events.GenerateSigningKey(), d.master) },
			func(w *world, d *developer) { w.commit(d.revoke()) },
		},
		"a binding of an unknown app": {
			events.UnknownApp, func(*world, *developer) {},
			func(d *developer) request {
				d.target.App, _ = events.ParseAppID("org.omiappreg.later")
				return d.bind()
			},
			func(w *world, d *developer) {
				if err := w.store.Admin().AddApp(w.t.Context(), App{d.target.App, d.master.Public()}, 1); err != nil {
					w.t.Fatal(err)
				}
			},
		},
		"a reset": {
			events.UnknownService, func(*world, *developer) {},
			func(d *developer) request { return d.sign(events.Reset, events.GenerateSigningKey(), d.master) }, bound,
		},
		"a revocation": {
			events.UnknownService, func(*world, *developer) {},
			func(d *developer) request { return d.sign(events.Revocation, events.SigningKey{}, d.master) }, bound,
		},
		"a rotation": {
			events.UnknownService, func(*world, *developer) {},
			func(d *developer) request {
				d.current = events.GenerateSigningKey() // the one that it is bound with
				return d.sign(events.Rotation, events.GenerateSigningKey(), d.current)
			},
			func(w *world, d *developer) { w.commit(d.sign(events.Binding, d.current, d.master)) },
		},
		"a rotation by the next key": {
			events.InvalidSignature, bound,
			func(d *developer) request {
				next := events.GenerateSigningKey()
				early := d.sign(events.Rotation, events.GenerateSigningKey(), next)
				d.current = next
				return early
			},
			func(w *world, d *developer) { w.commit(d.sign(events.Reset, d.current, d.master)) },
		},
		"a rotation too soon": {
			events.RateLimited,
			func(w *world, d *developer) { w.commit(d.bind()); w.commit(d.rotate()) },
			func(d *developer) request { return d.sign(events.Rotation, events.GenerateSigningKey(), d.current) },
			func(*world, *developer) {}, // the other registry has no limit
		},
	}
}

// TestRefusedOnce: a request that was refused is not answered differently, or committed, when it is delivered again because exactly
// that acknowledgement was lost, though the reason has passed.
func TestRefusedOnce(t *testing.T) {
	t.Parallel()
	for _, engine := range testenv.Engines() {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			database := testenv.Databases(t, engine)
			for name, p := range passingReasons() {
				url := database()
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					p.check(newWorld(t, url))
				})
			}
		})
	}
}

func (p passing) check(w *world) {
	d := newDeveloper(w.t, w.store, "org.omiappreg.alice", "cms")
	stop := w.runOn(testenv.Connect(w.t, w.broker.URL()), 1, false)
	p.before(w, d)
	stop()
	r := p.request(d)
	w.refuseUnheard(r, 1, p.reason)
	w.runOn(testenv.Connect(w.t, w.broker.URL()), -1, true)
	p.after(w, d)
	w.settledAll()
	if got := w.answersTo(r); got != string(p.reason) {
		w.t.Errorf("it was answered with %s, want %s", got, p.reason)
	}
	w.clean()
}

// TestReceiptsThatAreGone: where the stream no longer tells what was refused, a request that was signed in the second of the last
// one is refused, and a later one is not.
func TestReceiptsThatAreGone(t *testing.T) {
	t.Parallel()
	w, d, _ := boundWorld(t, testenv.Database(t, testenv.SQLite))
	now := time.Now()
	d.now = func() time.Time { return now }
	w.commit(d.reset())
	for range streams.ReceiptsConfig().MaxMsgsPerSubject {
		w.publish(d.sign(events.Rotation, events.GenerateSigningKey(), d.master))
	}
	w.settledAll()
	last := d.sign(events.Reset, events.GenerateSigningKey(), d.master)
	w.publish(last)
	if receipt := w.answer(last); receipt.Reason != events.TimestampOutOfOrder {
		t.Errorf("%q %s", receipt.Reason, receipt.Detail)
	}
	now = now.Add(time.Second)
	w.commit(d.reset())
}

// TestReceiptsThatWereEvicted: the same where the stream had no room for the receipts of all services.
func TestReceiptsThatWereEvicted(t *testing.T) {
	t.Parallel()
	w, d, _ := boundWorld(t, testenv.Database(t, testenv.SQLite))
	if err := EnsureStreamsWithin(t.Context(), w.js, 1, StreamLimits{ReceiptBytes: 16 << 10}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	d.now = func() time.Time { return now }
	w.commit(d.reset())
	other := d.another("other")
	other.current = d.current
	for range 60 { // less than are kept of a service
		w.publish(other.rotate())
	}
	w.settledAll()
	last := d.sign(events.Reset, events.GenerateSigningKey(), d.master)
	w.publish(last)
	if receipt := w.answer(last); receipt.Reason != events.TimestampOutOfOrder {
		t.Errorf("%q %s", receipt.Reason, receipt.Detail)
	}
	now = now.Add(time.Second)
	w.commit(d.reset())
}

// TestReceiptsUnreadable: where the broker does not say what a service was told, its requests that were delivered before wait. They
// are neither refused nor set aside for that, and those of others are decided.
func TestReceiptsUnreadable(t *testing.T) {
	t.Parallel()
	store := openStore(t, testenv.Database(t, testenv.SQLite))
	in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
	in.batch = defaultBatch
	d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
	other := d.another("other")
	unreadable := true
	in.told = func(context.Context, []events.Target) (map[events.Target]*told, error) {
		if unreadable {
			return map[events.Target]*told{other.target: nil}, errPartly
		}
		return nil, nil
	}
	again := func(r request) *letterMessage {
		letter := ledger.DeadLetter{Subject: r.draft.Subject(), Payload: r.payload, StoredAt: r.draft.Timestamp}
		return &letterMessage{letter: letter, settled: make(chan bool, 1)}
	}
	first, second := again(d.bind()), again(other.bind())
	handle := func(list ...*letterMessage) {
		var messages []*queue.Message
		for _, one := range list {
			messages = append(messages, one.message())
		}
		if err := in.handle(t.Context(), messages); err != nil {
			t.Fatal(err)
		}
	}
	handle(first, second)
	if waits, done := !<-first.settled, <-second.settled; !waits || !done {
		t.Errorf("the one waits: %t, the other is done: %t", waits, done)
	}
	unreadable = false
	handle(first)
	if !<-first.settled {
		t.Error("it waits though the broker is back")
	}
	if !unavailable(fmt.Errorf("decide: %w", errReceipts)) {
		t.Error("a request is blamed for what the broker doesn't say")
	}
}
