package client

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// streamProgress is how far the stream was read, and up to what time it is known.
//
// Messages come in the stream's order and without a gap. So when the broker is asked at some time how many it has
// delivered to us and how many wait, the stream is known up to that time once so many were worked off: at once on a
// quiet stream, and a little later on one that never rests.
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

// streamPlace is where a message stands in the stream. Both together tell it from the message of that sequence in another
// one.
type streamPlace struct {
	sequence  uint64
	published time.Time
}

// streamGoal is an earlier question: when so many were seen, the stream is known up to then.
type streamGoal struct {
	seen  uint64
	asked time.Time
}

// stallsAllowed is how many questions in a row may find a message missing before it is taken for lost: it may be on its
// way, and this machine slow.
const stallsAllowed = 3

func (p *streamProgress) asOf() time.Time {
	if known := p.known.Load(); known != nil {
		return *known
	}
	return time.Time{}
}

// raise never lowers: what was known once stays known.
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

// workedOff takes the last message of a batch that has had its effect.
func (p *streamProgress) workedOff(m *jetstream.MsgMetadata) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.seen = streamPlace{m.Sequence.Stream, m.Timestamp}, m.Sequence.Consumer
	if p.goal != (streamGoal{}) && p.seen >= p.goal.seen {
		p.raise(p.goal.asked)
		p.goal = streamGoal{}
	}
}

// answered takes the broker's answer to a question, and says whether all that it had then was worked off.
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
	case p.goal == streamGoal{}: // an earlier one is kept until it is reached, else a busy stream would never reach any
		p.goal = streamGoal{total, asked}
	}
	return false
}

// stalled is for a question that found something missing. It says whether that has been so for too long.
func (p *streamProgress) stalled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen != p.before {
		p.stalls, p.before = 0, p.seen
	}
	p.stalls++
	return p.stalls > stallsAllowed
}
