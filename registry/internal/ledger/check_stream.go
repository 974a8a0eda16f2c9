package ledger

import (
	"context"
	"fmt"
	"math/bits"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// StreamContent is what the stream of events has, for [Admin.Check]. It needs some 100 bytes of
// memory for each service.
type StreamContent struct {
	// PerSubject is how many messages the stream keeps of each service; 0: all of them.
	PerSubject int64
	// Began is when the reading of the stream began, seconds since the Unix epoch. What was committed
	// later may be missing.
	Began    int64
	services map[events.Target]kept
}

// Heard counts a message on a service's subject.
func (c *StreamContent) Heard(t events.Target) {
	k := c.services[t]
	k.messages++
	c.put(t, k)
}

// Has notes an event that is in the history too.
func (c *StreamContent) Has(at ChangeID) {
	k := c.services[at.Target]
	k.add(at.Sequence)
	c.put(at.Target, k)
}

func (c *StreamContent) put(t events.Target, k kept) {
	if c.services == nil {
		c.services = map[events.Target]kept{}
	}
	c.services[t] = k
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
	k := c.content.services[t]
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
