package provision

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestEnsureStreamsAgain: a start changes nothing where all is as it should be.
func TestEnsureStreamsAgain(t *testing.T) {
	t.Parallel()
	nc := testenv.Connect(t, testenv.NewBroker(t).URL())
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := Ensure(t.Context(), js, 1, Limits{}); err != nil {
		t.Fatal(err)
	}
	updated, err := nc.SubscribeSync("$JS.EVENT.ADVISORY.STREAM.UPDATED.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := Ensure(t.Context(), js, 1, Limits{}); err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), streams.Receipts)
	if err != nil {
		t.Fatal(err)
	}
	changed := stream.CachedInfo().Config
	changed.MaxAge = time.Hour
	if _, err := js.UpdateStream(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	if err := Ensure(t.Context(), js, 1, Limits{}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // ours, and the one that takes it back; none came before
		msg, err := updated.NextMsg(time.Minute)
		if err != nil || !strings.HasSuffix(msg.Subject, streams.Receipts) {
			t.Fatalf("%v, %v", msg, err)
		}
	}
}

// TestStreamOfAnotherMeaning: a stream that exists and is something else stops the start with a clear error.
func TestStreamOfAnotherMeaning(t *testing.T) {
	t.Parallel()
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	config := streams.RequestsConfig()
	config.Retention = jetstream.LimitsPolicy
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if err := Ensure(t.Context(), js, 1, Limits{}); !errors.Is(err, ErrStreamMeaning) {
		t.Errorf("got %v", err)
	}
}

func TestStreamOfAnotherLimit(t *testing.T) {
	t.Parallel()
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	config := streams.RequestsConfig()
	config.MaxMsgSize = 100
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if err := Ensure(t.Context(), js, 1, Limits{}); err != nil {
		t.Fatalf("a changed limit is applied: %v", err)
	}
	stream, err := js.Stream(t.Context(), config.Name)
	if err != nil || stream.CachedInfo().Config.MaxMsgSize != events.MaxMessage {
		t.Errorf("the limit was not applied: %v", err)
	}
}
