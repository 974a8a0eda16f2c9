package outbox

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

const (
	renewAfter = ledger.LeaseFor / 2
	renewEvery = time.Second

	// claimEvery is how often to look for messages that a crash left, if a look is quick.
	claimEvery  = time.Second
	claimSeldom = 15 * time.Second // and if it is slow
	claimAtMost = 512              // messages at a time
)

// leases renews the leases of the outbox rows that this process has in hand: rows that wait in the
// relay's queue, are on their way to the broker, or are still to be deleted. Otherwise a slow
// broker would get each message from every replica.
type leases struct {
	outbox *ledger.Outbox
	log    *slog.Logger
	now    func() time.Time
	within time.Duration // for the database

	mu   sync.Mutex
	held map[*lease]struct{}
}

// lease is a lease on the rows of these messages.
type lease struct {
	messages []decision.Message
	from     time.Time // when it was given
}

// hold renews the lease of these messages from now on. Their present lease was given at from.
func (l *leases) hold(messages []decision.Message, from time.Time) *lease {
	one := &lease{messages, from}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[one] = struct{}{}
	return one
}

// release ends that. Any replica may claim the remaining rows once their lease has ended.
func (l *leases) release(list ...*lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range list {
		delete(l.held, one)
	}
}

// run renews until ctx ends.
func (l *leases) run(ctx context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.renew(ctx)
		}
	}
}

// renew renews what is due.
func (l *leases) renew(ctx context.Context) {
	now := l.now()
	var places []decision.OutboxPlace
	l.mu.Lock()
	for one := range l.held {
		if now.Sub(one.from) >= renewAfter {
			one.from = now
			for _, m := range one.messages {
				places = append(places, m.Place)
			}
		}
	}
	l.mu.Unlock()
	if len(places) == 0 {
		return
	}
	slices.SortFunc(places, decision.ComparePlaces)
	ctx, cancel := context.WithTimeout(ctx, l.within)
	defer cancel()
	if err := l.outbox.RenewLeases(ctx, slices.Compact(places), now); err != nil {
		l.log.Warn("renewing the leases of what is being published failed: another replica may publish it too, which does no harm", "error", err)
	}
}

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
