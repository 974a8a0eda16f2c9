package authsub

import (
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// newAuth returns an Auth Provider that knows one service among others, and is not running.
func newAuth(t testing.TB) (*Auth, *subtest.Service) {
	t.Helper()
	js, err := jetstream.New(testenv.Connect(t, testenv.NewBroker(t).URL()))
	if err != nil {
		t.Fatal(err)
	}
	registry := subtest.NewRegistry(t, events.GenerateSigningKey())
	a, err := New(t.Context(), Config{
		JetStream: js, DatabaseURL: testenv.Database(t, testenv.SQLite), Trust: registry.Trust, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	s := subtest.NewService(t, "hot")
	now := time.Now().Unix()
	s.Bind(now - 20)
	s.Rotate(now-10, 300)
	if err := a.applied(t.Context(), s.Events, s.Events); err != nil {
		t.Fatal(err)
	}
	return a, s
}

// TestAppliedBefore: the database has events that this process has not heard of, since the answer to its COMMIT was lost. They
// come again, and count.
func TestAppliedBefore(t *testing.T) {
	t.Parallel()
	a, s := newAuth(t)
	if _, err := a.core.Store.Apply(t.Context(), s.Events, nil); err != nil {
		t.Fatal(err)
	}
	s.Reset(time.Now().Unix())
	if fresh, err := a.core.Store.Apply(t.Context(), s.Events, nil); err != nil || len(fresh) != 1 {
		t.Fatal(fresh, err)
	}
	if err := a.applied(t.Context(), s.Events, nil); err != nil {
		t.Fatal(err)
	}
	message := []byte("a request")
	for i, want := range []string{events.Refused, events.Refused, events.Accepted} {
		q := events.VerifyQuery{Target: s.Target, Message: message, Signature: s.Keys[i].Sign(message)}
		if answer := a.Verify(t.Context(), q); answer.Result != want {
			t.Errorf("key %d: %+v", i, answer)
		}
	}
}

// TestVerifyAllocatesNothing holds for the path of a good signature by the current key.
func TestVerifyAllocatesNothing(t *testing.T) {
	a, s := newAuth(t)
	message := []byte("a request")
	q := events.VerifyQuery{Target: s.Target, Message: message, Signature: s.Current().Sign(message)}
	ctx := t.Context()
	allocs := testing.AllocsPerRun(100, func() {
		if a.Verify(ctx, q).Result != events.Accepted {
			t.Error("refused")
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// BenchmarkVerify is the path of a good signature by the current key; its parts are measured in internal/verify.
func BenchmarkVerify(b *testing.B) {
	a, s := newAuth(b)
	message := []byte("a request")
	q := events.VerifyQuery{Target: s.Target, Message: message, Signature: s.Current().Sign(message)}
	b.ReportAllocs()
	for b.Loop() {
		if a.Verify(b.Context(), q).Result != events.Accepted {
			b.Fatal("refused")
		}
	}
}
