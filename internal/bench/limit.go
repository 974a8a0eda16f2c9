package bench

import (
	"context"
	"crypto/ed25519"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"omiappreg.org/keyrotation/events"
)

// What of Ed25519 a rotation needs, whatever else is saved: the registry verifies the request, and each of two subscribers
// the event; the registry signs the event and the receipt.
const (
	VerificationsPerRotation = 3
	SignaturesPerRotation    = 2
)

// signedBytes is about what the canonical form of an event has.
const signedBytes = 400

// SignatureLimit measures for so long how many rotations a second all cores together could do if they did nothing but the
// Ed25519 work of them, one by one with the standard library.
func SignatureLimit(ctx context.Context, span time.Duration) float64 {
	ctx, stop := context.WithTimeout(ctx, span)
	defer stop()
	var done atomic.Int64
	var running sync.WaitGroup
	began := time.Now()
	for range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			private := events.GenerateSigningKey().Private()
			public := private.Public().(ed25519.PublicKey)
			message := make([]byte, signedBytes)
			signature := ed25519.Sign(private, message)
			for ctx.Err() == nil {
				for range VerificationsPerRotation {
					ed25519.Verify(public, message, signature)
				}
				for range SignaturesPerRotation {
					signature = ed25519.Sign(private, message)
				}
				done.Add(1)
			}
		})
	}
	running.Wait()
	return float64(done.Load()) / time.Since(began).Seconds()
}
