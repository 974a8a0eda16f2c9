package registry

import (
	"context"
	"errors"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestOtherOrigin: a registry that is started under another domain name than the one that it signed the last event with says so
// before it serves anything. A stranger's event stops nobody.
func TestOtherOrigin(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	w.run()()
	target, err := events.ParseTarget("org.omiappreg.alice.shop")
	if err != nil {
		t.Fatal(err)
	}
	publish := func(origin string, key events.SigningKey) {
		t.Helper()
		event := events.Invalidation{
			Origin: origin, Target: target, Event: events.ServiceBinding,
			NewKey: events.GenerateSigningKey().Public(), GracePeriodExpiry: 5, Timestamp: 5, Nonce: events.NewNonce(), Sequence: 1,
		}
		if _, err := w.js.Publish(t.Context(), events.InvalidationSubject+event.Target.String(), event.Sign(key)); err != nil {
			t.Fatal(err)
		}
	}
	publish("elsewhere.example", events.GenerateSigningKey())
	w.run()()
	publish("elsewhere.example", testKey)
	r, err := New(Config{Policy: Policy{Origin: testOrigin}, Key: testKey, Store: w.store, Conn: w.conn, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.Run(ctx); !errors.Is(err, ErrOrigin) {
		t.Errorf("it says %v", err)
	}
}
