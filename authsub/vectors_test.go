package authsub

import (
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestVectorEvents: every event vector, alone, to an Auth Provider that knows the service at sequence 2.
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
	store, err := storage.Open(t.Context(), url, sqldb.Auth, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Apply(t.Context(), v.Known, nil); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	for restarted := range 2 { // what holds in memory holds after a restart
		a, err := New(t.Context(), Config{
			JetStream: js, DatabaseURL: url, Trust: v.Trust, Log: slog.New(slog.DiscardHandler),
			Now: func() time.Time { return time.Unix(subtest.VectorTime, 0) },
		})
		if err != nil {
			t.Fatal(err)
		}
		if restarted == 0 {
			if err := a.core.Receive(t.Context(), []incoming.Delivery{v.Delivery}); err != nil {
				t.Fatal(err)
			}
		}
		checkVector(t, a, v)
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func checkVector(t *testing.T, a *Auth, v *subtest.EventVector) {
	t.Helper()
	message := []byte("a request")
	check := func(what string, target events.Target, key events.SigningKey, want string) {
		t.Helper()
		answer := a.Verify(t.Context(), events.VerifyQuery{Target: target, Message: message, Signature: key.Sign(message)})
		if got := answer.Result + " " + answer.Key + answer.Reason; got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	known := v.Known[0].Target
	switch {
	case !v.Applied:
		check("the current key, after what was rejected", known, v.Current, "accepted current")
	case v.Event.Event == events.ServiceBinding:
		check("the bound key", v.Event.Target, v.Signer(t, v.Event.NewKey), "accepted current")
		check("another service's key", known, v.Current, "accepted current")
	case v.Event.Event == events.KeyRotation:
		check("the new key", known, v.Signer(t, v.Event.NewKey), "accepted current")
		old := "accepted grace"
		if v.Event.GracePeriodExpiry == v.Event.Timestamp {
			old = "refused expired_key"
		}
		check("the old key", known, v.Current, old)
	case v.Event.Event == events.MasterReset:
		check("the new key", known, v.Signer(t, v.Event.NewKey), "accepted current")
		check("the old key", known, v.Current, "refused expired_key")
	case v.Event.Event == events.ServiceRevocation:
		check("the old key", known, v.Current, "refused revoked_service")
	}
	if !v.Applied {
		if services := len(allServices(t, a)); services != 1 {
			t.Errorf("%d services after what was rejected, want 1", services)
		}
	}
}

func allServices(t *testing.T, a *Auth) []storage.Service {
	t.Helper()
	var list []storage.Service
	for service, err := range a.core.Store.Keyrings(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, service)
	}
	return list
}
