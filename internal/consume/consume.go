// Package consume runs a durable pull consumer in batches: it pulls what waits, hands it to one
// function, and acknowledges it after that function returns.
//
//	broker ──▶ iterator ──▶ channel ──▶ batch ──▶ Handler ──▶ acknowledge
//	                                     ▲ ▲         │ an error, or a panic
//	                                     │ └─ a few ─┤
//	                                     │    times  ▼
//	                                     │      one by one ──▶ those that pass: acknowledge
//	                                     │           ▼
//	                                     └───── suspects ──▶ at fault: SetAside, terminate
//
// A batch never waits to be filled. It takes what has arrived when the last batch is done, up to
// its limit. So an idle system adds no delay, and a busy one gets large batches (worker.go).
//
// If the handler returns an error, either something that it needs is away (a database, the broker),
// or a message is poison. The error alone doesn't tell which. So the batch is tried again with
// backoff. After a few times its messages are handed over one by one; a large batch is first split
// into parts. Messages that fail alone are suspects: they wait here, are tried again from time to
// time, and hold up no other message. A suspect is set aside once it has failed repeatedly while
// others passed. If all fail, the messages are not the cause, and nothing is given up however long
// that lasts. A panic is the message's fault: a message that panics alone is set aside at once
// (suspects.go).
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

// Message is one delivery. It is acknowledged when the handler returns nil, unless the handler
// keeps it.
type Message struct {
	jetstream.Msg
	Meta *jetstream.MsgMetadata

	kept      bool
	witness   bool
	suspicion *suspicion                   // nil if it has not failed alone
	settled   *lru.Cache[uint64, struct{}] // nil if it did not come through Run
}

// NewMessage returns a message for a [Handler] that is not called by [Run].
func NewMessage(msg jetstream.Msg) (*Message, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return nil, err
	}
	return &Message{Msg: msg, Meta: meta}, nil
}

// Ack acknowledges the message, and remembers that. A copy that the broker sent meanwhile, because
// the message had waited for long in our own queue, is not handled again.
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

// Keep takes over the acknowledgement: the handler sends it, now or later.
func (m *Message) Keep() { m.kept = true }

// Kept reports whether the handler took the message over, in this try or in an earlier one of the
// same batch.
func (m *Message) Kept() bool { return m.kept }

// Witness says that this try used everything that handling ever needs: it committed a change. Once
// the handler has returned nil, messages that fail at that time are at fault themselves. Passing is
// not enough: a message that is refused unread passes while the database is away, and one that is
// only read passes while the disk is full.
func (m *Message) Witness() { m.witness = true }

// Handler does all the work for a batch, or returns an error. After an error it is called again
// with the same batch, or with its messages one by one. One consumer never calls it concurrently.
// Its context outlives the start of a shutdown by Config.Drain.
type Handler func(ctx context.Context, batch []*Message) error

// Reasons of a [Fault].
const (
	Panics = "panic" // the handler panics
	Fails  = "error" // the handler returns an error, while it handles other messages
)

// Fault says why a message is set aside.
type Fault struct {
	Reason string // Panics or Fails
	Detail string // the text of the panic or of the last error
	Tries  int    // how often the message was handed over alone
}

// Config says how a consumer runs. Open, Handle and Log are required.
type Config struct {
	// Open creates or finds the durable. It is called at the start and whenever the durable is
	// lost. If it fails, it is tried again, unless its error is marked by [backoff.Permanent]: such
	// an error ends Run.
	Open func(ctx context.Context) (jetstream.Consumer, error)
	// Handle does the work.
	Handle Handler
	// SetAside keeps a message that can't be handled, so that an operator can see it. If it returns
	// nil, the message is terminated. Otherwise the message stays here, and is set aside again
	// after its next failure. A nil SetAside only logs the message.
	SetAside func(ctx context.Context, m *Message, why Fault) error
	// Away reports whether an error itself says that something is away. Such an error counts far
	// less against a message. Nil means that no error says so.
	Away func(error) bool
	// About names what a message is about. If a message fails alone, later messages of its batch
	// about the same thing don't overtake it, even if the database or broker is back by then. Nil
	// means that their order doesn't matter.
	About func(*Message) string
	// Batch limits the number of messages in a batch, and of suspects. The default is 1024.
	Batch int
	// Drain limits how long a batch may go on after a shutdown began. The default is 10 s.
	Drain time.Duration
	// MaxBackoff is the longest pause between two tries. The default is 2 s, well within a
	// durable's wait for acknowledgements.
	MaxBackoff time.Duration
	// Conn is asked why the broker delivers nothing. Nil disables the question.
	Conn *nats.Conn
	// InHand tracks the messages that are being worked on. Nil disables it.
	InHand *InHand
	Log    *slog.Logger

	heartbeat time.Duration // [heartbeat] by default
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
