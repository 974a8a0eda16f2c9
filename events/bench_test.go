package events_test

import (
	"strconv"
	"testing"

	"omiappreg.org/keyrotation/events"
)

// BenchmarkParseRequest is the first check of a request, without its signatures.
func BenchmarkParseRequest(b *testing.B) {
	d := drafts()[events.Rotation]
	subject, message := d.Subject(), must(d.Sign(testKey(1)))
	b.ReportAllocs()
	b.SetBytes(int64(len(message)))
	for b.Loop() {
		if _, err := events.ParseRequest(subject, message); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkInvalidation is what a subscriber does with an event before it applies it, its signature
// included.
func BenchmarkInvalidation(b *testing.B) {
	i := someInvalidation(events.KeyRotation)
	subject, message, trust := i.Subject(), i.Sign(testKey(0)), someTrust()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := trust.Invalidation(subject, message); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSignInvalidation is what the registry does once for each commit.
func BenchmarkSignInvalidation(b *testing.B) {
	i, key := someInvalidation(events.KeyRotation), testKey(0)
	b.ReportAllocs()
	for b.Loop() {
		_ = i.Sign(key)
	}
}

// BenchmarkInvalidations is the same of many, by the event.
func BenchmarkInvalidations(b *testing.B) {
	trust, batch := someTrust(), make([]events.Published, 2*events.Together)
	for n := range batch {
		i := someInvalidation(events.KeyRotation)
		i.Nonce = events.NewNonce()
		batch[n] = events.Published{Subject: i.Subject(), Payload: i.Sign(testKey(0))}
	}
	for _, n := range []int{1, 16, events.Together, 2 * events.Together} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; i < b.N; i += n {
				for _, v := range trust.Invalidations(batch[:n]) {
					if v.Err != nil {
						b.Fatal(v.Err)
					}
				}
			}
		})
	}
}

// BenchmarkSignReceipt is what it does as often.
func BenchmarkSignReceipt(b *testing.B) {
	r := events.Receipt{
		Origin: origin, Target: someTarget(), Event: events.RequestCommitted, RequestNonce: someNonce(), Timestamp: now, Nonce: someNonce(),
		Sequence: 2, PublicKey: testKey(2).Public(), GracePeriodExpiry: now + 300, EventNonce: someNonce(),
	}
	key := testKey(0)
	b.ReportAllocs()
	for b.Loop() {
		_ = r.Sign(key)
	}
}

// BenchmarkCheckStrength is the check of a new key.
func BenchmarkCheckStrength(b *testing.B) {
	key := testKey(2).Public()
	b.ReportAllocs()
	for b.Loop() {
		if err := key.CheckStrength(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWeakKeys is the same of as many as a batch has.
func BenchmarkWeakKeys(b *testing.B) {
	for _, n := range []int{1, 16, 32, 128, 1024} {
		keys := make([]events.PublicKey, n)
		for i := range keys {
			keys[i] = testKey(byte(i)).Public()
		}
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for b.Loop() {
				events.WeakKeys(keys)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/key")
		})
	}
}
