package events_test

import (
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

// BenchmarkInvalidation is what a subscriber does with an event before it applies it, its signature included.
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
