package registry

import (
	"context"
	"fmt"
	"log/slog"
	"math/bits"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// CheckWithStream is [Store.Check], and also compares the database with the stream of events. The
// stream must have no event that the database lacks, none with another nonce, and the last 64
// events of each service, unless garbage or repetitions on its subject have pushed out the oldest
// of them. The check ignores what is committed while it runs.
//
// It reads the stream from its start. It needs some 100 bytes of memory for each service.
func (s *Store) CheckWithStream(
	ctx context.Context, js jetstream.JetStream, trust events.Trust, now time.Time, log *slog.Logger,
) (Report, error) {
	c := &checker{trust: &trust, report: Report{Violations: []Violation{}}, began: now.Unix()}
	stream, err := invalidations(ctx, js)
	if err != nil {
		return c.report, err
	}
	c.kept = map[events.Target]kept{}
	c.perSubject = stream.CachedInfo().Config.MaxMsgsPerSubject
	if err := (comparison{store: s, trust: trust, log: log, each: c.compared}).run(ctx, stream, 1); err != nil {
		return c.report, fmt.Errorf("check: %w", err)
	}
	if err := s.checkStep(ctx, c, s.loadUnpublished); err != nil {
		return c.report, fmt.Errorf("check: %w", err)
	}
	return s.check(ctx, c, now)
}

// kept is what the stream has of one service.
type kept struct {
	messages int64
	last     int64  // the highest sequence of an event that is in the history too
	window   uint64 // which of the 64 sequences up to it the stream has: bit 0 is the last
}

const windowSize = 64

func (k *kept) has(sequence int64) bool {
	back := k.last - sequence
	return back >= 0 && back < windowSize && k.window&(1<<back) != 0
}

func (k *kept) add(sequence int64) {
	switch back := k.last - sequence; {
	case back < 0:
		k.window, k.last = k.window<<min(-back, windowSize)|1, sequence
	case back < windowSize:
		k.window |= 1 << back
	}
}

// first returns the lowest sequence that the stream has.
func (k *kept) first() int64 { return k.last - int64(bits.Len64(k.window)) + 1 }

// compared takes the result of comparing a part of the stream with the history.
func (c *checker) compared(_ context.Context, found compared, batch []streamMessage) error {
	for _, m := range batch {
		if t := m.target(); t != (events.Target{}) {
			k := c.kept[t]
			k.messages++
			c.kept[t] = k
		}
	}
	for _, at := range found.matched {
		k := c.kept[at.Target]
		k.add(at.Sequence)
		c.kept[at.Target] = k
	}
	for _, e := range found.lacking {
		c.violation(e.event.Target.String(), "the database lacks sequence %d, which the stream of events has: %s", e.event.Sequence, RecoverHint)
	}
	for _, e := range found.twice {
		c.violation(e.event.Target.String(), "sequence %d is in the stream with another event than in the database: it was issued twice", e.event.Sequence)
	}
	return nil
}

// loadUnpublished reads which services have events that wait to be published.
func (s *Store) loadUnpublished(ctx context.Context, c *checker) error {
	c.unpublished = map[string]bool{}
	err := s.each(ctx, "SELECT s.target FROM outbox o JOIN services s ON s.id = o.service", nil, func(row sqldb.Row) error {
		var name string
		err := row.Scan(&name)
		c.unpublished[name] = true
		return err
	})
	if err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}
	return nil
}

// announced compares a service's history with what the stream has of it, once all of the stream was
// read. committed is the last sequence that was committed before the check began.
func (c *checker) announced(t events.Target, committed int64) {
	if c.kept == nil || committed == 0 || c.unpublished[t.String()] {
		return
	}
	k := c.kept[t]
	from := max(1, committed-windowSize+1)
	if c.perSubject > 0 && k.messages >= c.perSubject && k.window != 0 {
		from = max(from, k.first()) // later messages have pushed out the older ones
	}
	for sequence := from; sequence <= committed; sequence++ {
		if !k.has(sequence) {
			c.violation(t.String(), "the stream lacks the event of sequence %d: a subscriber that starts now will not know of it", sequence)
			return // one is enough
		}
	}
}
