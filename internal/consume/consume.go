// Package consume runs a durable pull consumer in batches: pull what waits → hand it to one function → acknowledge
// after that function returns.
//
//	broker ──▶ iterator ──▶ channel ──▶ batch ──▶ Handler ──▶ acknowledge
//	                                     ▲ ▲         │ an error, or a panic
//	                                     │ └─ a few ─┤
//	                                     │    times  ▼
//	                                     │      one by one ──▶ those that pass: acknowledge
//	                                     │           ▼
//	                                     └───── suspects ──▶ at fault: SetAside, terminate
//
// A batch never waits to be filled: it is what has arrived when the last one is done, up to its limit, so an idle
// system adds no delay and a busy one gets large batches (worker.go).
//
// An error of the handler means that something it needs is away (a database, the broker), or that a message is poison,
// and nobody can tell which of the two from the error. So a batch is tried again with backoff, and after a few times
// its messages are handed over one by one, those of a large batch in parts before that. Those that fail alone are
// suspects: they wait here, are tried again from time to time, and hold up nobody. One is set aside once it has failed
// again and again while others passed; where all fail, it is not the messages, and nothing is given up however long it
// lasts. A panic is of its message: what panics alone is set aside at once (suspects.go).
package consume

import (
	"context"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Message is one delivery. It is acknowledged when the handler returns nil, unless the handler keeps it.
type Message struct {
	jetstream.Msg
	Meta *jetstream.MsgMetadata

	kept      bool
	witness   bool
	suspicion *suspicion                   // nil: it has not failed alone
	settled   *lru.Cache[uint64, struct{}] // nil: it did not come through Run
}

// NewMessage returns a message for a [Handler] that is called by something else than [Run].
func NewMessage(msg jetstream.Msg) (*Message, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return nil, err
	}
	return &Message{Msg: msg, Meta: meta}, nil
}

// Ack acknowledges the message, and remembers that: a copy that the broker sent meanwhile, because this one had waited
// for long in our own queue, is not handled again.
func (m *Message) Ack() error { return m.settle(m.Msg.Ack()) }

// TermWithReason ends the message for good, and remembers that as Ack does.
func (m *Message) TermWithReason(reason string) error { return m.settle(m.Msg.TermWithReason(reason)) }

func (m *Message) settle(err error) error {
	if err == nil && m.settled != nil {
		m.settled.Add(m.Meta.Sequence.Stream, struct{}{})
	}
	return err
}

// repeated reports whether the message is a copy of one that was settled.
func (m *Message) repeated() bool {
	return m.Meta.NumDelivered > 1 && m.settled.Contains(m.Meta.Sequence.Stream)
}

// Keep takes over the acknowledgement: the handler sees to it, now or later.
func (m *Message) Keep() { m.kept = true }

// Kept reports whether the handler took the message over, in this try or in an earlier one of the same batch.
func (m *Message) Kept() bool { return m.kept }

// Witness says that this try used all that handling ever needs: a change was committed. Once the handler has returned nil,
// it shows that messages which fail at that time are at fault themselves. To pass is not enough: what is refused
// unread passes with the database away, and what is only read passes with its disk full.
func (m *Message) Witness() { m.witness = true }

// Handler does the work for a batch: all of it, or it returns an error, and is called again with the same batch or with
// its messages one by one. It is never called concurrently by one Consumer. Its context outlives the start of a shutdown
// by Config.Drain.
type Handler func(ctx context.Context, batch []*Message) error

// Reasons of a [Fault].
const (
	Panics = "panic" // the handler panics
	Fails  = "error" // the handler returns an error, while it handles others
)

// Fault is why a message is set aside.
type Fault struct {
	Reason string // Panics or Fails
	Detail string // what the panic or the last error says
	Tries  int    // how often the message was handed over alone
}

// Config says how a consumer runs. Open, Handle and Log are required.
type Config struct {
	// Open creates or finds the durable. It is called at the start and whenever the durable is lost; while it
	// fails, it is tried again, unless its error is marked by [backoff.Permanent]: that one ends Run.
	Open func(ctx context.Context) (jetstream.Consumer, error)
	// Handle does the work.
	Handle Handler
	// SetAside keeps a message that can't be handled, for an operator to see; nil: it is only logged. When it returns nil,
	// the message is terminated; else it stays with us, and comes here again after its next failure.
	SetAside func(ctx context.Context, m *Message, why Fault) error
	// Away reports whether an error says by itself that something is away. A message is blamed far less for such a one.
	// Nil: no error does.
	Away func(error) bool
	// About names what a message is about. What fails alone is not overtaken by later messages of its batch about the same, though
	// what was away is back by then. Nil: their order doesn't matter.
	About func(*Message) string
	// Batch is the largest number of messages in a batch, and of suspects. Default 1024.
	Batch int
	// Drain is how long a batch that is under way may go on after a shutdown began. Default 10 s.
	Drain time.Duration
	// MaxBackoff is the longest pause between two tries. Default 2 s, well within a durable's wait for acknowledgements.
	MaxBackoff time.Duration
	// Conn is asked why the broker delivers nothing. Nil: nobody asks.
	Conn *nats.Conn
	// InHand is told of what is worked on. Nil: nobody asks.
	InHand *InHand
	Log    *slog.Logger

	heartbeat time.Duration // default [heartbeat]
}

const (
	defaultBatch      = 1024
	defaultDrain      = 10 * time.Second
	defaultMaxBackoff = 2 * time.Second
	firstBackoff      = 50 * time.Millisecond
)

func (c Config) withDefaults() Config {
	if c.SetAside == nil {
		c.SetAside = func(context.Context, *Message, Fault) error { return nil }
	}
	if c.Away == nil {
		c.Away = func(error) bool { return false }
	}
	if c.Batch <= 0 {
		c.Batch = defaultBatch
	}
	if c.Drain <= 0 {
		c.Drain = defaultDrain
	}
	if c.MaxBackoff <= 0 {
		c.MaxBackoff = defaultMaxBackoff
	}
	if c.heartbeat <= 0 {
		c.heartbeat = heartbeat
	}
	return c
}

// newBackoff returns pauses that grow from first to MaxBackoff.
func (c Config) newBackoff(first time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = first, c.MaxBackoff
	return b
}
