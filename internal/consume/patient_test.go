package consume_test

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestPatient: who hears nothing pulls once more, and gets what has come since; who still hears nothing says so.
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
	// Each pulls from a stream of its own: the impatient one's pull arrives late too, and would be given what the patient one
	// waits for.
	pull := func(stream, subject string) jetstream.MessagesContext {
		cfg := jetstream.StreamConfig{Name: stream, Subjects: []string{subject}, Retention: jetstream.WorkQueuePolicy}
		if _, err := js.CreateOrUpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		consumer, err := js.CreateConsumer(t.Context(), stream, jetstream.ConsumerConfig{AckPolicy: jetstream.AckExplicitPolicy})
		if err != nil {
			t.Fatal(err)
		}
		messages, err := consumer.Messages(jetstream.PullHeartbeat(500*time.Millisecond), jetstream.PullExpiry(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(messages.Stop)
		return messages
	}
	impatient, patient := pull("OTHER", "other.>"), consume.Patient(pull("Q", "q.>"))
	way.Stall()
	heard := make(chan error, 1)
	go func() {
		msg, err := patient.Next(jetstream.NextMaxWait(patience))
		if err == nil && string(msg.Data()) != "late" {
			err = errors.New(string(msg.Data()))
		}
		heard <- err
	}()
	if _, err := impatient.Next(jetstream.NextMaxWait(patience)); !errors.Is(err, jetstream.ErrNoHeartbeat) {
		t.Fatalf("nothing comes: %v", err)
	}
	impatient.Stop()
	way.Restore()
	q.publish("late")
	if err := <-heard; err != nil {
		t.Errorf("something comes late: %v", err)
	}
	way.Stall()
	if _, err := patient.Next(jetstream.NextMaxWait(patience)); !errors.Is(err, jetstream.ErrNoHeartbeat) {
		t.Errorf("nothing comes, and nothing again: %v", err)
	}
}
