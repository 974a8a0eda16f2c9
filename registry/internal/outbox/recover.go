package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// claimEvery is how often to look for messages that a crash left, if a look is quick.
	claimEvery  = time.Second
	claimSeldom = 15 * time.Second // and if it is slow
	claimAtMost = 512              // messages at a time
)

// errUnpublished means that the broker did not take all messages. The log has the cause.
var errUnpublished = errors.New("some messages were not published")

// recover publishes what a crash or an outage left in the outbox, until ctx ends.
func (r *Relay) recover(ctx context.Context) {
	conn := r.publisher.js.Conn()
	connected := conn.StatusChanged(nats.CONNECTED)
	defer conn.RemoveStatusListener(connected)
	for {
		looked, err := r.recoverOnce(ctx)
		if err != nil && !errors.Is(err, errUnpublished) && ctx.Err() == nil {
			r.log.Warn("recovering the outbox failed, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-connected:
			r.unsendable.retryNow() // it may be another server, or one with other settings
		case <-time.After(claimPause(looked)):
		}
	}
}

// claimPause is the time until the next look at the outbox, after a look that took this long. A
// look passes rows that are deleted but still kept, which on CockroachDB are those of some hours.
// So looks take no more than a tenth of the time, unless that would make them too rare.
func claimPause(looked time.Duration) time.Duration {
	return min(max(10*looked, claimEvery), claimSeldom)
}

// recoverOnce returns how long the last look took if it found nothing, and 0 otherwise.
func (r *Relay) recoverOnce(ctx context.Context) (looked time.Duration, err error) {
	for {
		began := time.Now()
		stale, err := r.outbox.Stale(ctx, r.now())
		if err != nil {
			return 0, err
		}
		if !stale {
			r.space.nothingWaits()
			return time.Since(began), nil
		}
		messages, err := r.outbox.Claim(ctx, claimAtMost, r.now())
		if err != nil || len(messages) == 0 {
			return 0, err
		}
		lease := r.leases.hold(messages, r.now())
		sent := r.publish(ctx, messages)
		if len(sent.messages) > 0 {
			r.log.Info("published messages that were left in the outbox", "messages", len(sent.messages))
		}
		r.delete(ctx, sent)
		r.leases.release(lease)
		if sent.err != nil {
			return 0, errUnpublished
		}
	}
}
