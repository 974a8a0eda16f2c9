package consume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/refusal"
)

// heartbeat is how often the broker says that it still knows of our pull. A cluster that loses a
// node forgets the pulls of that node, and says nothing; two missing heartbeats show it. With
// nats.go's default of 15 s, every message would wait for half a minute.
const heartbeat = 2 * time.Second

const (
	giveBackWithin = 500 * time.Millisecond
	settledKept    = 8 // in batches: more than can wait here, in the channel and in the iterator
)

// Run consumes until ctx ends, and then returns nil, or until Open fails for good. It finishes a
// batch under way first. Messages that were pulled and not handed over go back to the broker at
// once.
func Run(ctx context.Context, cfg Config) error {
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

// runOnce consumes until the durable or the connection is lost.
func runOnce(ctx context.Context, cfg Config, opened func()) error {
	consumer, err := cfg.Open(ctx)
	if err != nil {
		return err
	}
	pull := NewPull(consumer, 2*cfg.Batch)
	messages, err := consumer.Messages(pull.options(cfg.heartbeat)...)
	if err != nil {
		return fmt.Errorf("start pulling: %w", err)
	}
	iterator := Patient(messages, func() error { return pull.Refusal(cfg.Conn, consumer) })
	settled, err := lru.New[uint64, struct{}](settledKept * cfg.Batch)
	if err != nil {
		return fmt.Errorf("remember what is settled: %w", err)
	}
	opened()
	ctx, cancel := context.WithCancel(ctx)
	arrived := make(chan *Message, cfg.Batch)
	lost, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		defer close(arrived)
		lost <- pump(ctx, iterator, arrived, settled)
	}()
	newWorker(cfg, arrived, ended, consumer.CachedInfo().Config.AckWait).run(ctx)
	cancel()
	for m := range arrived {
		_ = m.Nak() // as in giveBack
	}
	iterator.Stop()
	return <-lost
}

// Patient returns an iterator that pulls once more if nothing came, not even a heartbeat. It fails
// only if nothing comes the second time either. So a broker that lost our pull gets another one,
// and a broker that is merely slow doesn't get a new consumer as well. If the broker refuses the
// pull, it fails at once.
func Patient(messages jetstream.MessagesContext, refusal func() error) jetstream.MessagesContext {
	return patient{messages, refusal}
}

type patient struct {
	jetstream.MessagesContext
	refusal func() error
}

// Next implements [jetstream.MessagesContext].
func (p patient) Next(opts ...jetstream.NextOpt) (jetstream.Msg, error) {
	msg, err := p.MessagesContext.Next(opts...)
	if errors.Is(err, jetstream.ErrNoHeartbeat) {
		if why := p.refusal(); why != nil {
			return nil, why
		}
		// the broker has forgotten the lost pull; this makes another
		msg, err = p.MessagesContext.Next(opts...)
	}
	return msg, err
}

// pump moves messages from the iterator to the channel until one of the two ends. Messages that are
// pulled by then and not handed over go back to the broker.
func pump(ctx context.Context, iterator jetstream.MessagesContext, arrived chan<- *Message, settled *lru.Cache[uint64, struct{}]) error {
	untilDone := jetstream.NextContext(ctx)
	for {
		msg, err := iterator.Next(untilDone)
		if ctx.Err() != nil {
			giveBack(iterator, msg)
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("pull: %w", err)
		}
		m, err := NewMessage(msg)
		if err != nil {
			return fmt.Errorf("read a message's place in the stream: %w", err)
		}
		m.settled = settled
		select {
		case arrived <- m:
		case <-ctx.Done():
			giveBack(iterator, msg)
			return ctx.Err()
		}
	}
}

// giveBack returns msg, if it is not nil, and what the iterator holds. It is best effort: without
// it the broker waits for the acknowledgement's deadline before it delivers these messages to
// another process.
func giveBack(iterator jetstream.MessagesContext, msg jetstream.Msg) {
	iterator.Drain()
	for err := error(nil); err == nil; msg, err = iterator.Next(jetstream.NextMaxWait(giveBackWithin)) {
		if msg != nil {
			_ = msg.Nak()
		}
	}
}
