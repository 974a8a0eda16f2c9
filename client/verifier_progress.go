package client

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
)

// streamProgress is how far the stream was read, and up to what time it is known.
//
// Messages come in the stream's order and without a gap. So when the broker is asked how many it
// has delivered to us and how many wait, the stream is known up to the time of the question once
// that many were worked off: at once on a quiet stream, and a little later on one that never rests.
type streamProgress struct {
	known atomic.Pointer[time.Time] // nil: not yet

	mu       sync.Mutex
	last     streamPlace // the last message that was worked off
	consumer string      // the name of the present one
	seen     uint64      // how many it had delivered with that message
	goal     streamGoal  // zero: none
	stalls   int         // questions in a row that found seen where it was, and something missing
	before   uint64      // seen, at the last of them
}

// streamPlace is where a message stands in the stream. Both together tell it from the message of
// that sequence in another stream.
type streamPlace struct {
	sequence  uint64
	published time.Time
}

// streamGoal is an earlier question: when that many were seen, the stream is known up to its time.
type streamGoal struct {
	seen  uint64
	asked time.Time
}

// stallsAllowed is how many questions in a row may find a message missing before it counts as lost:
// it may be on its way, and this machine slow.
const stallsAllowed = 3

func (p *streamProgress) asOf() time.Time {
	if known := p.known.Load(); known != nil {
		return *known
	}
	return time.Time{}
}

// raise never lowers: a time that was known once stays known.
func (p *streamProgress) raise(t time.Time) {
	if t.After(p.asOf()) {
		p.known.Store(&t)
	}
}

// place returns the last message that was worked off.
func (p *streamProgress) place() streamPlace {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// begin is for a new consumer, before its first message.
func (p *streamProgress) begin(consumer string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.consumer, p.seen, p.goal, p.stalls = consumer, 0, streamGoal{}, 0
}

// forget is for another stream.
func (p *streamProgress) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = streamPlace{}
}

// workedOff notes the last message of a batch that has had its effect.
func (p *streamProgress) workedOff(m *consume.Plain) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.seen = streamPlace{m.Sequence, m.Stored}, m.Delivery
	if p.goal != (streamGoal{}) && p.seen >= p.goal.seen {
		p.raise(p.goal.asked)
		p.goal = streamGoal{}
	}
}

// answered notes the broker's answer to a question, and reports whether all that it had then was
// worked off.
func (p *streamProgress) answered(info *jetstream.ConsumerInfo, asked time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	total := info.Delivered.Consumer + info.NumPending
	switch {
	case info.Name != p.consumer: // it was replaced meanwhile
		return true
	case total <= p.seen:
		p.raise(asked)
		p.goal, p.stalls = streamGoal{}, 0
		return true
	// An earlier goal is kept until it is reached. Otherwise a busy stream would never reach any.
	case p.goal == streamGoal{}:
		p.goal = streamGoal{total, asked}
	}
	return false
}

// stalled notes a question that found something missing. It reports whether that has been so for
// too long.
func (p *streamProgress) stalled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen != p.before {
		p.stalls, p.before = 0, p.seen
	}
	p.stalls++
	return p.stalls > stallsAllowed
}
