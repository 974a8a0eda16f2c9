package incoming_test

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"slices"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/incoming"
)

const origin = "omiappreg.org"

func someKey(n byte) events.SigningKey {
	return events.NewSigningKey(ed25519.NewKeyFromSeed(slices.Repeat([]byte{n}, ed25519.SeedSize)))
}

func someTrust(tb testing.TB) events.Trust {
	tb.Helper()
	trust, err := events.NewTrust(origin, someKey(0).Public())
	if err != nil {
		tb.Fatal(err)
	}
	return trust
}

// deliveries returns n bindings of n services, as the registry publishes them.
func deliveries(tb testing.TB, n int) []incoming.Delivery {
	tb.Helper()
	batch := make([]incoming.Delivery, n)
	for i := range batch {
		target, err := events.ParseTarget(fmt.Sprintf("org.omiappreg.alice.business_app.7f8a9d.cms-article-%d", i))
		if err != nil {
			tb.Fatal(err)
		}
		e := events.Invalidation{
			Origin: origin, Target: target, Event: events.KeyRotation, OldKey: someKey(1).Public(), NewKey: someKey(2).Public(),
			Timestamp: 1_705_412_600, GracePeriodExpiry: 1_705_412_900, Nonce: events.NewNonce(), Sequence: 2,
		}
		batch[i] = incoming.Delivery{
			Subject: e.Subject(), Payload: e.Sign(someKey(0)), Sequence: uint64(i + 1), Published: time.Unix(int64(i), 0),
		}
	}
	return batch
}

// misSign replaces the signature of a message by an invalid one.
func misSign(d *incoming.Delivery) {
	start := bytes.Index(d.Payload, []byte(`"signature":"`)) + len(`"signature":"`)
	if first := &d.Payload[start]; *first == 'A' {
		*first = 'B'
	} else {
		*first = 'A'
	}
}

// TestSort: each message of a batch of any size is judged by itself, and the order stays.
func TestSort(t *testing.T) {
	t.Parallel()
	trust := someTrust(t)
	for _, n := range []int{0, 1, 2, 15, 16, 17, 33, 63, 64, 65, 127, 129, 256} {
		batch := deliveries(t, n)
		want := map[uint64]events.Reason{}
		for i := range batch {
			switch {
			case i%11 == 3:
				batch[i].Payload = []byte("{}")
				want[batch[i].Sequence] = events.InvalidField
			case i%100 == 5: // so that some parts of a large batch are spoilt, and others are not
				misSign(&batch[i])
				want[batch[i].Sequence] = events.UntrustedSignature
			case i%7 == 1:
				batch[i].Subject += "-other"
				want[batch[i].Sequence] = events.TargetMismatch
			}
		}
		sorted := incoming.Sort(trust, batch)
		if len(sorted.Events)+len(sorted.Refused) != n || len(sorted.Published) != len(sorted.Events) || len(sorted.Refused) != len(want) {
			t.Fatalf("of %d, %d events and %d refused, not %d", n, len(sorted.Events), len(sorted.Refused), len(want))
		}
		for _, r := range sorted.Refused {
			if r.Reason != want[r.Sequence] {
				t.Errorf("message %d of %d: %s, want %q", r.Sequence, n, r.Refusal, want[r.Sequence])
			}
		}
		for i, e := range sorted.Events {
			d := batch[sorted.Published[i].Unix()]
			if e.Subject() != d.Subject {
				t.Errorf("event %d of %d: %s stands for %s", i, n, e.Subject(), d.Subject)
			}
			if i > 0 && !sorted.Published[i].After(sorted.Published[i-1]) {
				t.Errorf("event %d of %d: out of order", i, n)
			}
		}
	}
}

// BenchmarkSort measures what a subscriber does with a batch before it applies it: one event of an
// idle system, and those of a backlog.
func BenchmarkSort(b *testing.B) {
	for _, n := range []int{1, 4, 16, 64, 256} {
		batch, trust := deliveries(b, n), someTrust(b)
		benchmarkSort(b, fmt.Sprintf("good/%d", n), trust, batch)
	}
	// The worst case that a party with the right to publish can cause: one bad signature among all
	// that are checked together.
	batch, trust := deliveries(b, 256), someTrust(b)
	for i := 63; i < len(batch); i += 64 {
		misSign(&batch[i])
	}
	benchmarkSort(b, "one-in-64-bad/256", trust, batch)
}

func benchmarkSort(b *testing.B, name string, trust events.Trust, batch []incoming.Delivery) {
	b.Helper()
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			incoming.Sort(trust, batch)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch)), "ns/event")
	})
}
