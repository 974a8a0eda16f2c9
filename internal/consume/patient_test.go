package consume_test

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/testenv"
)

// lonely reports that it has heard nothing, not even a heartbeat, before anything else does.
type lonely struct {
	jetstream.MessagesContext
	tell func()
}

// Next implements [jetstream.MessagesContext].
func (l lonely) Next(opts ...jetstream.NextOpt) (jetstream.Msg, error) {
	msg, err := l.MessagesContext.Next(opts...)
	if errors.Is(err, jetstream.ErrNoHeartbeat) {
		l.tell()
	}
	return msg, err
}

// TestPatient: after silence, the iterator pulls once more, and gets what has come since. After
// more silence, it says so.
func TestPatient(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	server, err := url.Parse(q.broker.URL())
	if err != nil {
		t.Fatal(err)
	}
	way := testenv.NewProxy(t, server.Host)
	js, err := jetstream.New(testenv.Connect(t, "nats://"+way.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.CreateConsumer(t.Context(), "Q", jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages(jetstream.PullHeartbeat(time.Second), jetstream.PullExpiry(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(messages.Stop)
	silences := 0
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	patient := consume.NewIterator(ctx, lonely{messages, func() {
		if silences++; silences == 1 {
			way.Restore()
			q.publish("late")
		}
	}}, func() error { return nil })
	way.Stall()
	msg, err := patient.Next()
	if err != nil || string(msg.Data()) != "late" || silences != 1 {
		t.Fatalf("something comes late: %v, %v, after %d silences", msg, err, silences)
	}
	way.Stall()
	if _, err := patient.Next(); !errors.Is(err, jetstream.ErrNoHeartbeat) || silences != 3 {
		t.Errorf("nothing comes, and nothing again: %v, after %d silences", err, silences)
	}
}
