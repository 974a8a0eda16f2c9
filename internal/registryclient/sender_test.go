package registryclient_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

const origin = "omiappreg.org"

// world is a broker with the streams of requests and receipts, a registry that the test plays, and
// a request to it.
type world struct {
	url      string
	js       jetstream.JetStream
	sender   registryclient.Sender
	target   events.Target
	registry events.SigningKey
	newKey   events.SigningKey
	message  registryclient.Message
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldAt(t, testenv.NewBroker(t).URL())
}

func newWorldAt(t *testing.T, url string) *world {
	t.Helper()
	js, err := jetstream.New(testenv.Connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []jetstream.StreamConfig{streams.RequestsConfig(), streams.ReceiptsConfig()} {
		if _, err := js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{url: url, js: js, registry: events.GenerateSigningKey(), newKey: events.GenerateSigningKey()}
	if w.target, err = events.ParseTarget("org.example.shop.cms"); err != nil {
		t.Fatal(err)
	}
	trust, err := events.NewTrust(origin, w.registry.Public())
	if err != nil {
		t.Fatal(err)
	}
	w.sender = registryclient.Sender{JetStream: js, Trust: trust}
	draft := events.Draft{Kind: events.Rotation, Target: w.target, Timestamp: 1, Nonce: events.NewNonce()}
	if w.message, err = registryclient.Sign(draft, events.GenerateSigningKey().Private(), w.newKey.Private()); err != nil {
		t.Fatal(err)
	}
	return w
}

// lookups plays the registry's lookup of receipts: it answers with what answer returns, and counts.
func (w *world) lookups(t *testing.T, answer func(events.ReceiptQuery) []byte) *atomic.Int64 {
	t.Helper()
	var asked atomic.Int64
	_, err := w.js.Conn().Subscribe(events.LookupReceiptSubject+w.target.String(), func(m *nats.Msg) {
		asked.Add(1)
		q, err := events.ParseReceiptQuery(m.Data)
		if err != nil {
			t.Errorf("asked %s: %v", m.Data, err)
		}
		if err := m.Respond(answer(q)); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return &asked
}

// committed is the answer to the message of this world.
func (w *world) committed() events.Receipt {
	return events.Receipt{
		Origin: origin, Target: w.target, Event: events.RequestCommitted, RequestNonce: w.message.Nonce, Timestamp: 2, Sequence: 2,
		Nonce: events.NewNonce(), PublicKey: w.newKey.Public(), GracePeriodExpiry: 302, EventNonce: events.NewNonce(),
	}
}

// refused is a refusal of a message with this nonce and this hash.
func (w *world) refused(hash string) events.Receipt {
	return events.Receipt{
		Origin: origin, Target: w.target, Event: events.RequestRejected, RequestNonce: w.message.Nonce, Timestamp: 2,
		Nonce: events.NewNonce(), Reason: events.RateLimited, Detail: "No.", RequestHash: hash,
	}
}

func (w *world) publish(t *testing.T, r events.Receipt, by events.SigningKey) {
	t.Helper()
	if _, err := w.js.Publish(t.Context(), r.Subject(), r.Sign(by)); err != nil {
		t.Error(err)
	}
	if err := w.js.Conn().Publish(events.AnswerSubject+w.target.String(), r.Sign(by)); err != nil {
		t.Error(err)
	}
}

// publishOthers publishes answers to another request, and messages that answer nothing.
func (w *world) publishOthers(t *testing.T) {
	t.Helper()
	stranger := events.GenerateSigningKey()
	w.publish(t, w.refused(events.RequestHash([]byte(w.message.Payload))), stranger)
	w.publish(t, w.committed(), stranger)
	w.publish(t, w.refused(events.RequestHash([]byte("the same nonce, with a broken signature"))), w.registry)
	w.publish(t, w.refused(""), w.registry)
	other := w.committed()
	other.PublicKey = stranger.Public()
	w.publish(t, other, w.registry)
	other = w.committed()
	other.RequestNonce = events.NewNonce()
	w.publish(t, other, w.registry)
	_, err := w.js.Publish(t.Context(), events.ReceiptSubject+w.target.String(), []byte("not JSON"))
	if err = errors.Join(err, w.js.Conn().Publish(events.AnswerSubject+w.target.String(), []byte("not JSON"))); err != nil {
		t.Fatal(err)
	}
}

// TestSendBelievesItsOwnAnswer: among all messages that may come on the subject, only one answers
// the request. The same holds for stored receipts, and for answers to lookups.
func TestSendBelievesItsOwnAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.sender.Again = true
	stranger := events.GenerateSigningKey()
	asked := w.lookups(t, func(events.ReceiptQuery) []byte {
		forged := w.committed()
		return forged.Sign(stranger)
	})
	w.publishOthers(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stored := false
	receipt, err := w.sender.Send(ctx, w.target, w.message, func() { stored = true; w.publishOthers(t); time.AfterFunc(100*time.Millisecond, cancel) })
	if !errors.Is(err, registryclient.ErrNoAnswer) || !stored || asked.Load() == 0 {
		t.Fatalf("nobody has answered: %+v, %v; stored: %t, lookups: %d", receipt, err, stored, asked.Load())
	}
	want := w.committed()
	w.sender.Again = false
	receipt, err = w.sender.Send(t.Context(), w.target, w.message, func() { w.publishOthers(t); w.publish(t, want, w.registry) })
	if err != nil || receipt.Nonce != want.Nonce {
		t.Errorf("got %+v, %v; want the answer", receipt, err)
	}

	// Without a stream, nothing shows whether the message is stored.
	if err := w.js.DeleteStream(t.Context(), streams.Requests); err != nil {
		t.Fatal(err)
	}
	if err := w.sender.Publish(t.Context(), w.message); !errors.Is(err, registryclient.ErrNotStored) {
		t.Errorf("publish without a stream: %v", err)
	}
}

// TestSendLooksFirst: a request that is answered is not sent again. A refusal may have had a
// passing reason; sent again, the same bytes could be committed, and a sender who believes the
// refusal would not know. The answer is the last receipt of the service, or the registry still
// knows it.
func TestSendLooksFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.sender.Again = true
	hash := events.RequestHash([]byte(w.message.Payload))
	want := w.refused(hash)
	asked := w.lookups(t, func(q events.ReceiptQuery) []byte {
		if q != (events.ReceiptQuery{RequestNonce: w.message.Nonce, RequestHash: hash}) {
			t.Errorf("asked for %+v", q)
		}
		return want.Sign(w.registry)
	})
	look := func(lookups int64) {
		t.Helper()
		receipt, err := w.sender.Send(t.Context(), w.target, w.message, func() { t.Error("it was sent again") })
		if err != nil || receipt.Nonce != want.Nonce || asked.Load() != lookups {
			t.Errorf("got %+v, %v, after %d questions to the registry; want the answer that is there, and %d", receipt, err, asked.Load(), lookups)
		}
	}
	w.publish(t, want, w.registry)
	look(0)
	w.publishOthers(t)
	look(1)
}

// TestSendCostsNoConsumer: a stream can have only 1,000 consumers.
func TestSendCostsNoConsumer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	questions, err := w.js.Conn().SubscribeSync("$JS.API.>")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.sender.Send(t.Context(), w.target, w.message, func() { w.publish(t, w.committed(), w.registry) }); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := questions.Pending(); n > 0 {
		first, _ := questions.NextMsg(time.Second)
		t.Errorf("%d questions to JetStream, the first on %s", n, first.Subject)
	}
}

// TestSendInFlood: refusals on the subject, as many as there may be, don't keep a sender from its
// answer. They are more than may wait to be read, so the answer may be lost among them; then the
// sender asks the registry.
func TestSendInFlood(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	want := w.committed()
	w.lookups(t, func(events.ReceiptQuery) []byte { return want.Sign(w.registry) })
	refused := w.refused(events.RequestHash(nil))
	flood := refused.Sign(w.registry)
	receipt, err := w.sender.Send(t.Context(), w.target, w.message, func() {
		for i := range 5000 {
			if i == 4000 {
				w.publish(t, want, w.registry)
			}
			if err := w.js.Conn().Publish(events.AnswerSubject+w.target.String(), flood); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil || receipt.Nonce != want.Nonce {
		t.Errorf("got %+v, %v; want the answer", receipt, err)
	}
}

// TestSendAfterReconnect: an answer that was published while the connection was lost is found when
// it is back.
func TestSendAfterReconnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.js
	proxy := testenv.NewProxy(t, strings.TrimPrefix(w.url, "nats://"))
	conn := testenv.Connect(t, "nats://"+proxy.Addr())
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	w.sender.JetStream = js
	lost, back := conn.StatusChanged(nats.RECONNECTING), conn.StatusChanged(nats.CONNECTED)
	want := w.committed()
	receipt, err := w.sender.Send(t.Context(), w.target, w.message, func() {
		proxy.Cut()
		<-lost
		w.js = other
		w.publish(t, want, w.registry)
		proxy.Restore()
		<-back
	})
	if err != nil || receipt.Nonce != want.Nonce {
		t.Errorf("got %+v, %v; want the answer", receipt, err)
	}
}

// TestSendEnds: with its context, and with its connection.
func TestSendEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := w.sender.Send(ctx, w.target, w.message, cancel); !errors.Is(err, registryclient.ErrNoAnswer) || !errors.Is(err, context.Canceled) {
		t.Errorf("with its context: %v", err)
	}
	if _, err := w.sender.Send(t.Context(), w.target, w.message, w.js.Conn().Close); !errors.Is(err, registryclient.ErrNoAnswer) || !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("with its connection: %v", err)
	}
}
