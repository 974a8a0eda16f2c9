// Package consume runs a durable pull consumer in batches: pull what waits → hand it to one function → acknowledge
// after that function returns.
//
//	broker ──▶ iterator ──▶ channel ──▶ batch ──▶ Handler ──▶ acknowledge
//	                                      ▲          │
//	                                      └─ backoff ┘ an error: the same batch again, for as long as it takes
//
// A batch never waits to be filled: it is what has arrived when the last one is done, up to its limit, so an idle
// system adds no delay and a busy one gets large batches.
//
// An error of the handler means that something it needs is away (a database, the broker); nothing is acknowledged
// and the batch is tried again with backoff. A panic means that one message is poison: the messages are then
// handed over one by one, and the one that panics alone is set aside, so that it blocks nobody.
package consume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/cenkalti/backoff/v5"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/nats-io/nats.go/jetstream"
)

// Message is one delivery. It is acknowledged when the handler returns nil, unless the handler keeps it.
type Message struct {
	jetstream.Msg
	Meta *jetstream.MsgMetadata

	kept    bool
	settled *lru.Cache[uint64, struct{}]
}

// Ack acknowledges the message, and remembers that: a copy that the broker sent meanwhile, because this one had waited
// for long in our own queue, is not handled again.
func (m *Message) Ack() error {
	err := m.Msg.Ack()
	if err == nil {
		m.settled.Add(m.Meta.Sequence.Stream, struct{}{})
	}
	return err
}

// repeated reports whether the message is a copy of one that was acknowledged.
func (m *Message) repeated() bool {
	return m.Meta.NumDelivered > 1 && m.settled.Contains(m.Meta.Sequence.Stream)
}

// Keep takes over the acknowledgement: the handler sees to it, now or later.
func (m *Message) Keep() { m.kept = true }

// Kept reports whether the handler took the message over, in this try or in an earlier one of the same batch.
func (m *Message) Kept() bool { return m.kept }

// Handler does the work for a batch: all of it, or it returns an error and is called with the same batch again. It
// is never called concurrently by one Consumer. Its context outlives the start of a shutdown by Config.Drain.
type Handler func(ctx context.Context, batch []*Message) error

// Config says how a consumer runs. Open, Handle and Log are required.
type Config struct {
	// Open creates or finds the durable. It is called at the start and whenever the durable is lost; while it
	// fails, it is tried again, unless its error is marked by [backoff.Permanent]: that one ends Run.
	Open func(ctx context.Context) (jetstream.Consumer, error)
	// Handle does the work.
	Handle Handler
	// SetAside keeps a message that can never be handled, for an operator to see; nil: it is only logged. When it
	// returns nil, the message is terminated.
	SetAside func(ctx context.Context, m *Message, reason string) error
	// Batch is the largest number of messages in a batch. Default 256.
	Batch int
	// Drain is how long a batch that is under way may go on after a shutdown began. Default 10 s.
	Drain time.Duration
	// MaxBackoff is the longest pause between two tries. Default 2 s, well within a durable's wait for acknowledgements.
	MaxBackoff time.Duration
	Log        *slog.Logger
}

const (
	defaultBatch      = 256
	defaultDrain      = 10 * time.Second
	defaultMaxBackoff = 2 * time.Second
	firstBackoff      = 50 * time.Millisecond
	giveBackWithin    = 500 * time.Millisecond
	// heartbeat is how often the broker says that it still knows of our pull. A cluster that loses a node forgets the pulls
	// that the node held, and says nothing; two heartbeats that don't come show it. nats.go's own 15 s would let every
	// message wait for half a minute.
	heartbeat   = 2 * time.Second
	settledKept = 8 // batches: more than can wait here, in the channel and in the iterator
)

func (c Config) withDefaults() Config {
	if c.Batch <= 0 {
		c.Batch = defaultBatch
	}
	if c.Drain <= 0 {
		c.Drain = defaultDrain
	}
	if c.MaxBackoff <= 0 {
		c.MaxBackoff = defaultMaxBackoff
	}
	return c
}

func (c Config) newBackoff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = firstBackoff, c.MaxBackoff
	return b
}

// Run consumes until ctx ends, and then returns nil, or until Open fails for good. A batch under way is finished first;
// messages that were pulled and not handed over go back to the broker at once.
func Run(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	pause := cfg.newBackoff()
	for ctx.Err() == nil {
		err := runOnce(ctx, cfg, pause.Reset)
		if final := (*backoff.PermanentError)(nil); errors.As(err, &final) {
			return final.Unwrap()
		}
		if ctx.Err() == nil {
			cfg.Log.Warn("consumer interrupted, trying again", "error", err)
			wait(ctx, pause.NextBackOff())
		}
	}
	return nil
}

// runOnce consumes until the durable or the connection is lost.
func runOnce(ctx context.Context, cfg Config, opened func()) error {
	consumer, err := cfg.Open(ctx)
	if err != nil {
		return err
	}
	iterator, err := consumer.Messages(jetstream.PullMaxMessages(2*cfg.Batch), jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return fmt.Errorf("start pulling: %w", err)
	}
	settled, err := lru.New[uint64, struct{}](settledKept * cfg.Batch)
	if err != nil {
		return fmt.Errorf("remember what is settled: %w", err)
	}
	opened()
	ctx, cancel := context.WithCancel(ctx)
	arrived := make(chan *Message, cfg.Batch)
	lost := make(chan error, 1)
	go func() {
		defer close(arrived)
		lost <- pump(ctx, iterator, arrived, settled)
	}()
	w := worker{cfg: cfg, arrived: arrived}
	w.run(ctx)
	cancel()
	for m := range arrived {
		_ = m.Nak() // as in giveBack
	}
	iterator.Stop()
	return <-lost
}

// pump moves messages from the iterator to the channel until one of the two ends. What is pulled by then and not
// handed over goes back.
func pump(ctx context.Context, iterator jetstream.MessagesContext, arrived chan<- *Message, settled *lru.Cache[uint64, struct{}]) error {
	for {
		msg, err := iterator.Next(jetstream.NextContext(ctx))
		if ctx.Err() != nil {
			giveBack(iterator, msg)
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("pull: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read a message's place in the stream: %w", err)
		}
		select {
		case arrived <- &Message{Msg: msg, Meta: meta, settled: settled}:
		case <-ctx.Done():
			giveBack(iterator, msg)
			return ctx.Err()
		}
	}
}

// giveBack returns msg, if there is one, and what the iterator holds. It is a courtesy, best effort: without it the
// broker waits for the acknowledgement's deadline before it delivers them to another.
func giveBack(iterator jetstream.MessagesContext, msg jetstream.Msg) {
	iterator.Drain()
	for err := error(nil); err == nil; msg, err = iterator.Next(jetstream.NextMaxWait(giveBackWithin)) {
		if msg != nil {
			_ = msg.Nak()
		}
	}
}

type worker struct {
	cfg     Config
	arrived <-chan *Message
}

func (w *worker) run(ctx context.Context) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(w.cfg.Drain, cancel) })
	defer stop()
	batch := make([]*Message, 0, w.cfg.Batch)
	for {
		var ok bool
		if batch, ok = w.next(ctx, batch[:0]); !ok {
			return
		}
		if len(batch) > 0 {
			w.handle(ctx, work, batch)
		}
	}
}

// next waits for one message, and takes what else is there.
func (w *worker) next(ctx context.Context, batch []*Message) ([]*Message, bool) {
	select {
	case <-ctx.Done():
		return nil, false
	case m, ok := <-w.arrived:
		if !ok {
			return nil, false
		}
		batch = w.add(batch, m)
	}
	for len(batch) < w.cfg.Batch {
		select {
		case m, ok := <-w.arrived:
			if !ok {
				return batch, true
			}
			batch = w.add(batch, m)
		default:
			return batch, true
		}
	}
	return batch, true
}

// add puts a message into the batch, unless it is a copy of one that is done.
func (w *worker) add(batch []*Message, m *Message) []*Message {
	if m.repeated() {
		w.settle(m.Ack())
		return batch
	}
	return append(batch, m)
}

// handle brings a batch to its end: acknowledged, or given back because a shutdown came first.
func (w *worker) handle(ctx, work context.Context, batch []*Message) {
	pause := w.cfg.newBackoff()
	for {
		err := w.try(work, batch)
		switch poison := (*panicError)(nil); {
		case err == nil:
			for _, m := range batch {
				if !m.kept {
					w.settle(m.Ack())
				}
			}
			return
		case errors.As(err, &poison) && len(batch) > 1:
			w.cfg.Log.Error("a message makes the handler panic, looking for it", "error", err, "messages", len(batch))
			for _, m := range batch {
				w.handle(ctx, work, []*Message{m})
			}
			return
		case errors.As(err, &poison) && w.setAside(work, batch[0], poison):
			return
		}
		w.cfg.Log.Warn("batch failed, trying again", "messages", len(batch), "error", err)
		if !wait(ctx, pause.NextBackOff()) {
			for _, m := range batch {
				if !m.kept {
					_ = m.Nak()
				}
			}
			return
		}
		for _, m := range batch {
			_ = m.InProgress() // it is still ours: no redelivery while we wait
		}
	}
}

func (w *worker) setAside(ctx context.Context, m *Message, poison *panicError) bool {
	w.cfg.Log.Error("message set aside: it makes the handler panic", "subject", m.Subject(), "panic", poison.value, "stack", poison.stack)
	if w.cfg.SetAside != nil {
		if err := w.cfg.SetAside(ctx, m, poison.Error()); err != nil {
			w.cfg.Log.Warn("set message aside", "subject", m.Subject(), "error", err)
			return false
		}
	}
	w.settle(m.TermWithReason("the handler panics"))
	return true
}

// settle logs a failed acknowledgement. It loses nothing: the message comes again, and has no second effect.
func (w *worker) settle(err error) {
	if err != nil {
		w.cfg.Log.Debug("acknowledge", "error", err)
	}
}

type panicError struct {
	value any
	stack string
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }

func (w *worker) try(ctx context.Context, batch []*Message) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{v, string(debug.Stack())}
		}
	}()
	return w.cfg.Handle(ctx, batch)
}

// wait pauses, and reports whether ctx is still alive.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
