package registry

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

const (
	// leaseFor is how long a process owns an outbox row that it committed or claimed. It renews the
	// lease of rows that it still has in hand, so a lease only ends if the process has died or
	// can't reach the database.
	leaseFor   = 5 * time.Second
	renewAfter = leaseFor / 2
	renewEvery = time.Second
)

// stale is the condition of a row that waits to be published: its lease has ended, or was given by
// a clock that is far ahead of ours. Such a lease would end too late, so it doesn't count;
// publishing a message twice does no harm. Clocks may differ by the length of a lease before two
// replicas take messages from each other.
func stale(now time.Time) (condition string, args []any) {
	return "(lease_until < $1 OR lease_until > $2)", []any{now.UnixMilli(), now.Add(2 * leaseFor).UnixMilli()}
}

// leases renews the leases of the outbox rows that this process has in hand: rows that wait in the
// relay's queue, are on their way to the broker, or are still to be deleted. Otherwise a slow
// broker would get each message from every replica.
type leases struct {
	store  *Store
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
	if err := l.store.renewLeases(ctx, slices.Compact(places), now); err != nil {
		l.log.Warn("renewing the leases of what is being published failed: another replica may publish it too, which does no harm", "error", err)
	}
}

// renewLeases gives the rows at these places, which are sorted, a new lease.
func (s *Store) renewLeases(ctx context.Context, places []decision.OutboxPlace, now time.Time) error {
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		var p sqldb.Pipeline
		for first, last := range runs(places) {
			const text = "UPDATE outbox SET lease_until = $1 WHERE batch = $2 AND position >= $3 AND position <= $4"
			p.Exec("renew", text, []any{now.Add(leaseFor).UnixMilli(), first.Batch, first.Position, last.Position}, nil)
		}
		return tx.Run(ctx, &p)
	})
	if err != nil {
		return fmt.Errorf("renew leases in the outbox: %w", err)
	}
	return nil
}
