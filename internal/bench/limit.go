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

// The Ed25519 work that a rotation always needs: the registry verifies the request and signs the
// event and the receipt, and each of two subscribers verifies the event.
const (
	VerificationsPerRotation = 3
	SignaturesPerRotation    = 2
)

// signedBytes is about the length of an event's canonical form.
const signedBytes = 400

// SignatureLimit measures, for the given time, how many rotations a second all cores together could
// do if they did nothing but the Ed25519 work, one by one with the standard library.
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
