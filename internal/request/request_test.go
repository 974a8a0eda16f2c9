package request_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/request"
	"omiappreg.org/keyrotation/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

const origin = "omiappreg.org"

// TestSendBelievesItsOwnAnswer: of all that may come on the subject, only one message answers the request.
func TestSendBelievesItsOwnAnswer(t *testing.T) {
	t.Parallel()
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []jetstream.StreamConfig{events.RequestStreamConfig(), events.ReceiptStreamConfig()} {
		if _, err := js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	target, err := events.ParseTarget("org.example.shop.cms")
	if err != nil {
		t.Fatal(err)
	}
	registry, stranger, newKey := events.GenerateSigningKey(), events.GenerateSigningKey(), events.GenerateSigningKey()
	trust, err := events.NewTrust(origin, registry.Public())
	if err != nil {
		t.Fatal(err)
	}
	draft := events.Draft{Kind: events.Rotation, Target: target, Timestamp: 1, Nonce: events.NewNonce()}
	m, err := request.Sign(draft, events.GenerateSigningKey().Private(), newKey.Private())
	if err != nil {
		t.Fatal(err)
	}
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

	sender := request.Sender{JetStream: js, Trust: trust}
	stored := false
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if receipt, err := sender.Send(ctx, target, m, func() { stored = true }); !errors.Is(err, request.ErrNoAnswer) || !stored {
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
