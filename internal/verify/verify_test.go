package verify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
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

// TestSettled: an answer is settled unless the registry might have contradicted it and gave no
// answer.
func TestSettled(t *testing.T) {
	t.Parallel()
	away, unknown := errors.New("away"), registryclient.ErrUnknownService
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

// meanwhile is a registry that takes so long that something happens before its answer.
type meanwhile struct {
	registry
	happens func()
}

func (m *meanwhile) ServiceRecord(ctx context.Context, target events.Target) (events.ServiceRecord, error) {
	m.happens()
	return m.registry.ServiceRecord(ctx, target)
}

// TestEventDuringLookup: an event comes while the registry is asked, and its record is older, or
// there is none.
func TestEventDuringLookup(t *testing.T) {
	t.Parallel()
	ask := &meanwhile{}
	m, s := newMemory(t, ask)
	s.Rotate(start+15, 300) // this event has not come
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

// TestKnownKeys: the registry is not asked about a signature by an accepted key, nor about one by a
// key that has ended.
func TestKnownKeys(t *testing.T) {
	t.Parallel()
	ask := &meanwhile{happens: func() { t.Error("the registry was asked") }}
	m, s := newMemory(t, ask)
	s.Reset(start + 15)
	s.Rotate(start+15, 300)
	m.Apply(s.Events[2:])
	for i, want := range []string{"refused expired_key", "refused expired_key", "accepted grace", "accepted current"} {
		answer, settled := m.Verify(t.Context(), query(s, s.Keys[i]))
		if got := answer.Result + " " + answer.Key + answer.Reason; got != want || !settled {
			t.Errorf("key %d: %s, settled: %v; want %s", i, got, settled, want)
		}
	}
}

// TestVerifyAllocatesNothing is about the path of a good signature by the current key.
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

// BenchmarkVerify measures the path of a good signature by the current key, and BenchmarkEd25519
// the part of it that is not ours.
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

// BenchmarkAround measures everything in Verify except the arithmetic of Ed25519, for a good
// signature: by the current key of one of many services, a thousand of which are busy, or all of
// them; and by a key in grace, after the current one. Each runs alone, and while 10,000 rotations a
// second are applied, whose own allocations count, too.
func BenchmarkAround(b *testing.B) {
	const services, busy = 100_000, 1000
	m, s := newMemory(b, &registry{})
	m.now = time.Now // as it is in use
	last := make([]events.Invalidation, services)
	for i := range last {
		last[i] = s.Events[1]
		last[i].GracePeriodExpiry = time.Now().Unix() + 300
		last[i].Target = must(events.ParseTarget(fmt.Sprintf("%s.cms-article-%d", s.Target.App, i)))
		m.Load(last[i].Target, keyring.Of(&last[i]), 2)
	}
	// In other bytes than those that are kept, and in the order of the questions, as if each had
	// just been decoded.
	var names strings.Builder
	order := rand.Perm(services)
	for _, i := range order {
		names.WriteString(last[i].Target.String())
	}
	rest, asked := names.String(), make([]events.Target, services)
	for n, i := range order {
		name := rest[:len(last[i].Target.String())]
		asked[n], rest = must(events.ParseTarget(name)), rest[len(name):]
	}
	for _, tc := range []struct {
		name    string
		asked   []events.Target
		accepts func(target events.Target) bool
	}{
		{"current", asked[:busy], m.acceptsCurrent}, {"current-of-all", asked, m.acceptsCurrent}, {"grace", asked[:busy], m.acceptsGrace},
	} {
		around := func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if !tc.accepts(tc.asked[i%len(tc.asked)]) {
					b.Fatal("refused")
				}
			}
		}
		b.Run(tc.name+"/quiet", around)
		b.Run(tc.name+"/applying", func(b *testing.B) {
			ctx, stop := context.WithCancel(b.Context())
			var writer sync.WaitGroup
			applied := 0
			writer.Go(func() {
				began := time.Now()
				for tick := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-tick.C {
					for ; applied < int(time.Since(began).Milliseconds())*10; applied += 10 {
						batch := last[applied%services:][:10]
						for i := range batch {
							follow(&batch[i])
						}
						m.Apply(batch)
					}
				}
			})
			around(b)
			stop()
			writer.Wait()
			b.ReportMetric(float64(applied)/b.Elapsed().Seconds(), "applied/s")
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// follow turns an event into the rotation that follows it.
func follow(e *events.Invalidation) {
	e.Sequence++
	e.OldKey = e.NewKey
	b := e.OldKey.Bytes()
	binary.LittleEndian.PutUint64(b, uint64(e.Sequence))
	e.NewKey = must(events.PublicKeyFromBytes(b))
}

// acceptsCurrent does what Verify does around the one check of a signature by the current key.
func (m *Memory) acceptsCurrent(target events.Target) bool {
	answer, ok := m.keyrings.find(target).accepted()
	return ok && answer.Key == events.KeyCurrent
}

// acceptsGrace does what Verify does in addition, around the check of the next key.
func (m *Memory) acceptsGrace(target events.Target) bool {
	var room room
	have := m.keyrings.find(target).unpack(&room)
	now := m.now().Unix()
	key := &have.keyring.Keys[1]
	return have.keyring.At(*key, now) == keyring.InGrace && have.accepted(key).Key == events.KeyGrace
}

// BenchmarkApply measures a rotation without the database, of a service with so many keys, among
// 100,000 other services, or a few.
func BenchmarkApply(b *testing.B) {
	for _, services := range []int{1, 100_000} {
		for _, keys := range []int{2, 10, 60} {
			b.Run(fmt.Sprintf("services=%d/keys=%d", services, keys), func(b *testing.B) { benchApply(b, services, keys) })
		}
	}
}

func benchApply(b *testing.B, services, keys int) {
	m, s := newMemory(b, &registry{})
	for i := range services {
		e := s.Events[0]
		e.Target = must(events.ParseTarget(fmt.Sprintf("%s.cms-article-%d", s.Target.App, i)))
		m.Load(e.Target, keyring.Of(&e), 1)
	}
	e := s.Events[1:2]
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e[0].GracePeriodExpiry = start + 1000
		follow(&e[0])
		if i%keys == keys-1 {
			m.keyrings.load(e[0].Target, known{keyring.Of(&e[0]), e[0].Sequence}, start)
			continue
		}
		m.Apply(e)
	}
}
