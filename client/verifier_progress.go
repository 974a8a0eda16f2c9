package client

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// progress is how far the stream was read, and up to what time it is known.
//
// Messages come in the stream's order and without a gap. So when the broker is asked at some time how many it has
// delivered to us and how many wait, the stream is known up to that time once so many were worked off: at once on a
// quiet stream, and a little later on one that never rests.
type progress struct {
	known atomic.Pointer[time.Time] // nil: not yet

	mu       sync.Mutex
	last     place  // the last message that was worked off
	consumer string // the name of the present one
	seen     uint64 // how many it had delivered with that message
	goal     goal   // zero: none
	stalls   int    // questions in a row that found seen where it was, and something missing
	before   uint64 // seen, at the last of them
}

// place is where a message stands in the stream. Both together tell it from the message of that sequence in another one.
type place struct {
	sequence  uint64
	published time.Time
}

// goal is an earlier question: when so many were seen, the stream is known up to then.
type goal struct {
	seen  uint64
	asked time.Time
}

// stallsAllowed is how many questions in a row may find a message missing before it is taken for lost: it may be on its
// way, and this machine slow.
const stallsAllowed = 3

func (p *progress) asOf() time.Time {
	if known := p.known.Load(); known != nil {
		return *known
	}
	return time.Time{}
}

// raise never lowers: what was known once stays known.
func (p *progress) raise(t time.Time) {
	if t.After(p.asOf()) {
		p.known.Store(&t)
	}
}

// place returns the last message that was worked off.
func (p *progress) place() place {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

// begin is for a new consumer, before its first message.
func (p *progress) begin(consumer string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.consumer, p.seen, p.goal, p.stalls = consumer, 0, goal{}, 0
}

// forget is for another stream.
func (p *progress) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = place{}
}

// workedOff takes the last message of a batch that has had its effect.
func (p *progress) workedOff(m *jetstream.MsgMetadata) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.seen = place{m.Sequence.Stream, m.Timestamp}, m.Sequence.Consumer
	if p.goal != (goal{}) && p.seen >= p.goal.seen {
		p.raise(p.goal.asked)
		p.goal = goal{}
	}
}

// answered takes the broker's answer to a question, and says whether all that it had then was worked off.
func (p *progress) answered(info *jetstream.ConsumerInfo, asked time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	total := info.Delivered.Consumer + info.NumPending
	switch {
	case info.Name != p.consumer: // it was replaced meanwhile
		return true
	case total <= p.seen:
		p.raise(asked)
		p.goal, p.stalls = goal{}, 0
		return true
	case p.goal == goal{}: // an earlier one is kept until it is reached, else a busy stream would never reach any
		p.goal = goal{total, asked}
	}
	return false
}

// stalled is for a question that found something missing. It says whether that has been so for too long.
func (p *progress) stalled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen != p.before {
		p.stalls, p.before = 0, p.seen
	}
	p.stalls++
	return p.stalls > stallsAllowed
}
