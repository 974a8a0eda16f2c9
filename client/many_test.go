package client_test

import (
	"context"
	"crypto"
	"flag"
	"fmt"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// manyClients is more than the 1,000 consumers that a stream takes.
var manyClients = flag.Int("many.clients", 2000, "clients that TestManyClients has open at once")

// memory is a key store that a crash takes.
type memory struct {
	mu    sync.Mutex
	slots map[client.Slot]events.SigningKey
	text  []byte
}

func (m *memory) Signer(_ context.Context, slot client.Slot) (crypto.Signer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key, ok := m.slots[slot]
	if !ok {
		return nil, client.ErrNoKey
	}
	return key.Private(), nil
}

func (m *memory) Generate(_ context.Context, slot client.Slot) (crypto.Signer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slots[slot] = events.GenerateSigningKey()
	return m.slots[slot].Private(), nil
}

func (m *memory) Promote(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slots[client.Current] = m.slots[client.Pending]
	delete(m.slots, client.Pending)
	return nil
}

func (m *memory) Load(context.Context) ([]byte, error) { return m.text, nil }

func (m *memory) Save(_ context.Context, text []byte) error { m.text = text; return nil }

// TestManyClients: as many services as there may be have their clients open, and rotate all at once; none of them costs a consumer.
func TestManyClients(t *testing.T) {
	t.Parallel()
	conn := testenv.Connect(t, testenv.NewBroker(t).URL())
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []jetstream.StreamConfig{streams.RequestsConfig(), streams.InvalidationsConfig(), streams.ReceiptsConfig()} {
		if _, err := js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	consumers, err := conn.SubscribeSync("$JS.API.CONSUMER.>")
	if err != nil {
		t.Fatal(err)
	}
	requests := make(chan *nats.Msg, 2**manyClients) // one that is late is sent again
	if _, err := conn.ChanSubscribe(events.RotationSubject+">", requests); err != nil {
		t.Fatal(err)
	}
	registry := subtest.NewRegistry(t, events.GenerateSigningKey())
	answers := make(chan error, *manyClients)
	for i := range *manyClients {
		c, err := client.Open(t.Context(), client.Config{
			Target: must(events.ParseTarget(fmt.Sprintf("org.example.shop.s-%d", i))), Conn: conn, Trust: registry.Trust,
			Store: &memory{slots: map[client.Slot]events.SigningKey{client.Current: events.GenerateSigningKey()}},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		go func() {
			_, err := c.Rotate(t.Context())
			answers <- err
		}()
	}
	asked := map[string]*events.Request{} // each service has its request under way before one is answered
	for len(asked) < *manyClients {
		msg := returns(t, "the wait for a request", requests)
		asked[msg.Subject] = must(events.ParseRequest(msg.Subject, msg.Data))
	}
	for _, r := range asked {
		receipt := events.Receipt{
			Origin: subtest.Origin, Target: r.Target, Event: events.RequestCommitted, RequestNonce: r.Nonce, Timestamp: r.Timestamp,
			Nonce: events.NewNonce(), Sequence: 2, PublicKey: r.NewKey, GracePeriodExpiry: r.Timestamp + 300, EventNonce: events.NewNonce(),
		}
		signed := receipt.Sign(registry.Key) // a client that is about to send its request again finds it in the stream
		for _, subject := range []string{receipt.Subject(), events.AnswerSubject + r.Target.String()} {
			if err := conn.Publish(subject, signed); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range *manyClients {
		if err := returns(t, "a client", answers); err != nil {
			t.Error(err)
		}
	}
	if n, _, _ := consumers.Pending(); n > 0 {
		first, _ := consumers.NextMsg(playedWithin)
		t.Errorf("%d questions about consumers, the first on %s", n, first.Subject)
	}
}
