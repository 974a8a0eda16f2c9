package request_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/request"
	"omiappreg.org/keyrotation/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

const origin = "omiappreg.org"

// world is a broker with the streams of requests and receipts, a registry that the test plays, and a request to it.
type world struct {
	js       jetstream.JetStream
	sender   request.Sender
	target   events.Target
	registry events.SigningKey
	newKey   events.SigningKey
	message  request.Message
}

func newWorld(t *testing.T) *world {
	t.Helper()
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []jetstream.StreamConfig{events.RequestStreamConfig(), events.ReceiptStreamConfig()} {
		if _, err := js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{js: js, registry: events.GenerateSigningKey(), newKey: events.GenerateSigningKey()}
	if w.target, err = events.ParseTarget("org.example.shop.cms"); err != nil {
		t.Fatal(err)
	}
	trust, err := events.NewTrust(origin, w.registry.Public())
	if err != nil {
		t.Fatal(err)
	}
	w.sender = request.Sender{JetStream: js, Trust: trust}
	draft := events.Draft{Kind: events.Rotation, Target: w.target, Timestamp: 1, Nonce: events.NewNonce()}
	if w.message, err = request.Sign(draft, events.GenerateSigningKey().Private(), w.newKey.Private()); err != nil {
		t.Fatal(err)
	}
	return w
}

// TestSendBelievesItsOwnAnswer: of all that may come on the subject, only one message answers the request.
func TestSendBelievesItsOwnAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	js, sender, target, m := w.js, w.sender, w.target, w.message
	registry, stranger, newKey := w.registry, events.GenerateSigningKey(), w.newKey
	committed := events.Receipt{
		Origin: origin, Target: target, Event: events.RequestCommitted, RequestNonce: m.Nonce, Timestamp: 2, Sequence: 2,
		PublicKey: newKey.Public(), GracePeriodExpiry: 302, EventNonce: events.NewNonce(),
	}
	refused := events.Receipt{
		Origin: origin, Target: target, Event: events.RequestRejected, RequestNonce: m.Nonce, Timestamp: 2,
		Reason: events.InvalidSignature, Detail: "No.", RequestHash: events.RequestHash([]byte(m.Payload)),
	}
	publish := func(r events.Receipt, by events.SigningKey) {
		t.Helper()
		r.Nonce = events.NewNonce()
		if _, err := js.Publish(t.Context(), events.ReceiptSubject+target.String(), r.Sign(by)); err != nil {
			t.Fatal(err)
		}
	}
	// What answers another request, or is nobody's answer.
	publish(refused, stranger)
	publish(committed, stranger)
	other := refused
	other.RequestHash = events.RequestHash([]byte("the same nonce, with a broken signature"))
	publish(other, registry)
	other = refused
	other.RequestHash = ""
	publish(other, registry)
	other = committed
	other.PublicKey = stranger.Public()
	publish(other, registry)
	other = committed
	other.RequestNonce = events.NewNonce()
	publish(other, registry)
	if _, err := js.Publish(t.Context(), events.ReceiptSubject+target.String(), []byte("not JSON")); err != nil {
		t.Fatal(err)
	}

	stored := false
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	storing := func() { // to wait for nothing begins when the request is stored, however slow that is
		stored = true
		time.AfterFunc(200*time.Millisecond, cancel)
	}
	if receipt, err := sender.Send(ctx, target, m, storing); !errors.Is(err, request.ErrNoAnswer) || !stored {
		t.Fatalf("nobody has answered: %+v, %v; stored: %t", receipt, err, stored)
	}
	publish(refused, registry)
	publish(committed, registry)
	receipt, err := sender.Send(t.Context(), target, m, nil)
	if err != nil || receipt.Event != events.RequestRejected || receipt.Reason != events.InvalidSignature {
		t.Errorf("got %+v, %v; want the first answer to these very bytes", receipt, err)
	}

	// Without a stream there is no telling whether anything is stored.
	if err := js.DeleteStream(t.Context(), events.RequestStream); err != nil {
		t.Fatal(err)
	}
	if err := sender.Publish(t.Context(), m); !errors.Is(err, request.ErrNotStored) {
		t.Errorf("publish without a stream: %v", err)
	}
}

// TestSendEndsWithItsContext: also while the broker has lost the reader's place in the stream, and can't give it a new one.
func TestSendEndsWithItsContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	places := make(chan *nats.Msg, 8)
	if _, err := w.js.Conn().ChanSubscribe("$JS.API.CONSUMER.CREATE."+events.ReceiptStream+".>", places); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stored, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := w.sender.Send(ctx, w.target, w.message, func() { close(stored) })
		ended <- err
	}()
	<-stored
	<-places // the one that it has
	if err := w.js.DeleteStream(t.Context(), events.ReceiptStream); err != nil {
		t.Fatal(err)
	}
	if err := w.js.Conn().ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	var result error
	select {
	case <-places: // the one that it asks for now
		cancel()
		result = receive(t, ended)
	case result = <-ended: // its question may be lost with the old connection; then it gives up by itself
	case <-time.After(time.Minute):
		t.Fatal("it neither asks for a new place nor ends")
	}
	if !errors.Is(result, request.ErrNoAnswer) {
		t.Errorf("got %v, want ErrNoAnswer", result)
	}
}

func receive(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
		return nil
	}
}

// TestSendLooksFirst: what is answered is not sent again. A refusal may have been for a passing reason, and whoever believes
// it would not know that the same bytes stand now.
func TestSendLooksFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range 3 { // of other requests
		w.refuse(t, "")
	}
	w.refuse(t, events.RequestHash([]byte(w.message.Payload)))
	began := time.Now()
	receipt, err := w.sender.Send(t.Context(), w.target, w.message, func() {
		if took := time.Since(began); took < time.Second { // it looks no longer than that
			t.Errorf("it was sent again after %v", took)
		}
	})
	if err != nil || receipt.Reason != events.RateLimited {
		t.Errorf("got %+v, %v; want the answer that is there", receipt, err)
	}
}

func (w *world) refuse(t *testing.T, hash string) {
	t.Helper()
	r := events.Receipt{
		Origin: origin, Target: w.target, Event: events.RequestRejected, RequestNonce: w.message.Nonce, Timestamp: 2,
		Nonce: events.NewNonce(), Reason: events.RateLimited, Detail: "No.", RequestHash: hash,
	}
	if _, err := w.js.Publish(t.Context(), r.Subject(), r.Sign(w.registry)); err != nil {
		t.Fatal(err)
	}
}
