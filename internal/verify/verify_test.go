package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/lookup"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/keyring"
)

const start = int64(1_705_412_600)

// registry answers with one record, or an error.
type registry struct {
	record events.ServiceRecord
	err    error
}

func (r *registry) ServiceRecord(context.Context, events.Target) (events.ServiceRecord, error) {
	return r.record, r.err
}

// newMemory returns a Memory that knows one service, which has rotated once.
func newMemory(t testing.TB, ask Registry) (*Memory, *subtest.Service) {
	t.Helper()
	m, err := New(Config{
		Registry: ask, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.Unix(start+20, 0) },
		LookupMemory: time.Nanosecond, // none: the clock stands still
	})
	if err != nil {
		t.Fatal(err)
	}
	s := subtest.NewService(t, "hot")
	s.Bind(start)
	s.Rotate(start+10, 300)
	m.Apply(s.Events)
	return m, s
}

func query(s *subtest.Service, key events.SigningKey) events.VerifyQuery {
	message := []byte("a request")
	return events.VerifyQuery{Target: s.Target, Message: message, Signature: key.Sign(message)}
}

// TestSettled: an answer is settled but where the registry might have contradicted it, and gave no answer.
func TestSettled(t *testing.T) {
	t.Parallel()
	away, unknown := errors.New("away"), lookup.ErrUnknownService
	nobody, strange := subtest.NewService(t, "nobody"), events.GenerateSigningKey()
	_, s := newMemory(t, &registry{})
	s.Reset(start + 20)
	record := registry{record: s.Record(start + 20)}
	for name, tc := range map[string]struct {
		q        events.VerifyQuery
		registry registry
		want     string
		settled  bool
	}{
		"the current key":               {query(s, s.Keys[1]), registry{err: away}, "accepted current", true},
		"a key in grace":                {query(s, s.Keys[0]), registry{err: away}, "accepted grace", true},
		"a newer key, nobody answers":   {query(s, s.Keys[2]), registry{err: away}, "refused invalid_signature", false},
		"a newer key":                   {query(s, s.Keys[2]), record, "accepted current", true},
		"a strange key, nobody answers": {query(s, strange), registry{err: away}, "refused invalid_signature", false},
		"a strange key":                 {query(s, strange), record, "refused invalid_signature", true},
		"a stranger, nobody answers":    {query(nobody, strange), registry{err: away}, "refused unknown_service", false},
		"a stranger":                    {query(nobody, strange), registry{err: unknown}, "refused unknown_service", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, _ := newMemory(t, &tc.registry)
			answer, settled := m.Verify(t.Context(), tc.q)
			if got := answer.Result + " " + answer.Key + answer.Reason; got != tc.want || settled != tc.settled {
				t.Errorf("%s, settled: %v; want %s, %v", got, settled, tc.want, tc.settled)
			}
		})
	}
}

// meanwhile is a registry whose answer takes so long that something happens.
type meanwhile struct {
	registry
	happens func()
}

func (m *meanwhile) ServiceRecord(ctx context.Context, target events.Target) (events.ServiceRecord, error) {
	m.happens()
	return m.registry.ServiceRecord(ctx, target)
}

// TestEventDuringLookup: an event comes while the registry is asked, and its record is older, or there is none.
func TestEventDuringLookup(t *testing.T) {
	t.Parallel()
	ask := &meanwhile{}
	m, s := newMemory(t, ask)
	s.Rotate(start+15, 300) // which has not come
	ask.record = s.Record(start + 15)
	ask.happens = func() {
		s.Reset(start + 20)
		m.Apply(s.Events[2:])
	}
	if answer, settled := m.Verify(t.Context(), query(s, s.Keys[2])); answer.Reason != events.ExpiredKey || !settled {
		t.Errorf("a key that was reset: %+v", answer)
	}
	ask = &meanwhile{registry: registry{err: errors.New("away")}}
	m, s = newMemory(t, ask)
	next := events.GenerateSigningKey()
	ask.happens = func() {
		s.RotateTo(start+20, 300, next)
		m.Apply(s.Events[2:])
	}
	if answer, settled := m.Verify(t.Context(), query(s, next)); answer.Key != events.KeyCurrent || !settled {
		t.Errorf("a key that came: %+v", answer)
	}
}

// TestVerifyAllocatesNothing holds for the path of a good signature by the current key.
func TestVerifyAllocatesNothing(t *testing.T) {
	m, s := newMemory(t, &registry{})
	q, ctx := query(s, s.Current()), t.Context()
	allocs := testing.AllocsPerRun(100, func() {
		if answer, _ := m.Verify(ctx, q); answer.Result != events.Accepted {
			t.Error("refused")
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// BenchmarkVerify is the path of a good signature by the current key; BenchmarkEd25519 is the part of it that is not
// ours.
func BenchmarkVerify(b *testing.B) {
	m, s := newMemory(b, &registry{})
	q := query(s, s.Current())
	b.ReportAllocs()
	for b.Loop() {
		if answer, _ := m.Verify(b.Context(), q); answer.Result != events.Accepted {
			b.Fatal("refused")
		}
	}
}

func BenchmarkEd25519(b *testing.B) {
	key := events.GenerateSigningKey()
	message := []byte("a request")
	public, signature := key.Public(), key.Sign(message)
	b.ReportAllocs()
	for b.Loop() {
		if !public.Verify(message, signature) {
			b.Fatal("refused")
		}
	}
}

// BenchmarkAround is all of Verify but the arithmetic of Ed25519, for a good signature by the current key of one of many
// services, a thousand of which are busy: alone, and while 10,000 events a second are applied,
// whose own allocations are counted too.
func BenchmarkAround(b *testing.B) {
	const services, busy = 100_000, 1000
	m, s := newMemory(b, &registry{})
	m.now = time.Now // as it is in use
	list := make([]events.Invalidation, services)
	for i := range list {
		e := s.Events[0]
		target, err := events.ParseTarget(fmt.Sprintf("%s.cms-article-%d", e.Target.App, i))
		if err != nil {
			b.Fatal(err)
		}
		e.Target = target
		list[i] = e
		m.Load(target, keyring.Of(&e), 1)
	}
	asked := make([]events.Target, busy)
	for i := range asked { // in other bytes than those that are kept, as if it had just been decoded
		var err error
		if asked[i], err = events.ParseTarget(list[i*(services/busy)].Target.String()); err != nil {
			b.Fatal(err)
		}
	}
	around := func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			var room room
			now := m.now().Unix()
			have, found := m.keyrings.find(asked[i%busy], &room)
			if !found || have.keyring.At(have.keyring.Keys[0], now) != keyring.Current ||
				have.accepted(&have.keyring.Keys[0]).Result != events.Accepted {
				b.Fatal("refused")
			}
		}
	}
	b.Run("quiet", around)
	b.Run("applying", func(b *testing.B) {
		ctx, stop := context.WithCancel(b.Context())
		var writer sync.WaitGroup
		applied := 0
		writer.Go(func() {
			for tick := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-tick.C {
				m.Apply(list[applied%services:][:10])
				applied += 10
			}
		})
		around(b)
		stop()
		writer.Wait()
		b.ReportMetric(float64(applied)/b.Elapsed().Seconds(), "applied/s")
	})
}

// BenchmarkApply is what an event costs beside the database.
func BenchmarkApply(b *testing.B) {
	m, s := newMemory(b, &registry{})
	b.ReportAllocs()
	for b.Loop() {
		m.Apply(s.Events[1:2])
	}
}
