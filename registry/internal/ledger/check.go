package ledger

import (
	"context"
	"database/sql"
	"fmt"
	"math/bits"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// outboxPatience is how long a message may wait in the outbox before the check reports it.
const outboxPatience = time.Minute

// Violation is something in the database that must never happen.
type Violation struct {
	Target string // empty: not about one service
	What   string
}

// Report is what [Admin.Check] found.
type Report struct {
	Services, Changes, Outbox, DeadLetters int
	Violations                             []Violation
}

// Check verifies what must always hold in the database. With a trust, it verifies the receipts.
// With the content of the stream of events, it also looks there for the last events of each
// service.
func (s *Admin) Check(ctx context.Context, trust *events.Trust, content *StreamContent, now time.Time) (Report, error) {
	s = &Admin{tables{s.db.Unhurried()}} // it reads all of them
	c := &checker{trust: trust, content: content, now: now}
	if content != nil {
		if err := s.checkStep(ctx, c, s.loadUnpublished); err != nil {
			return c.report, fmt.Errorf("check: %w", err)
		}
	}
	for _, step := range []func(context.Context, *checker) error{
		s.checkHistory, s.checkServices, s.checkMasterKeys, s.checkOutbox,
	} {
		if err := s.checkStep(ctx, c, step); err != nil {
			return c.report, fmt.Errorf("check: %w", err)
		}
	}
	var err error
	if c.report.DeadLetters, err = (&Letters{s.tables}).Count(ctx); err != nil {
		return c.report, fmt.Errorf("check: %w", err)
	}
	return c.report, nil
}

// checkStep runs a step. If [sqldb.DB.Read] repeats it, the step starts again from what was found
// before it.
func (s *Admin) checkStep(ctx context.Context, c *checker, step func(context.Context, *checker) error) error {
	before := *c
	return s.db.Read(ctx, func() error {
		*c = before
		return step(ctx, c)
	})
}

// checker goes through the history of all services, one after the other.
type checker struct {
	trust  *events.Trust
	now    time.Time
	report Report
	last   change // of the service at hand

	// With the stream of events:
	content     *StreamContent  // nil: not compared
	unpublished map[string]bool // services with changes in the outbox
	// committed: the last sequence of the service at hand that was committed before the check
	// began.
	committed int64
}

// change is one row of the history.
type change struct {
	event        events.Invalidation
	requestNonce events.Nonce
	receipt      []byte
}

func (c *checker) violation(target, what string, args ...any) {
	c.report.Violations = append(c.report.Violations, Violation{Target: target, What: fmt.Sprintf(what, args...)})
}

func (s *Admin) checkHistory(ctx context.Context, c *checker) error {
	err := s.each(ctx, `SELECT s.target, h.sequence, h.event, h.old_public_key, h.public_key, h.grace_period_expiry,
		h.committed_at, h.event_nonce, h.request_nonce, h.receipt, h.end_earlier FROM history h JOIN services s ON s.id = h.service
		ORDER BY s.target, h.sequence`, nil, func(row sqldb.Row) error {
		var next change
		e := &next.event
		var endEarlier int64
		if err := row.Scan(target(&e.Target), &e.Sequence, &e.Event, keyColumn{&e.OldKey}, keyColumn{&e.NewKey},
			&e.GracePeriodExpiry, &e.Timestamp, nonceText(&e.Nonce), nonceText(&next.requestNonce), &next.receipt, &endEarlier); err != nil {
			return err
		}
		e.EndEarlier = endEarlier == 1
		c.report.Changes++
		if e.Target != c.last.event.Target {
			c.announced(c.last.event.Target, c.committed)
			c.committed = 0
		}
		if c.content != nil && e.Timestamp < c.content.Began {
			c.committed = e.Sequence
		}
		c.follow(&next)
		c.last = next
		return nil
	})
	if err == nil {
		c.announced(c.last.event.Target, c.committed)
	}
	return err
}

// follow compares a change with the one before it.
func (c *checker) follow(next *change) {
	e, before := &next.event, &c.last.event
	name := e.Target.String()
	if e.Target != before.Target {
		before = &events.Invalidation{}
	}
	if e.Sequence != before.Sequence+1 {
		c.violation(name, "sequence %d follows sequence %d", e.Sequence, before.Sequence)
	}
	if e.OldKey != before.NewKey {
		c.violation(name, "the old key of sequence %d is not the key that sequence %d brought", e.Sequence, before.Sequence)
	}
	if (e.Event == events.ServiceBinding) != before.NewKey.IsZero() {
		c.violation(name, "sequence %d is a %s although the service was bound: %t", e.Sequence, e.Event, !before.NewKey.IsZero())
	}
	if (e.Event == events.ServiceRevocation) != e.NewKey.IsZero() {
		c.violation(name, "sequence %d is a %s and brings a key: %t", e.Sequence, e.Event, !e.NewKey.IsZero())
	}
	if e.Timestamp < before.Timestamp {
		c.violation(name, "sequence %d was committed before sequence %d", e.Sequence, before.Sequence)
	}
	if e.GracePeriodExpiry < e.Timestamp || e.Event != events.KeyRotation && e.GracePeriodExpiry != e.Timestamp {
		c.violation(name, "the grace period of sequence %d does not fit its event", e.Sequence)
	}
	if e.EndEarlier && (e.Event != events.KeyRotation || e.GracePeriodExpiry != e.Timestamp) {
		c.violation(name, "sequence %d ends earlier keys, and is not an emergency rotation", e.Sequence)
	}
	c.answered(next)
}

// answered compares the stored receipt with the change that it answers.
func (c *checker) answered(next *change) {
	if c.trust == nil {
		return
	}
	name := next.event.Target.String()
	receipt, err := c.trust.At(time.Unix(next.event.Timestamp, 0), 0).Receipt(events.ReceiptSubject+name, next.receipt)
	switch {
	case err != nil:
		c.violation(name, "the receipt of sequence %d can't be trusted: %v", next.event.Sequence, err)
	case receipt.Event != events.RequestCommitted, receipt.Sequence != next.event.Sequence,
		receipt.RequestNonce != next.requestNonce, receipt.EventNonce != next.event.Nonce, receipt.PublicKey != next.event.NewKey:
		c.violation(name, "the receipt of sequence %d says something else", next.event.Sequence)
	}
}

// checkServices compares each service's present state with the last change in its history, and the
// history with the services.
func (s *Admin) checkServices(ctx context.Context, c *checker) error {
	err := s.each(ctx, `SELECT s.target, s.status, s.sequence, s.public_key, s.changed_at, h.event, h.public_key, h.committed_at
		FROM services s LEFT JOIN history h ON h.service = s.id AND h.sequence = s.sequence ORDER BY s.target`, nil,
		func(row sqldb.Row) error {
			c.report.Services++
			return c.present(row)
		})
	if err != nil {
		return err
	}
	// Only violations are grouped: SQLite keeps groups in memory.
	return s.each(ctx, `SELECT COALESCE(s.target, ''), MAX(h.sequence) FROM history h LEFT JOIN services s ON s.id = h.service
		WHERE s.sequence IS NULL OR h.sequence > s.sequence GROUP BY h.service, s.target ORDER BY s.target`, nil,
		func(row sqldb.Row) error {
			var name string
			var sequence int64
			err := row.Scan(&name, &sequence)
			c.violation(name, "the history goes on to sequence %d, past the service's present state", sequence)
			return err
		})
}

func (c *checker) present(row sqldb.Row) error {
	var t events.Target
	var one decision.Service
	var event sql.NullString
	var key events.PublicKey
	var committedAt sql.NullInt64
	if err := row.Scan(target(&t), &one.Status, &one.Sequence, keyColumn{&one.Key}, &one.ChangedAt, &event, keyColumn{&key}, &committedAt); err != nil {
		return err
	}
	revoked := event.String == string(events.ServiceRevocation)
	switch {
	case !event.Valid:
		c.violation(t.String(), "the service is at sequence %d, which its history does not have", one.Sequence)
	case one.Key != key, one.ChangedAt != committedAt.Int64, revoked == one.Active():
		c.violation(t.String(), "the service's present state is not what sequence %d brought", one.Sequence)
	}
	return nil
}

func (s *Admin) checkMasterKeys(ctx context.Context, c *checker) error {
	return s.each(ctx, `SELECT s.target, a.app_id FROM apps a JOIN history h ON h.public_key = a.master_public_key
		JOIN services s ON s.id = h.service UNION ALL SELECT s.target, r.app_id FROM reserved_keys r JOIN history h ON h.public_key = r.public_key
		JOIN services s ON s.id = h.service`, nil,
		func(row sqldb.Row) error {
			var name, app string
			err := row.Scan(&name, &app)
			if app == "" {
				c.violation(name, "the service has a key of the registry's own")
			} else {
				c.violation(name, "the service has the Master Key of %s, or an earlier one", app)
			}
			return err
		})
}

func (s *Admin) checkOutbox(ctx context.Context, c *checker) error {
	var oldest sql.NullInt64
	err := s.db.QueryRow(ctx, "SELECT COUNT(*), MIN(position) FROM outbox").Scan(&c.report.Outbox, &oldest)
	if err != nil {
		return fmt.Errorf("read the outbox: %w", err)
	}
	if age := c.now.Sub(time.Unix(0, oldest.Int64)); oldest.Valid && age > outboxPatience {
		c.violation("", "%d changes wait in the outbox to be published, the oldest for %s: is a registry running, and can it reach the broker?",
			c.report.Outbox, age.Round(time.Second))
	}
	return nil
}

// StreamContent is what the stream of events has, for [Admin.Check]. It needs some 100 bytes of
// memory for each service.
type StreamContent struct {
	// PerSubject is how many messages the stream keeps of each service; 0: all of them.
	PerSubject int64
	// Began is when the reading of the stream began, seconds since the Unix epoch. What was
	// committed later may be missing.
	Began    int64
	services map[events.Target]*kept
}

// Heard counts a message on a service's subject.
func (c *StreamContent) Heard(t events.Target) { c.of(t).messages++ }

// Has notes an event that is in the history too.
func (c *StreamContent) Has(at ChangeID) { c.of(at.Target).add(at.Sequence) }

func (c *StreamContent) of(t events.Target) *kept {
	if c.services == nil {
		c.services = map[events.Target]*kept{}
	}
	if c.services[t] == nil {
		c.services[t] = &kept{}
	}
	return c.services[t]
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

// loadUnpublished reads which services have events that wait to be published.
func (s *Admin) loadUnpublished(ctx context.Context, c *checker) error {
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
	if c.content == nil || committed == 0 || c.unpublished[t.String()] {
		return
	}
	k := c.content.of(t)
	from := max(1, committed-windowSize+1)
	if c.content.PerSubject > 0 && k.messages >= c.content.PerSubject && k.window != 0 {
		from = max(from, k.first()) // later messages have pushed out the older ones
	}
	for sequence := from; sequence <= committed; sequence++ {
		if !k.has(sequence) {
			c.violation(t.String(), "the stream lacks the event of sequence %d: a subscriber that starts now will not know of it", sequence)
			return // one is enough
		}
	}
}
