// Package consume works off messages in batches: it takes what waits in a source, hands it to one
// function, and acknowledges it after that function returns.
//
//	broker ──▶ Source ──▶ batch ──▶ Handler ──▶ acknowledge
//	                       ▲ ▲         │ an error, or a panic
//	                       │ └─ a few ─┤
//	                       │    times  ▼
//	                       │      one by one ──▶ those that pass: acknowledge
//	                       │           ▼
//	                       └───── suspects ──▶ at fault: SetAside, terminate
//
// [Pull.Source] is a source whose messages come in the order of the stream. A package that orders
// or parses them in another way has a [Source] of its own, on top of [Pull.Start].
//
// A batch never waits to be filled. It takes what has arrived when the last batch is done, up to
// its limit. So an idle system adds no delay, and a busy one gets large batches (worker.go).
//
// If the handler returns an error, either something that it needs is unavailable (a database, the
// broker), or a message is poison. The error alone doesn't tell which. So the batch is tried again
// with backoff. After a few times its messages are handed over one by one; a large batch is first
// split into parts. Messages that fail alone are suspects: they wait here, are tried again from
// time to time, and hold up no other message. A suspect is set aside once it has failed repeatedly
// while others passed. If all fail, the messages are not the cause, and nothing is given up however
// long that lasts. A panic is the message's fault: a message that panics alone is set aside at once
// (suspects.go).
package consume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/refusal"
)

// Source is where messages come from. One goroutine calls its methods.
type Source[T any] interface {
	// Next waits until a message has arrived, ctx ends, or the source ends. It appends what has
	// arrived to batch, which gets no longer than limit. If limit is 0, Next only waits. An error
	// means that the source has ended, and comes without messages.
	Next(ctx context.Context, batch []*Message[T], limit int) ([]*Message[T], error)
	// AckWait is how long the broker waits for an acknowledgement. 0 means that it needs none.
	AckWait() time.Duration
	// Close ends the source, and gives back to the broker what Next has not returned. It is the
	// last call.
	Close()
}

// Acknowledger tells the broker what has become of a message. A [jetstream.Msg] is one.
type Acknowledger interface {
	Ack() error
	// NakWithDelay has the message delivered again after this time; 0: at once.
	NakWithDelay(delay time.Duration) error
	TermWithReason(reason string) error
	InProgress() error
}

// Message is one delivery. It is acknowledged when the handler returns nil, unless the handler
// keeps it.
type Message[T any] struct {
	Acknowledger
	Subject   string
	Data      []byte
	Sequence  uint64    // in the stream
	Stored    time.Time // when JetStream stored it
	Delivery  uint64    // the number of this delivery among all deliveries of the consumer
	Delivered uint64    // how often the message was delivered, this time included
	Payload   T         // what the source knows of it

	kept      bool
	witness   bool
	suspicion *suspicion                   // nil if it has not failed alone
	finished  *lru.Cache[uint64, struct{}] // nil if it did not come through Run
}

// Plain is a message of which the source knows nothing else.
type Plain = Message[struct{}]

// NewMessage returns a message as JetStream delivered it.
func NewMessage[T any](msg jetstream.Msg) (Message[T], error) {
	meta, err := msg.Metadata()
	if err != nil {
		return Message[T]{}, fmt.Errorf("read a message's place in the stream: %w", err)
	}
	return Message[T]{
		Acknowledger: msg, Subject: msg.Subject(), Data: msg.Data(), Sequence: meta.Sequence.Stream, Stored: meta.Timestamp,
		Delivery: meta.Sequence.Consumer, Delivered: meta.NumDelivered,
	}, nil
}

// Ack acknowledges the message, and remembers that. A copy that the broker sent meanwhile, because
// the message had waited for long in our own queue, is not handled again.
func (m *Message[T]) Ack() error { return m.finish(m.Acknowledger.Ack()) }

// TermWithReason ends the message for good, and remembers that as Ack does.
func (m *Message[T]) TermWithReason(reason string) error {
	return m.finish(m.Acknowledger.TermWithReason(reason))
}

// Nak gives the message back to the broker, which delivers it again at once.
func (m *Message[T]) Nak() error { return m.NakWithDelay(0) }

func (m *Message[T]) finish(err error) error {
	if err == nil && m.finished != nil {
		m.finished.Add(m.Sequence, struct{}{})
	}
	return err
}

// repeated reports whether the message is a copy of one that is finished.
func (m *Message[T]) repeated() bool { return m.Delivered > 1 && m.finished.Contains(m.Sequence) }

// Keep takes over the acknowledgement: the handler sends it, now or later.
func (m *Message[T]) Keep() { m.kept = true }

// Kept reports whether the handler took the message over, in this try or in an earlier one of the
// same batch.
func (m *Message[T]) Kept() bool { return m.kept }

// Witness says that this try used everything that handling ever needs: it committed a change. Once
// the handler has returned nil, messages that fail at that time are at fault themselves. Passing is
// not enough: a message that is refused unread passes while the database is unavailable, and one
// that is only read passes while the disk is full.
func (m *Message[T]) Witness() { m.witness = true }

// Handler does all the work for a batch, or returns an error. After an error it is called again
// with the same batch, or with its messages one by one. One consumer never calls it concurrently.
// Its context outlives the start of a shutdown by Config.Drain.
type Handler[T any] func(ctx context.Context, batch []*Message[T]) error

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
type Config[T any] struct {
	// Open opens the source. It is called at the start and whenever the source has ended. Its
	// context ends when Run is to end; the source may then give back what it holds. If Open fails,
	// it is tried again, unless its error is marked by [backoff.Permanent]: such an error ends Run.
	Open func(ctx context.Context) (Source[T], error)
	// Handle does the work.
	Handle Handler[T]
	// SetAside keeps a message that can't be handled, so that an operator can see it. If it returns
	// nil, the message is terminated. Otherwise the message stays here, and is set aside again
	// after its next failure. A nil SetAside only logs the message.
	SetAside func(ctx context.Context, m *Message[T], why Fault) error
	// Unavailable reports whether an error itself says that something is unavailable. Such an
	// error counts far less against a message. Nil means that no error says so.
	Unavailable func(error) bool
	// About names what a message is about. If a message fails alone, later messages of its batch
	// about the same thing don't overtake it, even if the database or broker is back by then. Nil
	// means that their order doesn't matter.
	About func(*Message[T]) string
	// Batch limits the number of messages in a batch, and of suspects. The default is
	// [DefaultBatch].
	Batch int
	// Drain limits how long a batch may go on after a shutdown began. The default is 10 s.
	Drain time.Duration
	// MaxBackoff is the longest pause between two tries. The default is 2 s, well within a
	// durable's wait for acknowledgements.
	MaxBackoff time.Duration
	// Conn is asked why the source can't be opened, or has ended. Nil disables the question.
	Conn *nats.Conn
	// InHand tracks the messages that are being worked on. Nil disables it.
	InHand *InHand
	Log    *slog.Logger
}

const (
	// DefaultBatch is the default of [Config.Batch].
	DefaultBatch      = 1024
	defaultDrain      = 10 * time.Second
	defaultMaxBackoff = 2 * time.Second
	firstBackoff      = 50 * time.Millisecond
)

func (c Config[T]) withDefaults() Config[T] {
	if c.SetAside == nil {
		c.SetAside = func(context.Context, *Message[T], Fault) error { return nil }
	}
	if c.Unavailable == nil {
		c.Unavailable = func(error) bool { return false }
	}
	if c.Batch <= 0 {
		c.Batch = DefaultBatch
	}
	if c.Drain <= 0 {
		c.Drain = defaultDrain
	}
	if c.MaxBackoff <= 0 {
		c.MaxBackoff = defaultMaxBackoff
	}
	return c
}

// newBackoff returns pauses that grow from first to MaxBackoff.
func (c Config[T]) newBackoff(first time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = first, c.MaxBackoff
	return b
}

// Run consumes until ctx ends, and then returns nil, or until Open fails for good. It finishes a
// batch under way first. Messages that were not handed over go back to the broker.
func Run[T any](ctx context.Context, cfg Config[T]) error {
	cfg = cfg.withDefaults()
	pause, why := cfg.newBackoff(firstBackoff), refusal.Teller{Log: cfg.Log}
	failures := 0
	opened := func() {
		pause.Reset()
		why.Forget()
		failures = 0
	}
	for ctx.Err() == nil {
		err := refusal.Behind(runOnce(ctx, cfg, opened), cfg.Conn)
		if final := (*backoff.PermanentError)(nil); errors.As(err, &final) {
			return final.Unwrap()
		}
		if ctx.Err() != nil {
			break
		}
		// A broker that is being stopped refuses requests for a moment.
		if failures++; failures == 1 || !why.TellRefusal(err) {
			cfg.Log.Warn("consumer interrupted, trying again", "error", err)
		}
		wait(ctx, pause.NextBackOff())
	}
	return nil //nolint:nilerr // ctx has ended, and the error with it
}

// runOnce consumes until the source has ended.
func runOnce[T any](ctx context.Context, cfg Config[T], opened func()) error {
	source, err := cfg.Open(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	opened()
	return newWorker(cfg, source).run(ctx)
}
