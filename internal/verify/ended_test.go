package verify

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/keyring"
)

// TestFloodOfBadSignatures: a service had very many keys, and many signatures come that no known
// key made. Its old keys are read only as often as they can be tried, and the registry is asked
// once.
func TestFloodOfBadSignatures(t *testing.T) {
	t.Parallel()
	const keys, flood = 100_000, 2000
	s := subtest.NewService(t, "many")
	s.Bind(start)
	for range 10 {
		s.Reset(start)
	}
	reads, asked := 0, 0
	now := start + 20
	m, err := New(Config{
		Registry: &meanwhile{registry: registry{record: s.Record(start)}, happens: func() { asked++ }},
		Log:      slog.New(slog.DiscardHandler), Now: func() time.Time { return time.Unix(now, 0) },
		EndedKeys: func(_ context.Context, _ events.Target, most int) (keyring.Keyring, error) {
			if reads++; most != endedTried {
				t.Errorf("%d keys are asked for", most)
			}
			return s.Keyring(), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Load(s.Target, s.Keyring(), keys) // a Memory needs to know no more of the others
	q, old := query(s, events.GenerateSigningKey()), query(s, s.Keys[0])
	for range flood {
		if answer, _ := m.Verify(t.Context(), q); answer.Reason != string(events.InvalidSignature) {
			t.Fatalf("%+v", answer)
		}
	}
	if most := endedASecond / endedTried; reads > most || asked > 1 {
		t.Errorf("%d bad signatures had the keys read %d times, %d at most are wanted, and the registry asked %d times", flood, reads, most, asked)
	}
	now++
	if answer, _ := m.Verify(t.Context(), old); answer.Reason != events.ExpiredKey {
		t.Errorf("after the flood, a key of long ago: %+v", answer)
	}
	if answer, _ := m.Verify(t.Context(), query(s, s.Current())); answer.Result != events.Accepted {
		t.Errorf("the current key: %+v", answer)
	}
}

// BenchmarkBadSignature measures a signature that no key made, of a service that had more keys than
// are remembered.
func BenchmarkBadSignature(b *testing.B) {
	s := subtest.NewService(b, "many")
	s.Bind(start)
	for range 10 {
		s.Reset(start)
	}
	m, err := New(Config{
		Registry: &registry{record: s.Record(start)}, Log: slog.New(slog.DiscardHandler),
		EndedKeys: func(context.Context, events.Target, int) (keyring.Keyring, error) { return s.Keyring(), nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	m.Load(s.Target, s.Keyring(), 100_000)
	q := query(s, events.GenerateSigningKey())
	for b.Loop() {
		m.Verify(b.Context(), q)
	}
}
