package registryclient_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// requests returns the messages of the stream of requests.
func (w *world) requests(t *testing.T) (list []string) {
	t.Helper()
	stream, err := w.js.Stream(t.Context(), streams.Requests)
	if err != nil {
		t.Fatal(err)
	}
	for at := uint64(1); at <= stream.CachedInfo().State.LastSeq; at++ {
		if msg, err := stream.GetMsg(t.Context(), at); err == nil {
			list = append(list, string(msg.Data))
		}
	}
	return list
}

// TestSendWhereItsIDIsTaken: a stranger publishes with the ID of our request first, so the broker
// takes ours for a copy of that message. Ours is stored all the same.
func TestSendWhereItsIDIsTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := events.RequestMsgID(w.message.Subject, w.message.Nonce)
	if _, err := w.js.Publish(t.Context(), w.message.Subject, []byte("{"), jetstream.WithMsgID(id)); err != nil {
		t.Fatal(err)
	}
	receipt, err := w.sender.Send(t.Context(), w.target, w.message, func() {
		if got := w.requests(t); len(got) != 2 || got[1] != w.message.Payload {
			t.Errorf("the stream has %q", got)
		}
		w.publish(t, w.committed(), w.registry)
	})
	if err != nil || receipt.Event != events.RequestCommitted {
		t.Errorf("got %+v, %v", receipt, err)
	}
}

// TestSendSentBefore: the broker has the message already, but its confirmation was lost. Send waits
// for the answer to that message, and sends nothing a second time.
func TestSendSentBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.sender.Publish(t.Context(), w.message); err != nil {
		t.Fatal(err)
	}
	w.publish(t, w.committed(), w.registry)
	receipt, err := w.sender.Send(t.Context(), w.target, w.message, func() { t.Error("it was sent again") })
	if err != nil || receipt.Event != events.RequestCommitted || len(w.requests(t)) != 1 {
		t.Errorf("got %+v, %v; %d requests", receipt, err, len(w.requests(t)))
	}
}

// TestSendWhereTooMuchComes: the broker refuses messages that come faster than it can store them.
// The request is published again and again, and the error says why it is not stored.
func TestSendWhereTooMuchComes(t *testing.T) {
	t.Parallel()
	w := newWorldAt(t, floodedBroker(t))
	seen := make(chan *nats.Msg, 64)
	if _, err := testenv.Connect(t, w.url).ChanSubscribe(w.message.Subject, seen); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithCancel(t.Context())
	sent := make(chan error, 1)
	go func() { sent <- w.sender.Publish(short, w.message) }()
	for range 3 {
		<-seen
	}
	cancel()
	if err := <-sent; !errors.Is(err, registryclient.ErrNotStored) || !strings.Contains(err.Error(), "more messages come to it than it can store") {
		t.Errorf("while too much comes: %v", err)
	}
}

// floodedBroker starts a broker that has no room for a message that waits to be stored.
func floodedBroker(t *testing.T) (url string) {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, StreamMaxBufferedSize: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the broker does not start")
	}
	return s.ClientURL()
}

// TestSendWhereThereIsNoRoom: the largest number of requests is waiting. The error says so, and a
// message that is sent then is stored as soon as there is room.
func TestSendWhereThereIsNoRoom(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range streams.RequestsWaiting {
		if _, err := w.js.Publish(t.Context(), w.message.Subject, nil); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := w.sender.Send(short, w.target, w.message, nil)
	if !errors.Is(err, registryclient.ErrNotStored) || !strings.Contains(err.Error(), "wait already") {
		t.Errorf("without room: %v", err)
	}
	sent := make(chan error, 1)
	go func() { sent <- w.sender.Publish(t.Context(), w.message) }()
	stream, err := w.js.Stream(t.Context(), streams.Requests)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Errorf("with room: %v", err)
	}
	testenv.Eventually(t, time.Minute, "it is stored", func() error {
		if got := w.requests(t); got[len(got)-1] != w.message.Payload {
			return fmt.Errorf("the last of %d is another", len(got))
		}
		return nil
	})
}
