package outbox

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

const (
	renewAfter = ledger.LeaseFor / 2
	renewEvery = time.Second
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
