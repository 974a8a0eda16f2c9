package billingsub

import (
	"log/slog"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestVectorEvents: every event vector, alone, to a Billing Service that knows the service at sequence 2.
func TestVectorEvents(t *testing.T) {
	t.Parallel()
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL())) // there is no registry to be asked
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range subtest.EventVectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			for _, engine := range testenv.Whole(testenv.Engines(), []string{testenv.SQLite}) {
				t.Run(engine, func(t *testing.T) {
					t.Parallel()
					testVector(t, js, testenv.Database(t, engine), &v)
				})
			}
		})
	}
}

func testVector(t *testing.T, js jetstream.JetStream, url string, v *subtest.EventVector) {
	b, err := New(t.Context(), Config{JetStream: js, DatabaseURL: url, Trust: v.Trust, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	if _, err := b.core.Store.Apply(t.Context(), v.Known, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.core.Receive(t.Context(), []incoming.Delivery{v.Delivery}); err != nil {
		t.Fatal(err)
	}
	known, e := v.Known[1], v.Event
	switch {
	case !v.Applied:
		checkKey(t, b, known.NewKey, known.Target, known.Timestamp, 0)
	case e.Event == events.ServiceBinding:
		checkKey(t, b, known.NewKey, known.Target, known.Timestamp, 0)
		checkKey(t, b, e.NewKey, e.Target, e.Timestamp, 0)
	case e.Event == events.ServiceRevocation:
		checkKey(t, b, known.NewKey, known.Target, known.Timestamp, e.GracePeriodExpiry)
	default:
		checkKey(t, b, known.NewKey, known.Target, known.Timestamp, e.GracePeriodExpiry)
		checkKey(t, b, e.NewKey, e.Target, e.Timestamp, 0)
	}
	checkKeys(t, b, v)
}

// checkKey checks the interval of one key; until 0: it is current.
func checkKey(t *testing.T, b *Billing, key events.PublicKey, target events.Target, from, until int64) {
	t.Helper()
	answer, err := b.Attribute(t.Context(), events.AttributeQuery{PublicKey: key, At: from})
	if err != nil {
		t.Fatal(err)
	}
	var got int64
	if answer.Until != nil {
		got = *answer.Until
	}
	if answer.Result != events.Valid || answer.AppID != target.App || answer.ServiceID != target.Service || answer.From != from || got != until {
		t.Errorf("got %+v until %d, want %s from %d until %d", answer, got, target, from, until)
	}
}

// checkKeys checks that no key is known beside those that there must be.
func checkKeys(t *testing.T, b *Billing, v *subtest.EventVector) {
	t.Helper()
	want := len(v.Known)
	if v.Applied && !v.Event.NewKey.IsZero() {
		want++
	}
	got := 0
	for service, err := range b.core.Store.Keyrings(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got += len(service.Keyring.Keys)
	}
	if got != want {
		t.Errorf("%d keys are known, want %d", got, want)
	}
}
